"""Ingesting files into a real topic: nothing missing, nothing twice, whatever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import files
from connectors.files import Event, FileSource, IngestError, choose, ingest, whole_batches
from infra.broker import TopicSpec, admin, ensure_topics
from infra.codec import Codec
from infra.columns import arrow_schema
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from schemas.declare import Evidence, Pipeline, Table, Topic

CARDS = 50


def topic_named(name: str) -> Topic:
    """A topic of its own for a test, with the schema of card transactions."""
    return Topic(
        domain="fraud",
        name=name,
        schema_name="card-transactions",
        key="card_id",
        owner="tests",
        about="a test",
        partitions=4,
    )


def pipeline_of(topic: Topic) -> Pipeline:
    table = Table(name="unused", topic=topic, key=("event_id",), columns=("event_id",))
    return Pipeline(
        name="ingesting",
        about="a test",
        inputs=(topic,),
        processors=(),
        tables=(table,),
        evidence=(Evidence(topic=topic, table="unused", column="event_id"),),
    )


def source_of(topic: Topic, *, by_column: bool = False) -> FileSource:
    """Rows of a card and an amount as events; `by_column` in both forms."""
    defaults = {f["name"]: f["default"] for f in topic.schema["fields"] if "default" in f}

    def events(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
        for n, (card, amount) in enumerate(
            zip(*(batch[c].to_pylist() for c in ("card", "amount")), strict=True)
        ):
            row = first_row + n
            yield (
                topic,
                defaults
                | {
                    "event_id": f"row-{row}",
                    "tenant": "default",
                    "occurred_at": 1_700_000_000_000 + row,
                    "card_id": card,
                    "amount_minor": amount,
                    "currency": "EUR",
                },
            )

    def event_columns(batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        rows = range(first_row, first_row + batch.num_rows)
        made = {
            "event_id": [f"row-{row}" for row in rows],
            "tenant": ["default"] * batch.num_rows,
            "occurred_at": [1_700_000_000_000 + row for row in rows],
            "card_id": batch["card"].to_pylist(),
            "amount_minor": batch["amount"].to_pylist(),
            "currency": ["EUR"] * batch.num_rows,
        }
        schema = arrow_schema(topic)
        constant = {f.name: [defaults.get(f.name)] * batch.num_rows for f in schema}
        return pa.RecordBatch.from_pydict(constant | made, schema=schema)

    return FileSource(
        name="rows",
        topic=topic,
        columns=frozenset({"card", "amount"}),
        events=events,
        event_columns=event_columns if by_column else None,
    )


def write_rows(path: Path, rows: int) -> None:
    pq.write_table(
        pa.table({"card": [f"card-{n % CARDS}" for n in range(rows)], "amount": range(rows)}), path
    )


@pytest.fixture
def topic(registry: Settings, codec: Codec) -> Topic:
    """A new topic for each test, its schema registered."""
    found = topic_named(f"ingest-{time.time_ns()}")
    ensure_topics(registry.kafka, [TopicSpec.of(found)])
    codec.register(found)
    return found


def records(settings: Settings, codec: Codec, topic: Topic) -> list[tuple[str, Event]]:
    """Everything in the topic, partition by partition in order: key and event."""
    client = admin(settings.kafka)
    wanted = partitions([topic])
    found: dict[int, list[tuple[str, Event]]] = {p.partition: [] for p in wanted}
    for messages in read(settings.kafka, starts(client, wanted), ends(client, wanted)):
        for m in messages:
            found[m.partition() or 0].append(
                ((m.key() or b"").decode(), codec.decode(topic, m.value()).event)
            )
    return [one for part in found.values() for one in part]


def count(settings: Settings, topic: Topic) -> int:
    return sum(ends(admin(settings.kafka), partitions([topic])).values())


RUN = textwrap.dedent("""
    import sys
    sys.path.insert(0, sys.argv[3])
    from pathlib import Path
    from connectors import files
    from infra.settings import Settings
    from test_files import pipeline_of, source_of, topic_named

    files.NOTE_EVENTS = 1_000
    files.BATCH_ROWS = 500
    topic = topic_named(sys.argv[1])
    sources = [source_of(topic, by_column=sys.argv[4] == "True")]
    files.ingest(
        Settings.load(), pipeline_of(topic), Path(sys.argv[2]), sources=sources, events_per_second=6_000
    )
""")


@pytest.mark.parametrize("by_column", [False, True], ids=["by row", "by column"])
def test_an_ingest_that_is_killed_twice_sends_every_row_exactly_once_in_order(
    registry: Settings,
    codec: Codec,
    topic: Topic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    by_column: bool,
) -> None:
    """kill -9 in the middle: the next run sends what is missing, nothing twice, each key's rows in order."""
    monkeypatch.setattr(files, "BATCH_ROWS", 500)
    rows, path = 40_000, tmp_path / "rows.parquet"
    write_rows(path, rows)
    reached, client = 0, admin(registry.kafka)

    def count() -> int:
        return sum(ends(client, partitions([topic])).values())

    for more in (3_000, 6_000):
        popen = subprocess.Popen(
            [sys.executable, "-c", RUN, topic.name, str(path), str(Path(__file__).parent), str(by_column)]
        )
        end = time.monotonic() + 40
        while count() < reached + more:
            assert popen.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        popen.kill()
        popen.wait()
        reached = count()
        assert reached < rows
    done = ingest(registry, pipeline_of(topic), path, sources=[source_of(topic, by_column=by_column)])
    assert (done.rows, done.events) == (rows, rows)
    assert 0 < reached <= done.already and done.already + done.sent == rows
    found = records(registry, codec, topic)
    assert Counter(e["event_id"] for _, e in found) == Counter(f"row-{n}" for n in range(rows))
    last: dict[str, int] = {}
    for key, event in found:
        assert key == event["card_id"]
        assert event["amount_minor"] > last.get(key, -1)
        last[key] = event["amount_minor"]


def test_a_finished_file_is_not_sent_again(registry: Settings, topic: Topic, tmp_path: Path) -> None:
    """The second ingest of a file says when the first finished, and sends nothing, by note or by topic."""
    path = tmp_path / "rows.csv"
    path.write_text("card,amount,other\n" + "".join(f"card-{n % 5},{n},x\n" for n in range(1_000)))
    pipeline, sources = pipeline_of(topic), [source_of(topic)]
    first = ingest(registry, pipeline, path, sources=sources)
    assert (first.rows, first.sent, first.finished_before) == (1_000, 1_000, None)
    again = ingest(registry, pipeline, path, sources=sources)
    assert again.finished_before is not None
    assert (again.rows, again.sent, again.already) == (1_000, 0, 1_000)
    # Another machine, or a state folder that was lost, has no note: the topic knows.
    for note in (registry.home_path / "ingest").glob("*.json"):
        note.unlink()
    third = ingest(registry, pipeline, path, sources=sources)
    assert (third.sent, third.already) == (0, 1_000)
    assert count(registry, topic) == 1_000


def test_another_file_is_another_ingest(registry: Settings, topic: Topic, tmp_path: Path) -> None:
    """Whether a row was sent is known by the file's content, not by its name."""
    path = tmp_path / "rows.parquet"
    for rows in (10, 20):
        write_rows(path, rows)
        assert ingest(registry, pipeline_of(topic), path, sources=[source_of(topic)]).sent == rows


def test_both_forms_of_a_file_are_one_ingest(
    registry: Settings, codec: Codec, topic: Topic, tmp_path: Path
) -> None:
    """What was sent row by row is known to an ingest by column, and its bytes are the same."""
    path = tmp_path / "rows.parquet"
    write_rows(path, 3_000)
    values: list[list[bytes]] = []
    for one in (topic, topic_named(f"{topic.name}-by-column")):
        ensure_topics(registry.kafka, [TopicSpec.of(one)])
        codec.register(one)
        source = source_of(one, by_column=one is not topic)
        assert ingest(registry, pipeline_of(one), path, sources=[source]).sent == 3_000
        wanted = partitions([one])
        end = ends(admin(registry.kafka), wanted)
        found = read(registry.kafka, dict.fromkeys(wanted, 0), end)
        values.append(sorted((m.value() or b"")[5:] for messages in found for m in messages))
    assert values[0] == values[1]
    for note in (registry.home_path / "ingest").glob("*.json"):
        note.unlink()
    again = ingest(registry, pipeline_of(topic), path, sources=[source_of(topic, by_column=True)])
    assert (again.sent, again.already) == (0, 3_000)


@pytest.mark.parametrize("by_column", [False, True], ids=["by row", "by column"])
def test_a_row_that_is_no_event_is_refused_and_its_neighbours_are_sent(
    registry: Settings, codec: Codec, topic: Topic, tmp_path: Path, *, by_column: bool
) -> None:
    """A value that does not fit the schema is named with its number; the rest of the file arrives."""
    path = tmp_path / "rows.csv"
    path.write_text("card,amount\na,1\nb,\nc,3\n")
    done = ingest(registry, pipeline_of(topic), path, sources=[source_of(topic, by_column=by_column)])
    assert (done.sent, done.refused_total) == (2, 1)
    assert done.refused[0].startswith("event 1: ")
    assert [e["amount_minor"] for _, e in sorted(records(registry, codec, topic), key=lambda r: r[0])] == [
        1,
        3,
    ]


def test_the_rate_is_kept(registry: Settings, topic: Topic, tmp_path: Path) -> None:
    """`--rate 200` sends 100 events in about half a second."""
    path = tmp_path / "rows.parquet"
    write_rows(path, 100)
    began = time.monotonic()
    ingest(registry, pipeline_of(topic), path, sources=[source_of(topic)], events_per_second=200)
    assert 0.49 <= time.monotonic() - began < 10


def test_a_file_of_another_kind_is_refused_by_the_columns_it_lacks(tmp_path: Path) -> None:
    """The nearest kind of file is named with the columns that are missing."""
    one = source_of(topic_named("card-transactions"))
    with pytest.raises(
        IngestError, match=r"x\.csv has no column amount, which rows needs; it has card, other"
    ):
        choose([one], ["other", "card"], tmp_path / "x.csv")
    wide = FileSource(name="wide", topic=one.topic, columns=one.columns | {"place"}, events=one.events)
    assert choose([one, wide], ["amount", "card", "place"], tmp_path / "x.csv") is wide


def test_a_file_that_is_no_table_is_refused(registry: Settings, topic: Topic, tmp_path: Path) -> None:
    """Neither Parquet nor CSV: one sentence, nothing sent."""
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(IngestError, match="neither Parquet nor CSV"):
        ingest(registry, pipeline_of(topic), path, sources=[source_of(topic)])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_that_belong_together_are_never_parted(size: int) -> None:
    """However the file is cut, batches end only where the column changes, and no row is lost."""
    values = list("aaabccccccde")
    table = pa.table({"whole": values, "n": range(len(values))})
    batches = list(whole_batches(table.to_batches(max_chunksize=size), "whole"))
    assert [n for b in batches for n in b["n"].to_pylist()] == list(range(len(values)))
    seen = [set(b["whole"].to_pylist()) for b in batches]
    assert sum(map(len, seen)) == len(set(values))


def test_a_second_ingest_of_the_same_file_waits_its_turn(
    registry: Settings, topic: Topic, tmp_path: Path
) -> None:
    """While one process sends a file, another is refused: both would send the same rows."""
    path = tmp_path / "rows.parquet"
    write_rows(path, 10)
    source = source_of(topic)

    def events(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
        with pytest.raises(IngestError, match="another process"):
            ingest(registry, pipeline_of(topic), path, sources=[source])
        yield from source.events(batch, first_row)

    nested = FileSource(name=source.name, topic=topic, columns=source.columns, events=events)
    assert ingest(registry, pipeline_of(topic), path, sources=[nested]).sent == 10
    notes = [json.loads(p.read_text()) for p in (registry.home_path / "ingest").glob("*.json")]
    assert any(topic.name in note["topics"] and note["finished"] for note in notes)
