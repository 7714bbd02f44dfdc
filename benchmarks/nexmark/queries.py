"""The queries as declared processors have them: pure decisions over one partition's records.

| query | answer |
|---|---|
| q0 | every bid as it is |
| q1 | every bid in another currency |
| q2 | id and price of bids on some auctions |
| q5 | every two seconds the auctions with the most bids of the last ten |
| q7 | every ten seconds the bids with the highest price |
| q8 | who registered and put something up within the same ten seconds |

q5 and q7 decide per partition (`PartitionBest`), then over all partitions (`BestOfAll`); q8 brings both its
inputs into one topic (`Arrivals`) and joins there (`NewSellers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.nexmark.declared import Declared
from benchmarks.nexmark.windows import Cells, Hopping, Ints, highest, summed
from schemas.declare import Topic
from streams.decide import ColumnRecords, LogicFactory, NoState, Outcomes, Record, Stretch, Versions
from streams.event_time import BoundedLateness, EventTimeState

PER_MILLE_EUR = 908
"""q1: what a thousand cents of a dollar are in cents of a euro; fractions are dropped."""
EVERY_AUCTION = 123
"""q2: bids on auctions whose number is a multiple of this."""
HOT_MS, HOT_EVERY_MS = 10_000, 2_000
WINDOW_MS = 10_000
"""Windows of q7 and q8."""
JOIN_LATENESS = BoundedLateness(600_000)
"""q8: how far its two inputs may be apart for one person, in event time."""


class Unversioned:
    """What logic without rules, fences or models has in common."""

    version_kinds: Sequence[str] = ()

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        raise LookupError(kind)


class ByRow(Unversioned):
    """q0, q1, q2 and the first half of q8: batches to batches without state; `change` says how."""

    def __init__(self, results: Topic, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
        self._results = results
        self._change = change

    def new_state(self) -> NoState:
        return NoState()

    def decide_columns(
        self,
        stretches: Sequence[Stretch[NoState]],
        records: ColumnRecords,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        emit(out, self._results, self._change(records.batch))


def emit(out: Outcomes, topic: Topic, batch: pa.RecordBatch) -> None:
    """Answer with all rows of a batch."""
    keys = pc.cast(pc.cast(batch.column(topic.key), pa.string()), pa.binary()).to_pylist()
    out.emit_encoded(topic, keys, out.encode(topic, batch))


def unchanged(bids: pa.RecordBatch) -> pa.RecordBatch:
    """q0."""
    return bids


def in_euro(bids: pa.RecordBatch) -> pa.RecordBatch:
    """q1."""
    price = pc.divide(pc.multiply(bids.column("price_minor"), PER_MILLE_EUR), 1000)
    changed = {"price_minor": price, "currency": pa.array(["EUR"] * len(bids), pa.string())}
    return pa.RecordBatch.from_pydict({n: changed.get(n, bids.column(n)) for n in bids.schema.names})


def selected(bids: pa.RecordBatch) -> pa.RecordBatch:
    """q2."""
    chosen = bids.column("auction_id").to_numpy() % EVERY_AUCTION == 0
    fields = ["event_id", "tenant", "occurred_at", "auction_id", "price_minor"]
    return bids.select(fields).filter(pa.array(chosen))


@dataclass(frozen=True, slots=True)
class Best:
    """What makes the best of a window: columns of a bid and a value, folded in panes and in windows."""

    of: tuple[tuple[str, str], ...]
    """Field of the answer, column of the bid."""
    measure: str
    """The answer's field of the value."""
    value: str | None
    """The column with a bid's value; None: it is one."""
    in_pane: Callable[[Ints], Ints]
    in_window: Callable[[Ints], Ints]

    def cells(self, ends: Ints, bids: pa.RecordBatch) -> Ints:
        """A cell for each bid."""
        value = np.ones(len(bids), np.int64) if self.value is None else bids.column(self.value).to_numpy()
        return np.column_stack((ends, *(bids.column(name).to_numpy() for _, name in self.of), value))


MOST_BIDS = Best((("auction_id", "auction_id"),), "bids", None, summed, summed)
HIGHEST_PRICE = Best(
    (("auction_id", "auction_id"), ("bidder_id", "bidder_id"), ("bid_at", "occurred_at")),
    "price_minor",
    "price_minor",
    highest,
    lambda cells: cells,
)


class PartitionBest(Unversioned):
    """The best of each window in one partition, once the partition's event time has passed it."""

    def __init__(self, parts: Topic, best: Best, windows: Hopping) -> None:
        self._parts = parts
        self._best = best
        self._windows = windows

    def new_state(self) -> Cells:
        return Cells(self._windows, len(self._best.of) + 2)

    def decide_columns(
        self, stretches: Sequence[Stretch[Cells]], records: ColumnRecords, versions: Versions, out: Outcomes
    ) -> None:
        at_ms = records.batch.column("occurred_at").to_numpy()
        cells = self._best.cells(self._windows.pane_ends(at_ms), records.batch)
        for stretch in stretches:
            rows, state = stretch.rows, stretch.state
            state.add(cells[rows][state.in_time(at_ms[rows])], self._best.in_pane)
            self._answer(state, int(records.partitions[stretch.start]), out)

    def tick(self, state: Cells, now_ms: int, record: Record, versions: Versions, out: Outcomes) -> None:
        state.reach(now_ms)
        self._answer(state, record.partition, out)

    def _answer(self, state: Cells, partition: int, out: Outcomes) -> None:
        for end, cells in state.over():
            of_window = self._best.in_window(cells[:, 1:])
            best = int(of_window[:, -1].max(initial=0))
            winners = of_window[of_window[:, -1] == best, :-1].tolist()
            names = [name for name, _ in self._best.of]
            event = {
                "event_id": f"{end}/{partition}",
                "tenant": "default",
                "occurred_at": end,
                "part": partition,
                "best": best,
                "winners": [dict(zip(names, winner, strict=True)) for winner in winners],
            }
            out.emit(self._parts, event)


class Merging:
    """State of `BestOfAll`: the last window of which each part has told, and the best of those open."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}
        self.best: dict[int, tuple[int, list[dict[str, int]]]] = {}
        self.changed = False

    def delta(self) -> bytes | None:
        changed, self.changed = self.changed, False
        return next(self.snapshot()) if changed else None

    def snapshot(self) -> Iterator[bytes]:
        yield msgspec.msgpack.encode((self.told, self.best))

    def load(self, chunk: bytes) -> None:
        self.told, self.best = msgspec.msgpack.decode(
            chunk, type=tuple[dict[int, int], dict[int, tuple[int, list[dict[str, int]]]]]
        )


class BestOfAll(Unversioned):
    """The best of each window over all partitions, once each of them has told of it.

    A partition tells of every window, in their order: what is behind its last one was told before.
    """

    def __init__(self, results: Topic, best: Best, parts: int) -> None:
        self._results = results
        self._best = best
        self._parts = range(parts)

    def new_state(self) -> Merging:
        return Merging()

    def decide(self, state: Merging, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        for record in records:
            event = record.event
            end, part = event["occurred_at"], event["part"]
            if end <= state.told.get(part, 0):
                out.duplicate()
                continue
            state.told[part] = end
            state.changed = True
            best, winners = state.best.get(end, (0, []))
            if event["best"] > best:
                best, winners = event["best"], []
            state.best[end] = (best, winners + event["winners"] if event["best"] == best else winners)
            if all(state.told.get(one, 0) >= end for one in self._parts):
                self._answer(end, *state.best.pop(end), out)

    def _answer(self, end: int, best: int, winners: list[dict[str, int]], out: Outcomes) -> None:
        for winner in sorted(winners, key=lambda winner: tuple(winner.values())):
            event = {
                "event_id": "/".join(map(str, (end, *winner.values()))),
                "tenant": "default",
                "occurred_at": end,
                **winner,
                self._best.measure: best,
            }
            out.emit(self._results, event)


class Arrivals(ByRow):
    """Persons and auctions as one topic, by person: its order is then the truth."""

    def __init__(self, arrivals: Topic) -> None:
        super().__init__(arrivals, _arrived)


def _arrived(batch: pa.RecordBatch) -> pa.RecordBatch:
    is_person = "person_id" in batch.schema.names
    columns = {name: batch.column(name) for name in ("event_id", "tenant", "occurred_at")}
    columns["person_id"] = batch.column("person_id" if is_person else "seller_id")
    columns["name"] = batch.column("name") if is_person else pa.nulls(len(batch), pa.string())
    return pa.RecordBatch.from_pydict(columns)


class Seller(msgspec.Struct, array_like=True):
    """A person: name and window once registered, whether answered; until then the windows sold in."""

    name: str | None = None
    registered: int = 0
    answered: bool = False
    sold: list[int] = []


class NewSellers(Unversioned):
    """Joins within the window: one answer a person, as soon as both are there, whichever comes first.

    A tick that has passed all that may still belong to a person forgets them.
    """

    def __init__(self, results: Topic) -> None:
        self._results = results

    def new_state(self) -> EventTimeState[Seller]:
        return EventTimeState(Seller, JOIN_LATENESS)

    def decide_columns(
        self,
        stretches: Sequence[Stretch[EventTimeState[Seller]]],
        records: ColumnRecords,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        columns = (records.batch.column(n).to_pylist() for n in ("person_id", "occurred_at", "name"))
        arrivals = list(zip(*columns, strict=True))
        for stretch in stretches:
            self._join(stretch.state, arrivals[stretch.rows], out)

    def _join(
        self, state: EventTimeState[Seller], arrivals: list[tuple[int, int, str | None]], out: Outcomes
    ) -> None:
        for person, at_ms, name in arrivals:
            key = str(person)
            if not state.advance(key, at_ms):
                continue
            seller = state.get(key) or Seller()
            end = at_ms - at_ms % WINDOW_MS + WINDOW_MS
            if name is not None:
                both = end in seller.sold
                seller.name, seller.registered, seller.sold = name, end, []
            elif seller.name is not None:
                both = end == seller.registered
            else:
                both = False
                if end in seller.sold:
                    continue
                seller.sold.append(end)
            if both and not seller.answered:
                seller.answered = True
                out.emit(self._results, _new_seller(person, end, seller.name))
            elif seller.name is not None and name is None:
                continue  # nothing new of somebody known
            state.put(key, seller, timer_ms=end + JOIN_LATENESS.allowed_ms)

    def tick(
        self,
        state: EventTimeState[Seller],
        now_ms: int,
        record: Record,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        for key, _ in state.due(now_ms):
            state.delete(key)


def _new_seller(person: int, end: int, name: str | None) -> dict[str, Any]:
    return {
        "event_id": f"{end}/{person}",
        "tenant": "default",
        "occurred_at": end,
        "person_id": person,
        "name": name,
    }


def logics(declared: Declared, begins_ms: int) -> dict[str, LogicFactory]:
    """The logic of each processor of a query, over a stream that begins at `begins_ms`."""
    names = [p.name for p in declared.processors]
    results, between = declared.results, declared.between
    if between is None:
        change = {"q0": unchanged, "q1": in_euro, "q2": selected}[declared.query]
        return {names[0]: lambda: ByRow(results, change)}
    if declared.query == "q8":
        return {names[0]: lambda: Arrivals(between), names[1]: lambda: NewSellers(results)}
    best, windows = {
        "q5": (MOST_BIDS, Hopping(HOT_MS, HOT_EVERY_MS, begins_ms)),
        "q7": (HIGHEST_PRICE, Hopping(WINDOW_MS, WINDOW_MS, begins_ms)),
    }[declared.query]
    parts = declared.inputs[0].partitions
    return {
        names[0]: lambda: PartitionBest(between, best, windows),
        names[1]: lambda: BestOfAll(results, best, parts),
    }
