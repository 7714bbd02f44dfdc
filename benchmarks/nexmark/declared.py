"""The topics of the auction and the pipelines of its queries.

Three input topics, one for each kind of event: each has one schema, and a query reads only what it asks
about. Bids have the auction as key, auctions their seller, persons themselves: so the bids of an auction
lie in one partition, and q8 finds both its sides by the same key. What is global (the most bids of all
auctions, the highest of all bids) is decided per partition first and then, by window, behind a topic that
has the window as key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.settings import Settings
from schemas.declare import Evidence, Pipeline, Processor, Table, Topic

SCHEMAS = Path(__file__).parents[1] / "schemas" / "nexmark"
PARTITIONS = 12


def topic(schema: str, key: str, about: str, tag: str = "") -> Topic:
    """A topic of one of our schemas; with a tag, of one slice alone."""
    return Topic(
        domain=str(SCHEMAS),
        name=f"{schema}-{tag}" if tag else schema,
        schema_name=schema,
        key=key,
        owner="benchmarks",
        about=about,
        partitions=PARTITIONS,
    )


PERSONS = topic("persons", "person_id", "Who registered")
AUCTIONS = topic("auctions", "seller_id", "What was put up")
BIDS = topic("bids", "auction_id", "Who offered how much")

RESULTS: dict[str, tuple[str, str]] = {
    "q0": ("bids", "auction_id"),
    "q1": ("bids", "auction_id"),
    "q2": ("selected", "auction_id"),
    "q5": ("hot-items", "occurred_at"),
    "q7": ("highest-bids", "occurred_at"),
    "q8": ("new-sellers", "person_id"),
}
"""Query -> schema and key of its results."""
BETWEEN: dict[str, tuple[str, str]] = {
    "q5": ("hot-parts", "occurred_at"),
    "q7": ("highest-parts", "occurred_at"),
    "q8": ("arrivals", "person_id"),
}
"""Query -> schema and key of the topic between its two processors, where it has two."""


class Declared:
    """One query over the auction's topics; results, and what lies between, are topics of the tag."""

    def __init__(self, query: str, tag: str) -> None:
        self.query = query
        self.inputs = (PERSONS, AUCTIONS) if query == "q8" else (BIDS,)
        schema, key = RESULTS[query]
        self.results = topic(schema, key, f"Results of {query}", tag=tag)
        self.between: Topic | None = None
        if query in BETWEEN:
            schema, key = BETWEEN[query]
            self.between = topic(schema, key, f"Between the processors of {query}", tag=tag)
        self.processors = tuple(self._processors(tag))
        columns = tuple(self.results.fields)
        word = tag.replace("-", "_")
        table = Table(name=f"results_{word}", topic=self.results, key=("event_id",), columns=columns)
        self.pipeline = Pipeline(
            name=f"nexmark_{word}",
            about="An online auction",
            inputs=self.inputs,
            processors=self.processors,
            tables=(table,),
            evidence=tuple(Evidence(topic=t, table=table.name, column="event_id") for t in self.inputs),
        )

    def _processors(self, tag: str) -> Iterable[Processor]:
        if self.between is None:
            yield Processor(name=tag, sources=self.inputs, outputs=(self.results,), stateful=False)
            return
        # q8's first processor only gives its two inputs one key and one order.
        keeps_state = self.query != "q8"
        yield Processor(
            name=f"{tag}-parts", sources=self.inputs, outputs=(self.between,), stateful=keeps_state
        )
        yield Processor(name=tag, sources=(self.between,), outputs=(self.results,), stateful=True)

    @property
    def own_topics(self) -> list[Topic]:
        """The topics of this tag."""
        own = [self.results, *([self.between] if self.between else [])]
        return [t for topic in own for t in (topic, topic.dlq)]


def create(settings: Settings, codec: Codec, topics: Iterable[Topic]) -> None:
    """Make the topics that are missing, with their schemas."""
    wanted = list(topics)
    ensure_topics(settings.kafka, [TopicSpec.of(t) for t in wanted])
    for one in wanted:
        codec.register(one)
