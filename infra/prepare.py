"""What must exist before the first record: topics, schemas, tables, and the models that decisions need.

`python -m infra.prepare` does it for the declared pipelines; repeating it changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.audit.log import ensure_key
from infra.broker import TopicMismatch, TopicSpec, ensure_topics
from infra.codec import Codec
from infra.identity import first
from infra.identity.subjects import SubjectError
from infra.postgres import MigrationError, let_in, migrate
from infra.secret_strength import refuse_weak
from infra.services.credentials import ensure_secret
from infra.services.rotation import ROTATED
from infra.settings import SettingError, Settings
from schemas.declare import Pipelines
from schemas.platform import TICK

FIRST_MODELS = (sys.executable, "-m", "infra.cli", "models", "ensure")
"""A program of its own: it imports layers above this one."""


class PrepareError(RuntimeError):
    """Something could not be prepared; the message names it, the reason and the remedy."""


def prepare_database(settings: Settings) -> list[str]:
    """Migrate the database, let its roles in, and make who is there first; returns the migrations applied.

    Raises `MigrationError`, `SettingError`, and psycopg's OperationalError.
    """
    applied = migrate(settings.database_url)
    others = {r.role: ensure_secret(settings, name) for name, r in ROTATED.items() if name != "postgres"}
    let_in(settings.database_url, others)
    ensure_key(settings)
    for name in ("signed-requests", "webhooks"):
        ensure_secret(settings, name)
    first.ensure(settings)
    return applied


def prepare(settings: Settings, pipelines: Pipelines, progress: Callable[[str], None]) -> None:
    """Create topics, register schemas, migrate the database, publish first models.

    Raises `PrepareError`; what was done stays done, and calling again goes on from there.
    """
    try:
        refuse_weak(settings)
    except SettingError as error:
        raise PrepareError(str(error)) from error
    topics = [t for p in pipelines for declared in p.topics for t in (declared, declared.dlq)]
    ticks = [TICK] if any(t.tick_ms is not None for t in topics) else []
    try:
        created = ensure_topics(settings.kafka, map(TopicSpec.of, topics))
    except TopicMismatch as error:
        raise PrepareError(str(error)) from error
    except (KafkaException, RuntimeError) as error:
        raise PrepareError(f"topics: {error}; look at `millrace status`") from error
    progress(f"topics: {len(created)} created, {len(topics) - len(created)} there already")

    with closing(Codec(settings.schema_registry_url)) as codec:
        for topic in (*topics, *ticks):
            try:
                codec.register(topic)
            except SchemaRegistryError as error:
                raise PrepareError(
                    f"the registry refuses the schema of {topic.subject}: {error.error_message};"
                    " give new fields a default, or write to a topic of a new name"
                ) from error
            except OSError as error:
                raise PrepareError(
                    f"the registry does not answer: {error}; look at `millrace status`"
                ) from error
    progress(f"schemas: {len(topics) + len(ticks)} registered")

    try:
        applied = prepare_database(settings)
    except (MigrationError, SettingError, SubjectError) as error:
        raise PrepareError(str(error)) from error
    except psycopg.OperationalError as error:
        raise PrepareError(f"the database does not answer: {error}; look at `millrace status`") from error
    progress(f"migrations: {', '.join(applied) or 'nothing new'}")

    trained = subprocess.run(FIRST_MODELS, check=False)
    if trained.returncode != 0:
        raise PrepareError(f"models: training ended with exit code {trained.returncode}; its reason is above")
    progress("models: all there")


def main() -> int:
    """Prepare the instance that the environment describes; one line of progress for each part."""
    from schemas.pipelines import PIPELINES

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        prepare(Settings.load(), PIPELINES, say)
    except PrepareError as error:
        say(f"failed: {error}")
        return 1
    say("prepared")
    return 0


if __name__ == "__main__":
    sys.exit(main())
