"""Schemas against what was released and what is registered; and releasing them.

Whether the rules let a schema follow its earlier versions is `schemas/released.py`'s question. Here bytes are
read for it: every stored event of every released version by today's schema, and today's events by every
released one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.codec import RegistryUnavailable, read_body, write_body
from schemas.compatibility import Level, check_evolution
from schemas.json_bytes import to_json
from schemas.released import Declared, judge, same

SUBJECT_NOT_FOUND = 40401
LEVEL_NOT_SET = 40408


class ReleaseRefused(ValueError):
    """A schema that may not be released; the message says why and what to do."""


def example_problems(schema: Declared) -> list[str]:
    """Stored events that cannot be read by those who may meet them, each in one sentence."""
    problems = []
    if not schema.examples:
        problems.append(f"{schema.name} has no example; write examples/{schema.name}.json beside it")
    for release in schema.releases:
        for n, example in enumerate(release.examples):
            where = f"{schema.name}: example {n} of release {release.version}"
            try:
                if read_body(example.avro, release.schema, release.schema) != example.event:
                    problems.append(f"{where} is not what its bytes say; restore the released files")
                event = read_body(example.avro, release.schema, schema.schema)
                write_body(schema.schema, event)
            except Exception as error:  # whatever a codec raises, the example cannot be read
                problems.append(
                    f"{where} cannot be read with today's schema ({type(error).__name__}: {error})"
                )
    for n, event in enumerate(schema.examples):
        try:
            data = write_body(schema.schema, event)
        except Exception as error:
            problems.append(f"{schema.name}: example {n} is no event of it ({type(error).__name__}: {error})")
            continue
        for release in schema.releases:
            try:
                read_body(data, schema.schema, release.schema)
            except Exception as error:
                problems.append(
                    f"{schema.name}: example {n} cannot be read with release {release.version}"
                    f" ({type(error).__name__}: {error})"
                )
    return problems


def release(schema: Declared) -> int | None:
    """Write the working tree's schema and its examples down as the next version; None if it is released.

    Raises `ReleaseRefused` where it breaks earlier versions or has no examples.
    """
    verdict = judge(schema)
    if not verdict.unreleased:
        return None
    if verdict.breaking:
        raise ReleaseRefused(f"{schema.name}: {verdict.breaking[0]}; see `millrace schema check`")
    if problems := example_problems(schema):
        raise ReleaseRefused(problems[0])
    version = schema.releases[-1].version + 1 if schema.releases else 1
    stored = []
    for event in schema.examples:
        data = write_body(schema.schema, event)
        stored.append(
            {
                "event": read_body(data, schema.schema, schema.schema),
                "avro": base64.b64encode(data).decode(),
            }
        )
    schema.releases_path.mkdir(parents=True, exist_ok=True)
    path = schema.releases_path / f"{version}.avsc"
    # The examples first: a version without them would be no release.
    path.with_suffix(".json").write_text(
        json.dumps(stored, indent=1, ensure_ascii=False, default=to_json) + "\n"
    )
    path.write_text(schema.path.read_text())
    return version


@dataclass(frozen=True)
class Registered:
    """A subject of the registry against the working tree.

    `version` is the registered version that the working tree's schema is, None for none; `foreign` are
    registered versions that were never released from this tree; `breaking` says why the registry would
    refuse it, or why records of a registered version could not be read.
    """

    subject: str
    level: Level
    versions: tuple[int, ...]
    version: int | None
    foreign: tuple[int, ...]
    breaking: tuple[str, ...]


def registered(registry_url: str, schemas: Sequence[Declared]) -> list[Registered]:
    """Compare every subject with the registry. Raises `RegistryUnavailable`."""
    with SchemaRegistryClient({"url": registry_url, "timeout": 10}) as client:
        return [_registered(client, s, topic.subject) for s in schemas for topic in s.topics]


def _registered(client: SchemaRegistryClient, schema: Declared, subject: str) -> Registered:
    with _answering():
        try:
            versions = {n: client.get_version(subject, n).schema for n in client.get_versions(subject)}
        except SchemaRegistryError as error:
            if error.error_code != SUBJECT_NOT_FOUND:
                raise
            versions = {}
        level = _level(client, subject)
    texts = {n: json.loads(found.schema_str or "null") for n, found in versions.items()}
    known = [schema.schema, *(r.schema for r in schema.releases)]
    foreign = tuple(n for n, text in texts.items() if not any(same(text, k) for k in known))
    mine = next((n for n, text in texts.items() if same(text, schema.schema)), None)
    numbers = list(texts)
    reasons = [] if mine is not None else check_evolution(schema.schema, list(texts.values()), level)
    breaking = [f"{reason} (registered version {numbers[reason.earlier]})" for reason in reasons]
    return Registered(subject, level, tuple(numbers), mine, foreign, tuple(breaking))


def _level(client: SchemaRegistryClient, subject: str) -> Level:
    try:
        return Level(str(client.get_config(subject).compatibility_level))
    except SchemaRegistryError as error:
        if error.error_code not in (LEVEL_NOT_SET, SUBJECT_NOT_FOUND):
            raise
        return Level(str(client.get_config().compatibility_level))


@contextmanager
def _answering() -> Any:
    try:
        yield
    except SchemaRegistryError as error:
        if error.http_status_code >= 500:
            raise RegistryUnavailable(str(error)) from error
        raise
    except Exception as error:  # of whichever HTTP library the client found
        raise RegistryUnavailable(f"the registry does not answer: {error}") from error
