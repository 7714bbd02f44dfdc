"""Our verdicts against Java Avro's SchemaCompatibility, over generated pairs of schemas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from schemas.avro import SchemaError, parse
from schemas.compatibility import Kind, check
from tests.schemas.avro_pairs import Json, pair

JAVA = Path(__file__).parent / "java_avro"
PAIRS = 5_000


@pytest.fixture(scope="module")
def jars(request: pytest.FixtureRequest) -> Path:
    """Java Avro and what it needs, resolved once by Maven and kept in pytest's cache."""
    if not (shutil.which("java") and shutil.which("mvn")):
        pytest.skip("java and mvn are not installed; apt-get install default-jdk-headless maven")
    folder: Path = request.config.cache.mkdir("java-avro")
    if not list(folder.glob("avro-*.jar")):
        command = ["mvn", "-q", "-B", "-f", str(JAVA / "pom.xml"), "dependency:copy-dependencies"]
        subprocess.run([*command, f"-DoutputDirectory={folder}"], check=True, timeout=150)
    return folder


def verdict(reader: Json, writer: Json) -> str:
    """Our verdict in the words of Verdicts.java."""
    try:
        found = check(parse(reader), parse(writer))
    except SchemaError:
        return "INVALID"
    if any(reason.kind is Kind.AMBIGUOUS_FIELD for reason in found):
        return "AMBIGUOUS"
    return ",".join(reason.kind for reason in found) or "-"


def java_verdicts(jars: Path, pairs: list[tuple[Json, Json]]) -> list[str]:
    lines = "".join(f"{json.dumps(reader)}\t{json.dumps(writer)}\n" for reader, writer in pairs)
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    classpath = os.pathsep.join(map(str, jars.glob("*.jar")))
    command = ["java", *options, "-cp", classpath, str(JAVA / "Verdicts.java")]
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=100)
    return run.stdout.splitlines()


def test_verdicts_equal_those_of_java(jars: Path) -> None:
    """Over thousands of pairs, in both directions, every verdict equals Java's, kind by kind and in order.

    Two differences are meant. Where a reader lacks a field whose enum has a default symbol, Java
    calls it a type mismatch, we call it a missing default. And we refuse a type that has the full
    name of a record around it, which Java 1.12.0 lets pass against the specification.
    """
    rng = Random(20180401)
    pairs: list[tuple[Json, Json]] = []
    for number in range(PAIRS):
        one, other = pair(rng, ("", "n", "m.k") if number % 2 else ("",))
        pairs += [(one, other), (other, one)]
    seen: Counter[str] = Counter()
    for (reader, writer), theirs in zip(pairs, java_verdicts(jars, pairs), strict=True):
        ours = verdict(reader, writer)
        seen.update(theirs.split(","))
        if ours == "INVALID" != theirs:
            with pytest.raises(SchemaError, match="is defined twice"):
                parse(reader), parse(writer)
            continue
        if "TYPE_MISMATCH" in theirs and "READER_FIELD_MISSING_DEFAULT_VALUE" in ours:
            assert len(ours.split(",")) == len(theirs.split(",")), (reader, writer)
        else:
            assert ours == theirs, (reader, writer)
    assert set(Kind) | {"-", "INVALID", "AMBIGUOUS"} == set(seen) | {Kind.AMBIGUOUS_FIELD}
    assert seen["-"] > PAIRS / 2 and min(seen.values()) >= 5, f"too few cases of some kind: {seen}"
