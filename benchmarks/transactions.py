"""The benchmarks' data: card transactions that anyone can make again, the pipeline over them, and their fold.

The fold is independent of every subject: windows by binary search over all transactions at once, in NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Producer

from benchmarks.harness import Check
from infra.broker import TopicSpec, admin, ensure_topics, producer
from infra.codec import Codec
from infra.settings import Settings
from infra.topic_log import LogUnreadable, ends, partitions, read
from schemas.declare import DAY_MS, Evidence, Pipeline, Processor, Table, Topic

Event = dict[str, Any]
Ints = npt.NDArray[np.int64]

CARDS = 10_000
MERCHANTS = 1_000
STEP_MS = 1_440
"""Between two transactions of the whole: six a card and day on average."""
START_MS = 1_704_067_200_000
ID_AT = slice(9, 21)
"""Where the number of a transaction stands in its record: 5 bytes of header, the text's length, `tx-`."""
SCHEMAS = str(Path(__file__).parent / "schemas")
PARTITIONS = 12


def topic(schema: str, name: str) -> Topic:
    """A topic of transactions or scores under a name of its own."""
    return Topic(
        domain=SCHEMAS,
        name=name,
        schema_name=schema,
        key="card_id",
        owner="benchmarks",
        about=schema,
        partitions=PARTITIONS,
    )


class Declared:
    """`transactions` → processor → `scores` → table, everything but the given names anew for each slice."""

    def __init__(
        self,
        tag: str,
        source: str | None = None,
        scores: str | None = None,
        table: str | None = None,
        key: Sequence[str] = ("event_id",),
        time: str | None = None,
    ) -> None:
        self.transactions = topic("transactions", source or f"transactions-{tag}")
        self.scores = topic("scores", scores or f"scores-{tag}")
        self.processor = Processor(
            name=f"scoring-{tag}", sources=(self.transactions,), outputs=(self.scores,), stateful=True
        )
        word = tag.replace("-", "_")
        self.table = Table(
            name=table or f"scores_{word}",
            topic=self.scores,
            key=tuple(key),
            columns=tuple(self.scores.fields),
            time=time,
        )
        self.pipeline = Pipeline(
            name=f"bench_{word}",
            about="Cards",
            inputs=(self.transactions,),
            processors=(self.processor,),
            tables=(self.table,),
            evidence=(Evidence(topic=self.transactions, table=self.table.name, column="event_id"),),
        )

    def create(self, settings: Settings, codec: Codec) -> None:
        """Make the topics that are missing, with their schemas."""
        topics = [x for t in (self.transactions, self.scores) for x in (t, t.dlq)]
        ensure_topics(settings.kafka, [TopicSpec.of(t) for t in topics])
        for one in topics:
            codec.register(one)


class Transactions:
    """So many transactions, always the same ones, in the order of their time: six a card and day.

    With `all_cards_first` each card has one transaction before any has its second.
    """

    def __init__(self, records: int, cards: int = CARDS, *, all_cards_first: bool = False) -> None:
        self.records, self.cards = records, cards
        random = np.random.default_rng(7)
        self.card: Ints = random.integers(0, cards, records)
        if all_cards_first:
            self.card[:cards] = random.permutation(cards)[:records]
        step_ms = STEP_MS * CARDS // cards
        self.at_ms: Ints = START_MS + np.arange(records) * step_ms + random.integers(0, step_ms, records)
        self.amount: Ints = 100 + random.integers(0, 50_000, records)
        self.merchant: Ints = random.integers(0, MERCHANTS, records)

    def first(self, records: int) -> Transactions:
        """The first of them, by themselves. (Made with another number they would be others.)"""
        part = Transactions(0, self.cards)
        part.records = records
        part.card, part.at_ms, part.amount, part.merchant = (
            values[:records] for values in (self.card, self.at_ms, self.amount, self.merchant)
        )
        return part

    def events(self) -> Iterator[Event]:
        """The transactions."""
        columns = (self.at_ms, self.card, self.amount, self.merchant)
        for n, (at_ms, card, amount, merchant) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            yield {
                "event_id": f"tx-{n:012}",
                "tenant": "default",
                "occurred_at": at_ms,
                "card_id": f"card-{card:06}",
                "amount_minor": amount,
                "currency": "EUR",
                "merchant_id": f"merchant-{merchant:04}",
                "country": ("NL", "BE", "DE")[merchant % 3],
                "channel": ("PRESENT", "ONLINE")[n % 2],
            }

    def columns(self, start: int, end: int) -> dict[str, pa.Array]:
        """The fields of `events` from number `start` up to, not including, `end`, by column."""
        numbers, merchant = np.arange(start, end), self.merchant[start:end]
        here = slice(start, end)
        same = {"tenant": "default", "currency": "EUR"}
        return {
            "event_id": numbered("tx-", numbers, 12),
            "occurred_at": pa.array(self.at_ms[here]),
            "card_id": numbered("card-", self.card[here], 6),
            "amount_minor": pa.array(self.amount[here]),
            "merchant_id": numbered("merchant-", merchant, 4),
            "country": one_of(("NL", "BE", "DE"), merchant),
            "channel": one_of(("PRESENT", "ONLINE"), numbers),
            **{name: pa.repeat(value, end - start) for name, value in same.items()},
        }

    def scored(self) -> Iterator[Event]:
        """What a processor should make of them."""
        results = zip(*(column.tolist() for column in (*self.windows, self.scores)), strict=True)
        for event, (count_24h, sum_24h, value) in zip(self.events(), results, strict=True):
            yield {**event, "count_24h": count_24h, "sum_24h_minor": sum_24h, "score": value}

    @cached_property
    def windows(self) -> tuple[Ints, Ints]:
        """Count and sum of the card's transactions in (t - 24 h, t], of each transaction."""
        return self.window(DAY_MS)

    def window(self, width_ms: int) -> tuple[Ints, Ints]:
        """The same in (t - width, t]."""
        return folded(self.card, self.at_ms, self.amount, width_ms)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """The score of each transaction."""
        count, total = self.windows
        ratio = (self.amount * count) / (total + 10_000.0)
        return ratio / (1.0 + ratio)

    def scored_columns(self, start: int, end: int) -> dict[str, pa.Array]:
        """As `columns`, of `scored`."""
        results = zip(("count_24h", "sum_24h_minor", "score"), (*self.windows, self.scores), strict=True)
        return self.columns(start, end) | {name: pa.array(values[start:end]) for name, values in results}

    @cached_property
    def rank(self) -> Ints:
        """The how manieth of its card each transaction is, from 0."""
        order = np.argsort(self.card, kind="stable")
        first = np.searchsorted(self.card[order], self.card[order], side="left")
        rank = np.empty(self.records, np.int64)
        rank[order] = np.arange(self.records) - first
        return rank

    def fill(self, settings: Settings, codec: Codec, target: Topic) -> None:
        """Append the transactions to a topic; all are acknowledged on return."""
        send(settings, target, ((e["card_id"], codec.encode(target, e)) for e in self.events()))

    def hashes(self, records: Iterable[bytes]) -> npt.NDArray[np.uint64]:
        """A hash of each transaction's record; Avro has one form for a value of these types."""
        return np.fromiter(map(hash_of, records), np.uint64, self.records)

    def check(self, records: Iterable[bytes], expected: npt.NDArray[np.uint64]) -> Check:
        """Compare records with the expected ones.

        Passes if each has the value that the fold gives it, none comes twice, and of no card any is left out
        before the last one that is there.
        """
        found = np.zeros(self.records, np.uint64)
        times = np.zeros(self.records, np.int64)
        unknown = 0
        for record in records:
            try:
                n = int(record[ID_AT])
                found[n] = hash_of(record)
                times[n] += 1
            except (ValueError, IndexError):
                unknown += 1
        there = times > 0
        last = np.full(self.cards, -1)
        np.maximum.at(last, self.card[there], self.rank[there])
        counts = {
            "records": int(times.sum()) + unknown,
            "distinct": int(there.sum()),
            "duplicates": int((times - there).sum()),
            "wrong": int((found[there] != expected[there]).sum()) + unknown,
            "left_out": int((last + 1).sum() - there.sum()),
        }
        passed = counts["distinct"] > 0 and not (
            counts["wrong"] or counts["duplicates"] or counts["left_out"]
        )
        # Sums, modulo 2^64: the order in which partitions are read must not matter.
        return Check(passed, counts, f"{found[there].sum():016x}", f"{expected[there].sum():016x}")


def folded(card: Ints, at_ms: Ints, amount: Ints, width_ms: int) -> tuple[Ints, Ints]:
    """Count and sum of the card's transactions in (t - width, t]; of those at t, the ones up to this one."""
    order = np.lexsort((at_ms, card))
    # Cards lie further apart than any time: one search over all of them finds each window's start.
    begin = int(at_ms.min())
    reach = int(at_ms.max()) - begin + 2 * width_ms
    place = card[order] * reach + (at_ms[order] - begin)
    first = np.searchsorted(place, place - width_ms, side="right")
    sums = np.concatenate(([0], np.cumsum(amount[order])))
    here = np.arange(len(card))
    count, total = np.empty(len(card), np.int64), np.empty(len(card), np.int64)
    count[order] = here - first + 1
    total[order] = sums[here + 1] - sums[first]
    return count, total


def numbered(prefix: str, numbers: Ints, digits: int) -> pa.Array:
    """Names that end in a number of so many digits."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, padded, "")


def one_of(names: Sequence[str], numbers: Ints) -> pa.Array:
    """The names in turn, by number."""
    return pa.array(names).take(pa.array(numbers % len(names)))


def records_of(settings: Settings, found_in: Topic) -> Iterator[bytes]:
    """The values of all records that a topic has now."""
    places = partitions([found_in])
    end = ends(admin(settings.kafka), places)
    for messages in read(settings.kafka, dict.fromkeys(places, 0), end):
        yield from (message.value() or b"" for message in messages)


class Appended:
    """Counts the records of a topic, as far as the broker tells."""

    def __init__(self, settings: Settings, target: Topic) -> None:
        self._admin, self._places = admin(settings.kafka), partitions([target])
        self._count = 0

    def __call__(self) -> int:
        # Just after its creation a partition's leader is in dispute for a moment.
        with suppress(LogUnreadable):
            self._count = sum(ends(self._admin, self._places).values())
        return self._count


def hash_of(value: bytes) -> int:
    """64 bits of a record's bytes, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")


def send(settings: Settings, target: Topic, records: Iterable[tuple[str, bytes]], **overrides: Any) -> None:
    """Append records, with these settings of the producer; all are acknowledged on return."""
    sender: Producer = producer(settings.kafka, **{"linger.ms": 50} | overrides)
    for key, value in records:
        while True:
            try:
                sender.produce(target.name, value, key)
                break
            except BufferError:
                sender.poll(0.1)
    if left := sender.flush(120):
        raise RuntimeError(f"{left} records of {target.name} were not acknowledged")
