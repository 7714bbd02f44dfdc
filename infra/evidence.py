"""Every event of a topic is found again in the sink, among the dead letters, or on its way: by its id."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from psycopg import sql

from infra.checkpoints import TopicPartition
from infra.codec import Codec, IsTick, Undecodable
from infra.columns import Columns
from infra.kafka_access import KafkaAccess
from infra.postgres import Connection
from infra.standing import Letter, Standing, readers
from infra.topic_log import partitions, read
from infra.verification import Check, Offsets, Place
from schemas.declare import Evidence, Pipeline, Topic

Ids = npt.NDArray[np.int64]
"""Ids as 64-bit hashes: that any two of 2 million share one has a chance of about 1 in 10 million."""


@dataclass(slots=True)
class OnTheWay:
    """What lies beyond the positions on the topics between the inputs and the sink."""

    ids: dict[bool, set[int]] = field(default_factory=lambda: {True: set(), False: set()})
    """Hashes of event and input ids, by whether the tenant is part of them."""
    letters: dict[Letter, set[str]] = field(default_factory=dict)


def identity(tenant: object, event_id: object, *, by_tenant: bool) -> int:
    """What an event is known by: its tenant and id, or its id alone where a table keeps no tenant."""
    return hash((tenant, event_id) if by_tenant else event_id)


def on_the_way(access: KafkaAccess, codec: Codec, pipeline: Pipeline, standing: Standing) -> OnTheWay:
    """Read what processors have produced and nobody has handled yet. Raises `LogUnreadable`."""
    found = OnTheWay()
    inputs = {t.name for t in pipeline.inputs}
    letter_topics = {t.dlq.name: t.dlq for t in pipeline.topics}
    topics = {t.name: t for t in pipeline.topics if t.name not in inputs} | letter_topics
    first = {
        at: standing.position(who, at)
        for topic in topics.values()
        if (who := readers(pipeline, topic))
        for at in partitions([topic])
    }
    for messages in read(access, first, {at: standing.ends[at] for at in first}):
        for message in messages:
            topic = topics[str(message.topic())]
            try:
                event = codec.decode(topic, message.value()).event
            except Undecodable:
                continue
            if topic.name in letter_topics:
                letter = Letter(event["topic"], event["partition"], event["offset"])
                found.letters.setdefault(letter, set()).add(event["consumer"])
            for event_id in {event[topic.event_id], event.get("input_id")} - {None}:
                for by_tenant, ids in found.ids.items():
                    ids.add(identity(event["tenant"], event_id, by_tenant=by_tenant))
    return found


@dataclass(slots=True)
class _Log:
    """A topic's records: hash of the id, place, whether a dead letter names that place, values to sum."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    partitions: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    refused: array[int] = field(default_factory=lambda: array("b"))
    refused_soon: array[int] = field(default_factory=lambda: array("b"))
    values: list[array[int]] = field(default_factory=list)


@dataclass(slots=True)
class _Stored:
    """Ids that a table keeps, ascending, each with the values that it carries on (of its first row)."""

    ids: Ids
    values: list[npt.NDArray[np.int64]]


def check_evidence(
    connection: Connection,
    access: KafkaAccess,
    codec: Codec,
    pipeline: Pipeline,
    topic: Topic,
    standing: Standing,
    waiting: OnTheWay,
) -> tuple[Offsets, list[Check]]:
    """Account for every record of a topic that has evidence. Raises `LogUnreadable`, `psycopg.Error`."""
    evidence = [e for e in pipeline.evidence if e.topic.name == topic.name]
    tables = {t.name: t for t in pipeline.tables}
    by_tenant = all("tenant" in tables[e.table].columns for e in evidence)
    who = readers(pipeline, topic)
    log = _read(access, codec, topic, standing, waiting, evidence, by_tenant=by_tenant)
    stored = [_stored(connection, e, by_tenant=by_tenant) for e in evidence]

    ids = np.array(log.ids, dtype=np.int64)
    parts, offsets = np.array(log.partitions, dtype=np.int32), np.array(log.offsets, dtype=np.int64)
    refused_here = np.array(log.refused, dtype=np.bool_)
    distinct, of_record = np.unique(ids, return_inverse=True)
    in_sink = np.isin(distinct, np.concatenate([s.ids for s in stored]))
    refused_on = _refused_answers(connection, codec, pipeline, topic, by_tenant=by_tenant)
    answer_refused = np.isin(distinct, refused_on)
    tail = np.fromiter(waiting.ids[by_tenant], dtype=np.int64, count=len(waiting.ids[by_tenant]))
    on_way = np.isin(distinct, tail)
    first = _first_of_each(of_record, parts, offsets, refused_here)

    positions = np.array([standing.position(who, at) for at in partitions([topic])], dtype=np.int64)
    beyond = offsets >= positions[parts] if len(offsets) else np.zeros(0, dtype=np.bool_)
    classes = np.select(
        [
            refused_here,
            beyond,
            in_sink[of_record] & first,
            in_sink[of_record],
            answer_refused[of_record],
            on_way[of_record] | np.array(log.refused_soon, dtype=np.bool_),
        ],
        [0, 1, 2, 3, 0, 1],
        4,
    )
    found = Offsets(topic.name, ", ".join(who))
    spans = standing.spans(topic)
    found.skipped = sum(end - begin for begin, end in spans.values()) - len(ids)
    found.expired = sum(begin for begin, _ in spans.values()) if standing.is_whole else 0
    counts = np.bincount(classes, minlength=5)
    found.dead_letters, found.waiting, found.in_sink, found.duplicates, found.wrong = (int(n) for n in counts)

    where = " or ".join(f"{e.table}.{e.column}" for e in evidence)
    complete = Check(f"{topic.name}: each event is in {where}, or a dead letter", compared=len(ids))
    missing = classes == 4
    # One id sent again with other content is refused, though the first one is stored: that is a duplicate.
    # Only where no record is left that could have been stored does the event stand in both. Of a stretch
    # of the log that cannot be told: the record that was stored may lie before it.
    single = Check(f"{topic.name}: no event is in the sink and a dead letter as well", compared=len(distinct))
    all_refused = np.ones(len(distinct), dtype=np.bool_)
    np.logical_and.at(all_refused, of_record, refused_here)
    both = in_sink & (all_refused | answer_refused)
    if not standing.is_whole:
        both[:] = False
        single.note = "needs the whole log: leave --from and --to out"
    for check, wrong, sentence in (
        (complete, missing, f"is neither in {where} nor among the dead letters"),
        (single, both[of_record], f"is in {where} and among the dead letters as well"),
    ):
        if wrong.any():
            place, name = _name_first(access, codec, topic, parts, offsets, wrong)
            times = int(wrong.sum()) if check is complete else int(both.sum())
            check.fails(f"{place} ({name}) {sentence}", times=times)

    checks = [complete, single]
    for n, (e, table) in enumerate(zip(evidence, stored, strict=True)):
        if e.once:
            checks.append(_check_once(connection, e, by_tenant=by_tenant))
        for k, (field_name, column) in enumerate(e.sums):
            values = np.array(log.values[_place_of(evidence, n, k)], dtype=np.int64)
            check = Check(f"{topic.name}.{field_name} = {e.table}.{column}", unit="events")
            checks.append(check)
            settled = first & in_sink[of_record] & np.isin(ids, table.ids)
            if not settled.any():
                continue
            kept = table.values[k][np.searchsorted(table.ids, ids[settled])]
            check.compared = int(settled.sum())
            check.note = f"{int(values[settled].sum()):,} = {int(kept.sum()):,}"
            differs = np.zeros(len(ids), dtype=np.bool_)
            differs[settled] = kept != values[settled]
            if differs.any():
                place, name = _name_first(access, codec, topic, parts, offsets, differs)
                check.fails(
                    f"{place} ({name}) has another {field_name} than its row in {e.table}; {check.note}",
                    times=int(differs.sum()),
                )
    return found, checks


def _place_of(evidence: list[Evidence], n: int, k: int) -> int:
    return sum(len(e.sums) for e in evidence[:n]) + k


def _read(
    access: KafkaAccess,
    codec: Codec,
    topic: Topic,
    standing: Standing,
    waiting: OnTheWay,
    evidence: list[Evidence],
    *,
    by_tenant: bool,
) -> _Log:
    fields = [f for e in evidence for f, _ in e.sums]
    log = _Log(values=[array("q") for _ in fields])
    spans = standing.spans(topic)
    first, end = {p: s[0] for p, s in spans.items()}, {p: s[1] for p, s in spans.items()}
    columns = Columns(codec, topic)
    refused, refused_soon = (
        {(letter.partition, letter.offset) for letter in letters if letter.topic == topic.name}
        for letters in (standing.letters, waiting.letters)
    )
    for messages in read(access, first, end):
        decoded = columns.decode([message.value() for message in messages])
        events = decoded.batch
        places = [(int(m.partition() or 0), int(m.offset() or 0)) for m in messages]
        undecodable = [n for n, error in decoded.others if not isinstance(error, IsTick)]  # a declared skip
        # Good ones first, in which order does not matter: each has its place.
        names = zip(
            events.column("tenant").to_pylist(), events.column(topic.event_id).to_pylist(), strict=True
        )
        log.ids.extend(identity(tenant, event_id, by_tenant=by_tenant) for tenant, event_id in names)
        log.ids.extend(hash((topic.name, *places[n])) for n in undecodable)
        for name, values in zip(fields, log.values, strict=True):
            if name in events.schema.names:
                values.extend(events.column(name).fill_null(0).to_pylist())
            else:
                values.extend([0] * len(events))
            values.extend([0] * len(undecodable))
        ordered = [places[n] for n in (*decoded.rows.tolist(), *undecodable)]
        log.partitions.extend(partition for partition, _ in ordered)
        log.offsets.extend(offset for _, offset in ordered)
        log.refused.extend(place in refused for place in ordered)
        log.refused_soon.extend(place in refused_soon for place in ordered)
    return log


def _first_of_each(
    of_record: npt.NDArray[np.int64],
    parts: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    refused: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Which records are the first with their id, by partition and offset, of those that nobody refused."""
    first = np.zeros(len(offsets), dtype=np.bool_)
    order = np.lexsort((offsets, parts, refused))
    _, places = np.unique(of_record[order], return_index=True)
    first[order[places]] = True
    return first & ~refused


def _stored(connection: Connection, e: Evidence, *, by_tenant: bool) -> _Stored:
    columns = [column for _, column in e.sums]
    query = sql.SQL("COPY (SELECT {}, {}::text{} FROM {} WHERE {} IS NOT NULL{}) TO STDOUT").format(
        sql.SQL("tenant" if by_tenant else "NULL::text"),
        sql.Identifier(e.column),
        sql.SQL("").join(sql.SQL(", coalesce({}, 0)::bigint").format(sql.Identifier(c)) for c in columns),
        sql.Identifier(e.table),
        sql.Identifier(e.column),
        _only(e),
    )
    ids = array("q")
    values = [array("q") for _ in columns]
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.set_types(["text", "text", *("int8" for _ in columns)])
        for tenant, event_id, *carried in copy.rows():
            ids.append(identity(tenant, event_id, by_tenant=by_tenant))
            for value, column in zip(carried, values, strict=True):
                column.append(value)
    distinct, first = np.unique(np.array(ids, dtype=np.int64), return_index=True)
    return _Stored(distinct, [np.array(v, dtype=np.int64)[first] for v in values])


def _only(e: Evidence) -> sql.Composable:
    if e.only is None:
        return sql.SQL("")
    return sql.SQL(" AND {} = {}").format(sql.Identifier(e.only[0]), sql.Literal(e.only[1]))


def _check_once(connection: Connection, e: Evidence, *, by_tenant: bool) -> Check:
    """No id stands in two rows: not even under two event times, which a table's key may allow."""
    check = Check(f"{e.table}.{e.column}: no id twice", unit="ids")
    tenant = sql.SQL("tenant" if by_tenant else "''")
    ids = sql.SQL(
        "WITH ids AS (SELECT {} AS tenant, {} AS id, count(*) AS n FROM {} WHERE {} IS NOT NULL{}"
        " GROUP BY 1, 2)"
    ).format(tenant, sql.Identifier(e.column), sql.Identifier(e.table), sql.Identifier(e.column), _only(e))
    row = connection.execute(
        sql.SQL("{} SELECT count(*), count(*) FILTER (WHERE n > 1) FROM ids").format(ids)
    ).fetchone()
    assert row is not None
    check.compared, twice = int(str(row[0])), int(str(row[1]))
    if twice:
        worst = connection.execute(
            sql.SQL("{} SELECT id, n FROM ids WHERE n > 1 ORDER BY tenant, id LIMIT 1").format(ids)
        ).fetchone()
        assert worst is not None
        check.fails(f"id {worst[0]} stands in {worst[1]} rows of {e.table}", times=twice)
    return check


def _refused_answers(
    connection: Connection, codec: Codec, pipeline: Pipeline, topic: Topic, *, by_tenant: bool
) -> Ids:
    """Ids of the events whose answer was refused further down, on another topic."""
    inputs = [t.name for t in pipeline.inputs]
    others = {t.name: t for t in pipeline.topics if t.name not in (*inputs, topic.name)}
    found = []
    for name, value, tenant, input_id in connection.execute(
        "SELECT topic, value, tenant, input_id FROM dead_letters AS letter"
        " WHERE pipeline = %s AND topic = ANY(%s)"
        # A redriven answer is on its topic again: stored by now, or refused anew as another letter.
        " AND coalesce(to_jsonb(letter) ->> 'status', 'open') <> 'redriven'",
        (pipeline.name, list(others)),
    ):
        if topic.name in inputs:
            found.append((tenant, input_id))
            continue
        # Of a topic in between, the letter names the input; what the answer has of this topic is its id.
        try:
            event = codec.decode(others[str(name)], bytes(value) if value is not None else None).event  # type: ignore[call-overload]
        except Undecodable:
            continue
        found.append((event["tenant"], event[others[str(name)].event_id]))
    return np.array([identity(t, i, by_tenant=by_tenant) for t, i in found if i is not None], dtype=np.int64)


def _name_first(
    access: KafkaAccess,
    codec: Codec,
    topic: Topic,
    parts: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    wrong: npt.NDArray[np.bool_],
) -> tuple[Place, str]:
    """The first record at fault, by partition and offset, and what it is."""
    places = np.flatnonzero(wrong)
    n = places[np.lexsort((offsets[places], parts[places]))[0]]
    place = Place(topic.name, int(parts[n]), int(offsets[n]))
    return place, describe(access, codec, topic, place)


def describe(access: KafkaAccess, codec: Codec, topic: Topic, place: Place) -> str:
    """A record in a few words: its tenant and id, or why it is no event."""
    at = TopicPartition(place.topic, place.partition)
    for messages in read(access, {at: place.offset}, {at: place.offset + 1}):
        for message in messages:
            try:
                event = codec.decode(topic, message.value()).event
            except Undecodable as error:
                return f"undecodable: {error.reason}"
            return f"tenant {event['tenant']}, id {event[topic.event_id]}"
    return "no record any more"
