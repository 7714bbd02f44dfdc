"""Released schemas: every stored event stays readable, and a change that breaks one is told in full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infra.cli import build
from infra.codec import RegistryUnavailable, read_body
from infra.schema_versions import ReleaseRefused, example_problems, registered, release
from infra.settings import Settings
from schemas.avro import SchemaError
from schemas.compatibility import Level, check_evolution
from schemas.declare import Evidence, Pipeline, Pipelines, Processor, Table, Topic
from schemas.difference import differences
from schemas.pipelines import PIPELINES
from schemas.released import Declared, affected, declared, judge, roll_out
from tests.schemas.avro_pairs import pair

Json = Any
ROOT = Path(__file__).parents[2]
ALL = declared(PIPELINES)

PARCEL: Json = {
    "type": "record",
    "name": "Parcel",
    "namespace": "tests",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "tenant", "type": "string", "default": "default"},
        {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "weight_g", "type": "int"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "size", "type": {"type": "enum", "name": "Size", "symbols": ["S", "L"]}},
        {"name": "seal", "type": ["null", "bytes"], "default": None},
    ],
}
EXAMPLE = {
    "event_id": "p1",
    "tenant": "default",
    "occurred_at": 1_700_000_000_000,
    "weight_g": 250,
    "note": None,
    "size": "S",
    "seal": {"base64": "/wA="},
}


def parcel(folder: Path, schema: Json = PARCEL, example: Json = EXAMPLE) -> Declared:
    """The schema as the working tree's, with one example."""
    (folder / "examples").mkdir(exist_ok=True)
    (folder / "parcels.avsc").write_text(json.dumps(schema))
    (folder / "examples" / "parcels.json").write_text(json.dumps([example]))
    return Declared((topic(folder, "parcels"),))


def topic(folder: Path, name: str) -> Topic:
    return Topic(domain=str(folder), name=name, schema_name="parcels", key="event_id", owner="t", about="t")


def without(name: str) -> Json:
    return {**PARCEL, "fields": [f for f in PARCEL["fields"] if f["name"] != name]}


def changed(name: str, **values: Json) -> Json:
    return {**PARCEL, "fields": [{**f, **values} if f["name"] == name else f for f in PARCEL["fields"]]}


def added(**field: Json) -> Json:
    return {**PARCEL, "fields": [*PARCEL["fields"], field]}


@pytest.mark.parametrize("schema", ALL, ids=lambda d: d.name)
def test_every_stored_example_is_read_by_the_new_and_every_new_one_by_the_old(schema: Declared) -> None:
    """Every released version's bytes decode with today's schema, today's examples with every release."""
    assert schema.releases, f"{schema.name} was never released; `millrace schema release {schema.name}`"
    assert example_problems(schema) == []
    for released in schema.releases:
        for example in released.examples:
            read = read_body(example.avro, released.schema, schema.schema)
            shared = read.keys() & example.event.keys()
            assert {n: read[n] for n in shared} == {n: example.event[n] for n in shared}


@pytest.mark.parametrize("schema", ALL, ids=lambda d: d.name)
def test_nothing_in_the_tree_breaks_what_was_released(schema: Declared) -> None:
    """The working tree may follow all released versions, and each released one could follow those before."""
    assert judge(schema).breaking == []
    versions = [r.schema for r in schema.releases]
    assert [r.version for r in schema.releases] == list(range(1, len(versions) + 1))
    for n in range(1, len(versions)):
        assert check_evolution(versions[n], versions[:n]) == []


# change of the schema, breaks, what the difference says, first step of the roll-out
CHANGES: dict[str, tuple[Json, bool, str, str]] = {
    "nothing": (PARCEL, False, "", ""),
    "field with default": (
        added(name="van", type="string", default=""),
        False,
        "van: added, string",
        "any order",
    ),
    "field without default": (added(name="van", type="string"), True, "van: added", "first every producer"),
    "field with default lost": (without("note"), False, "note: removed", "any order"),
    "field without default lost": (without("weight_g"), True, "weight_g: removed", "first every consumer"),
    "int widened": (
        changed("weight_g", type="long"),
        True,
        "weight_g: type changed from int to long",
        "first every consumer",
    ),
    "int to string": (
        changed("weight_g", type="string"),
        True,
        "weight_g: type changed from int to string",
        "declare a topic of a new name",
    ),
    "symbol gained": (
        changed("size", type={"type": "enum", "name": "Size", "symbols": ["S", "L", "XL"]}),
        True,
        "size: gained XL",
        "first every consumer",
    ),
    "union branch lost": (
        changed("note", type=["null"]),
        True,
        "note: no longer takes string",
        "first every producer",
    ),
    "millis to micros": (
        changed("occurred_at", type={"type": "long", "logicalType": "timestamp-micros"}),
        True,
        "occurred_at: logical type changed from timestamp-millis to timestamp-micros",
        "declare a topic of a new name",
    ),
    "renamed": (
        {**PARCEL, "name": "Packet"},
        True,
        "is now called tests.Packet",
        "declare a topic of a new name",
    ),
    "default changed": (
        changed("tenant", default="acme"),
        False,
        'tenant: was with default "default", is now with default "acme"',
        "any order",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_with_its_difference_and_the_order_to_deploy(tmp_path: Path, change: str) -> None:
    """For each kind of change: whether it breaks, what differs, and who goes first."""
    schema, breaks, difference, first = CHANGES[change]
    assert release(parcel(tmp_path)) == 1
    verdict = judge(parcel(tmp_path, schema))
    assert bool(verdict.breaking) == breaks
    assert (difference in "\n".join(map(str, verdict.changes))) and bool(verdict.changes) == bool(difference)
    steps = roll_out(verdict, affected(Pipelines(), verdict.declared.topics))
    assert steps[0].startswith(first) if first else steps == [], steps


def test_a_level_decides_what_breaks(tmp_path: Path) -> None:
    """Where only backward compatibility is owed, a lost field may go, in the order consumers first."""
    release(parcel(tmp_path))
    verdict = judge(parcel(tmp_path, without("weight_g")), Level.BACKWARD)
    assert verdict.breaking == []
    assert judge(parcel(tmp_path, without("weight_g")), Level.FORWARD).breaking != []


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_whatever_breaks_is_a_difference(seed: int) -> None:
    """Two schemas that cannot read each other differ in words too; one and the same does not."""
    old, new = pair(Random(seed))
    try:
        reasons = check_evolution(new, [old])
        found = differences(old, new)
    except SchemaError:
        return
    assert bool(found) or not reasons
    assert differences(old, old) == []


def test_releasing_keeps_the_bytes_and_refuses_what_breaks(tmp_path: Path) -> None:
    """A release is written once, its bytes decode for ever, and a breaking schema is not released."""
    assert release(parcel(tmp_path)) == 1
    assert release(parcel(tmp_path)) is None
    assert (
        release(parcel(tmp_path, {**PARCEL, "fields": [dict(reversed(f.items())) for f in PARCEL["fields"]]}))
        is None
    )
    newer = added(name="van", type=["null", "string"], default=None)
    assert release(parcel(tmp_path, newer, {**EXAMPLE, "van": "v1"})) == 2
    today = parcel(tmp_path, newer, {**EXAMPLE, "van": "v1"})
    assert example_problems(today) == []
    [old], [new] = (r.examples for r in today.releases)
    assert read_body(old.avro, PARCEL, newer) == {**old.event, "van": None}
    assert read_body(new.avro, newer, PARCEL) == old.event
    assert old.event["seal"] == b"\xff\x00"
    with pytest.raises(ReleaseRefused, match="weight_g"):
        release(parcel(tmp_path, without("weight_g")))
    assert [r.version for r in parcel(tmp_path).releases] == [1, 2]


def test_examples_that_no_longer_fit_are_named(tmp_path: Path) -> None:
    """A changed stored file, an example that is no event, and a schema without any are told apart."""
    release(parcel(tmp_path))
    stored = tmp_path / "released" / "parcels" / "1.json"
    kept = stored.read_text()
    stored.write_text(kept.replace('"weight_g": 250', '"weight_g": 251'))
    assert "is not what its bytes say" in example_problems(parcel(tmp_path))[0]
    stored.write_text(kept)
    (problem,) = example_problems(parcel(tmp_path, example={**EXAMPLE, "weight_g": "heavy"}))
    assert "example 0 is no event of it" in problem
    unreadable = example_problems(
        parcel(tmp_path, changed("weight_g", type="boolean"), {**EXAMPLE, "weight_g": True})
    )
    assert ["today's schema" in p for p in unreadable] == [True, False]
    (tmp_path / "examples" / "parcels.json").unlink()
    assert "has no example" in example_problems(Declared((topic(tmp_path, "parcels"),)))[0]
    with pytest.raises(ReleaseRefused, match="weight_g"):
        release(parcel(tmp_path, changed("weight_g", type="boolean"), EXAMPLE))


def test_whom_a_change_concerns(tmp_path: Path) -> None:
    """Connectors and processors that write, processors and the sink that read; dead letters concern all."""
    parcel(tmp_path)
    inputs, results = topic(tmp_path, "inputs"), topic(tmp_path, "results")
    table = Table(name="parcels", topic=results, key=("event_id",), columns=("event_id",))
    pipelines = Pipelines.of(
        Pipeline(
            name="post",
            about="t",
            inputs=(inputs,),
            processors=(Processor(name="sorting", sources=(inputs,), outputs=(results,), stateful=False),),
            tables=(table,),
            evidence=(Evidence(topic=inputs, table="parcels", column="event_id"),),
        )
    )
    told = affected(pipelines, (inputs,))
    assert (told.producers, told.consumers) == (("post connectors",), ("sorting",))
    told = affected(pipelines, (results,))
    assert (told.producers, told.consumers) == (("sorting",), ("post-sink",))
    told = affected(pipelines, (inputs.dlq, results.dlq))
    assert (told.producers, told.consumers) == (("sorting", "post-sink"), ("post-sink",))


def test_a_registry_is_compared_version_by_version(registry: Settings, tmp_path: Path) -> None:
    """Not registered, registered, registered by somebody else, and refused by the registry's own level."""
    url = registry.schema_registry_url
    name = f"parcels-{uuid4().hex}"  # the registry outlives the session
    parcel(tmp_path)
    schema = Declared((topic(tmp_path, name),))
    release(schema)
    (found,) = registered(url, [schema])
    assert (found.level, found.versions, found.version, found.breaking) == ("FULL_TRANSITIVE", (), None, ())
    with SchemaRegistryClient({"url": url}) as client:
        client.register_schema(f"{name}-value", Schema(json.dumps(PARCEL), "AVRO"))
        foreign = added(name="van", type="string", default="")
        client.register_schema(f"{name}-value", Schema(json.dumps(foreign), "AVRO"))
        (found,) = registered(url, [schema])
        assert (found.versions, found.version, found.foreign, found.breaking) == ((1, 2), 1, (2,), ())
        # Against what was released this would do, but not against what somebody registered.
        parcel(tmp_path, added(name="van", type="int", default=0), {**EXAMPLE, "van": 1})
        clash = Declared((topic(tmp_path, name),))
        assert judge(clash).breaking == []
        (found,) = registered(url, [clash])
        assert "field `van`" in found.breaking[0] and "registered version 2" in found.breaking[0]
        client.set_compatibility(f"{name}-value", "NONE")
        (found,) = registered(url, [clash])
        assert (found.level, found.breaking) == ("NONE", ())
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        registered("http://127.0.0.1:1", [schema])


def test_the_command_fails_with_difference_consumers_and_order(tmp_path: Path) -> None:
    """In a copy of the tree: `schema check` is clean, and after a breaking change exits 1 with all of it."""
    for folder in ("schemas", "infra"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("connectors", "streams", "sinks", "api", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)

    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.cli", "schema", *arguments]
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)

    clean = check("check", "--offline")
    assert clean.returncode == 0, clean.stdout + clean.stderr
    path = tmp_path / "schemas" / "fraud" / "card-decisions.avsc"
    schema = json.loads(path.read_text())
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "rules_version"]
    path.write_text(json.dumps(schema))
    example = tmp_path / "schemas" / "fraud" / "examples" / "card-decisions.json"
    events = json.loads(example.read_text())
    example.write_text(json.dumps([{k: v for k, v in e.items() if k != "rules_version"} for e in events]))
    broken = check("check", "--offline")
    assert broken.returncode == 1
    for part in (
        "card-decisions: breaks what was released",
        "rules_version: removed, was int",
        "keep the field (release 1)",
        "producers: fraud-scoring",
        "consumers: fraud-sink",
        "1. first every consumer: fraud-sink",
        "1 break",
    ):
        assert part in broken.stdout, part
    told = json.loads(check("check", "card-decisions", "--offline", "--json").stdout)
    assert told[0]["roll_out"][1] == "then the producers: fraud-scoring"
    refused = check("release", "card-decisions")
    assert refused.returncode == 1 and "rules_version" in refused.stderr


def test_the_command_compares_with_the_registry(registry: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a registry it is compared too; without one the command says how to leave it out."""
    command, runner = build(), CliRunner()
    done = runner.invoke(command, ["schema", "check", "card-transactions", "--json"])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.output)
    assert [s["subject"] for s in told["registry"]] == ["card-transactions-value"]
    assert "there is no schema" in runner.invoke(command, ["schema", "check", "nonsense"]).output
    assert "is none of NONE" in runner.invoke(command, ["schema", "check", "--level", "SOME"]).output
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1")
    refused = runner.invoke(command, ["schema", "check"])
    assert refused.exit_code == 1 and "--offline" in refused.output
