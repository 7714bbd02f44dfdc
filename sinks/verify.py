"""Do topics and tables agree? Every offset is in the sink, in the dead letters, or declared as skipped.

Nothing that a process says of itself is asked, no counter and no metric: the topics are read again, their
records are made into rows once more, and rows, dead letters and range records are compared with them, all
as of one snapshot of the database. It may run while the pipeline works.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pyarrow as pa
from confluent_kafka import Message
from psycopg import sql

from infra.checkpoints import TopicPartition
from infra.codec import Codec, IsTick, Undecodable
from infra.columns import Columns
from infra.evidence import OnTheWay, check_evidence, on_the_way
from infra.log_span import Bound
from infra.postgres import Connection, connect
from infra.range_records import Reread, check_ranges
from infra.settings import Settings
from infra.standing import Letter, Standing, readers, stand
from infra.topic_log import read
from infra.verification import Check, Offsets, Place, Report
from schemas.declare import Invariant, Pipeline, Topic
from sinks.rows import RowMapping
from sinks.table_check import RIGHT, Kind, Lot, TableCheck
from sinks.writer import id_hash

Progress = Callable[[str], None]


def verify(
    settings: Settings,
    pipeline: Pipeline,
    mappings: Iterable[RowMapping],
    first: Bound | None = None,
    last: Bound | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Verify a pipeline, or the stretch of its topics from `first` up to, not including, `last`.

    Raises `infra.topic_log.LogUnreadable`, `infra.codec.RegistryUnavailable`, `psycopg.Error`.
    """
    began = time.monotonic()
    with (
        connect(settings.database_url, "millrace-verify") as connection,
        closing(Codec(settings.schema_registry_url)) as codec,
    ):
        # The rows of some thousand keys, each by its index: a whole table hashed for each lot is slower.
        for setting in ("enable_hashjoin", "enable_mergejoin", "jit"):
            connection.execute(sql.SQL("SET {} = off").format(sql.Identifier(setting)))
        by_topic: dict[str, list[TableCheck]] = {t.name: [] for t in pipeline.sink_topics}
        for mapping in mappings:
            by_topic[mapping.table.topic.name].append(TableCheck(connection, mapping))
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            log_check = Check("positions: each fits its topic")
            standing = stand(connection, settings.kafka, pipeline, first, last, log_check)
            verification = _Verification(settings, connection, codec, pipeline, standing, progress)
            checks = [log_check]
            offsets: list[Offsets] = []
            if not log_check.wrong:
                # (Against a log that is another one, everything else would be wrong as well.)
                offsets, found = verification.run(by_topic)
                checks += found
    return Report(pipeline.name, tuple(offsets), tuple(checks), time.monotonic() - began)


class _Verification:
    """One run, within the transaction whose snapshot it is about."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        codec: Codec,
        pipeline: Pipeline,
        standing: Standing,
        progress: Progress,
    ) -> None:
        self._access = settings.kafka
        self._connection = connection
        self._codec = codec
        self._pipeline = pipeline
        self._standing = standing
        self._progress = progress
        self._cover = Check("range records: every offset once", unit="ranges")
        self._recount = Check("range records: counts and ids are those of the log", unit="ranges")
        self._letters = Check("dead letters: each has its record and its topic's copy", unit="dead letters")

    def run(self, by_topic: dict[str, list[TableCheck]]) -> tuple[list[Offsets], list[Check]]:
        pipeline, standing = self._pipeline, self._standing
        offsets: list[Offsets] = []
        evidence: list[Check] = []
        waiting = on_the_way(self._access, self._codec, pipeline, standing)
        with_evidence = {e.topic.name for e in pipeline.evidence}
        for topic in pipeline.topics:
            if topic.name in with_evidence:
                self._progress(f"{pipeline.name}: reading {topic.name}")
                found, checks = check_evidence(
                    self._connection, self._access, self._codec, pipeline, topic, standing, waiting
                )
                offsets.append(found)
                evidence += checks
            elif topic.name not in by_topic:
                self._progress(f"{pipeline.name}: reading {topic.name}")
                offsets.append(self._passed(topic))
        for topic in pipeline.sink_topics:
            self._progress(f"{pipeline.name}: reading {topic.name}")
            offsets.append(self._stored(topic, by_topic[topic.name]))
        offsets += self._dead_letters(waiting)
        checks = [self._cover, self._recount, self._letters]
        checks += [t.check for tables in by_topic.values() for t in tables]
        checks += evidence
        is_settled = not any(o.waiting for o in offsets)
        checks += [self._invariant(i, is_settled) for i in pipeline.invariants]
        return offsets, checks

    # Topics that feed tables

    def _stored(self, topic: Topic, tables: Sequence[TableCheck]) -> Offsets:
        """Compare a topic with its tables and the sink's range records."""
        sink = self._pipeline.sink_name
        found = Offsets(topic.name, sink)
        spans = self._standing.spans(topic)
        positions = {at: self._standing.position([sink], at) for at in spans}
        ends = {at: min(end, max(positions[at], begin)) for at, (begin, end) in spans.items()}
        rereads = {at: Reread() for at in spans}
        records = 0
        by_column = Columns(self._codec, topic) if all(t.takes_blocks for t in tables) else None
        # The database compares one lot while the next is read.
        with ThreadPoolExecutor(1, thread_name_prefix="compare") as thread:
            comparing = thread.submit(_compare, tables, [t.take() for t in tables])
            for messages in read(self._access, {at: s[0] for at, s in spans.items()}, ends):
                records += len(messages)
                others: Sequence[Message] = messages
                if by_column is not None:
                    others = self._reread_block(topic, tables, by_column, messages, rereads)
                for message in others:
                    self._reread(topic, tables, message, rereads, found)
                if any(t.is_full for t in tables):
                    _add(found, comparing.result())
                    comparing = thread.submit(_compare, tables, [t.take() for t in tables])
            _add(found, comparing.result())
            _add(found, _compare(tables, [t.take() for t in tables]))
        for at, (begin, _) in spans.items():
            check_ranges(self._connection, sink, at, begin, ends[at], rereads[at], self._cover, self._recount)
        inside = {at: (begin, ends[at]) for at, (begin, _) in spans.items()}
        for table in tables:
            table.check_sources(inside, positions)
        found.skipped += sum(end - begin for begin, end in inside.values()) - records
        found.waiting = sum(end - ends[at] for at, (_, end) in spans.items())
        found.expired = sum(s[0] for s in spans.values()) if self._standing.is_whole else 0
        return found

    def _reread(
        self,
        topic: Topic,
        tables: Sequence[TableCheck],
        message: Message,
        rereads: dict[TopicPartition, Reread],
        found: Offsets,
    ) -> None:
        partition, offset = int(message.partition() or 0), int(message.offset() or 0)
        reread = rereads[TopicPartition(topic.name, partition)]
        refused_by = self._standing.letters.get(Letter(topic.name, partition, offset), frozenset())
        if self._pipeline.sink_name in refused_by:
            found.dead_letters += 1
            reread.add(offset, 0, True)
            return
        try:
            event = self._codec.decode(topic, message.value()).event
            rows = [list(table.mapping.rows(event)) for table in tables]
        except IsTick:
            found.skipped += 1
            reread.add(offset, 0, False)
            return
        except (Undecodable, ValueError, OverflowError, TypeError, LookupError) as error:
            found.wrong += 1
            reread.add(offset, 0, False)
            place = Place(topic.name, partition, offset)
            self._letters.fails(
                f"{place} gives no row ({error}) and is no dead letter either; redo it with"
                " `millrace replay plan`",
                (topic.name, partition, offset),
            )
            return
        reread.add(offset, id_hash(event[topic.event_id]), False)
        if not sum(table.add(some, partition, offset) for table, some in zip(tables, rows, strict=True)):
            found.skipped += 1

    def _reread_block(
        self,
        topic: Topic,
        tables: Sequence[TableCheck],
        columns: Columns,
        messages: Sequence[Message],
        rereads: dict[TopicPartition, Reread],
    ) -> Sequence[Message]:
        """As `_reread`, for all records that give their rows by column; returns the others."""
        partitions = np.array([m.partition() for m in messages], dtype=np.int64)
        offsets = np.array([m.offset() for m in messages], dtype=np.int64)
        numbers = np.arange(len(messages))
        if letters := self._standing.letters:
            places = zip(partitions.tolist(), offsets.tolist(), strict=True)
            numbers = np.flatnonzero([Letter(topic.name, *place) not in letters for place in places])
        decoded = columns.decode([messages[n].value() for n in numbers.tolist()])
        numbers = numbers[decoded.rows]
        try:
            rows = [table.by_column(decoded.batch) for table in tables]
        except (ValueError, OverflowError, TypeError, LookupError, pa.ArrowException):
            return messages
        partitions, offsets = partitions[numbers], offsets[numbers]
        for table, some in zip(tables, rows, strict=True):
            table.add_block(decoded.batch, partitions, offsets, some)
        hashes = np.fromiter(
            map(id_hash, decoded.batch.column(topic.event_id).to_pylist()), np.uint64, len(numbers)
        )
        for partition in np.unique(partitions).tolist():
            mine = partitions == partition
            reread = rereads[TopicPartition(topic.name, partition)]
            reread.offsets.frombytes(offsets[mine].tobytes())
            reread.hashes.frombytes(hashes[mine].tobytes())
            reread.refused.extend([0] * int(mine.sum()))
        left = np.setdiff1d(np.arange(len(messages)), numbers)
        return [messages[n] for n in left.tolist()]

    # Topics between processors, whose ids no table keeps

    def _passed(self, topic: Topic) -> Offsets:
        who = readers(self._pipeline, topic)
        found = Offsets(topic.name, ", ".join(who))
        spans = self._standing.spans(topic)
        records = 0
        first, end = {p: s[0] for p, s in spans.items()}, {p: s[1] for p, s in spans.items()}
        positions = {at: self._standing.position(who, at) for at in spans}
        for messages in read(self._access, first, end):
            for message in messages:
                records += 1
                at = TopicPartition(topic.name, int(message.partition() or 0))
                offset = int(message.offset() or 0)
                if Letter(at.topic, at.partition, offset) in self._standing.letters:
                    found.dead_letters += 1
                elif offset >= positions[at]:
                    found.waiting += 1
                else:
                    found.decided += 1
        found.skipped = sum(s[1] - s[0] for s in spans.values()) - records
        found.expired = sum(first.values()) if self._standing.is_whole else 0
        return found

    # Dead letters

    def _dead_letters(self, waiting: OnTheWay) -> list[Offsets]:
        """Compare the dead letter topics with the table, both ways, and each letter with its record's log."""
        standing, sink = self._standing, self._pipeline.sink_name
        check = self._letters
        on_topic: dict[Letter, set[str]] = {}
        complete = True
        found = []
        for topic in (t.dlq for t in self._pipeline.topics):
            # As a whole, also where a stretch is verified: a letter comes later than its record.
            ((at, _),) = standing.spans(topic).items()
            begin, end = standing.starts[at], standing.position([sink], at)
            complete = complete and begin == 0
            offsets = Offsets(topic.name, sink, expired=begin)
            reread = Reread()
            for messages in read(self._access, {at: begin}, {at: end}):
                for message in messages:
                    self._reread_letter(topic, message, offsets, reread, on_topic)
            offsets.skipped = end - begin - len(reread.offsets)
            offsets.waiting = standing.ends[at] - end
            check_ranges(self._connection, sink, at, begin, end, reread, self._cover, self._recount)
            if end > begin or offsets.waiting:
                found.append(offsets)
        for letter, by in standing.letters.items():
            check.compared += len(by)
            place = Place(*letter)
            if letter.topic in {t.dlq.name for t in self._pipeline.topics}:
                continue  # bytes on a dead letter topic that are no letter: kept, without a copy
            if not 0 <= letter.offset < standing.ends.get(place.at, 0):
                check.fails(f"a dead letter names {place}, which the topic has never had", letter)
            elif complete and (
                unknown := by - on_topic.get(letter, set()) - waiting.letters.get(letter, set())
            ):
                check.fails(
                    f"the dead letter of {place} by {min(unknown)} is in the table, but not on"
                    f" {letter.topic}-dlq",
                    letter,
                )
        return found

    def _reread_letter(
        self,
        topic: Topic,
        message: Message,
        offsets: Offsets,
        reread: Reread,
        on_topic: dict[Letter, set[str]],
    ) -> None:
        offset = int(message.offset() or 0)
        reread.add(offset, 0, False)
        try:
            event = self._codec.decode(topic, message.value()).event
            letter, by = Letter(event["topic"], event["partition"], event["offset"]), event["consumer"]
        except Undecodable:
            letter, by = Letter(topic.name, 0, offset), self._pipeline.sink_name
        is_repeat = by in on_topic.get(letter, set())
        on_topic.setdefault(letter, set()).add(by)
        if by in self._standing.letters.get(letter, frozenset()):
            offsets.duplicates += is_repeat
            offsets.in_sink += not is_repeat
            return
        offsets.wrong += 1
        self._letters.fails(
            f"{Place(topic.name, 0, offset)} tells that {by} refused {Place(*letter)}, but table dead_letters"
            " has no such row",
            letter,
        )

    # Sums

    def _invariant(self, invariant: Invariant, is_settled: bool) -> Check:
        check = Check(f"{invariant.view}: {invariant.about}", unit="views")
        if invariant.settled and not is_settled:
            check.note = "not looked at: it holds once nothing is under way"
            return check
        view = sql.Identifier(invariant.view)
        check.compared = 1
        row = self._connection.execute(sql.SQL("SELECT count(*) FROM {}").format(view)).fetchone()
        assert row is not None
        if wrong := int(str(row[0])):
            first = self._connection.execute(
                sql.SQL("SELECT row_to_json(v)::text FROM {} v ORDER BY 1 LIMIT 1").format(view)
            ).fetchone()
            assert first is not None
            check.fails(str(first[0]), times=wrong)
        return check


def _compare(tables: Sequence[TableCheck], lots: Sequence[Lot]) -> Counter[str]:
    """Compare a lot of each table; counts each record once, by what became of all its rows."""
    of_record: dict[tuple[int, int], list[Kind]] = {}
    records = 0
    for table, lot in zip(tables, lots, strict=True):
        records, others = table.compare_blocks(lot)  # as many of each table
        for partition, offset, kind in others:
            of_record.setdefault((partition, offset), []).append(kind)
    found = Counter(in_sink=records - len(of_record))
    for kinds in of_record.values():
        if len(kinds) < len(tables):
            kinds.append(Kind.OWN)
    for table, lot in zip(tables, lots, strict=True):
        for partition, offset, kind in table.compare(lot):
            of_record.setdefault((partition, offset), []).append(kind)
    for kinds in of_record.values():
        if not RIGHT.issuperset(kinds):
            found["wrong"] += 1
        elif Kind.OWN not in kinds and Kind.EARLIER in kinds:
            found["duplicates"] += 1
        else:
            found["in_sink"] += 1
    return found


def _add(found: Offsets, more: Counter[str]) -> None:
    found.in_sink += more["in_sink"]
    found.duplicates += more["duplicates"]
    found.wrong += more["wrong"]
