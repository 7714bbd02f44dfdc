"""Whether a letter could be sent, and what its processors would say: told for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from infra.codec import Codec
from infra.dlq.letters import Letter
from infra.dlq.redrive import plan
from infra.postgres import Connection
from schemas.declare import Pipeline, Pipelines, Topic


class Tried(Protocol):
    """A processor's verdict (`streams.trial.Trial`)."""

    @property
    def processor(self) -> str: ...
    @property
    def field(self) -> str | None: ...
    @property
    def refused(self) -> str | None: ...
    @property
    def answers(self) -> Mapping[str, int]: ...


Try = Callable[[Connection, Codec, Pipeline, Topic, bytes, int], Sequence[Tried]]


@dataclass(frozen=True)
class Verdict:
    """`problem`: why it would be held back; otherwise `topic`, and what each of its processors says."""

    problem: str | None
    topic: str | None
    trials: Sequence[Tried]

    def to_json(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "topic": self.topic,
            "trials": [
                {
                    "processor": t.processor,
                    "field": t.field,
                    "refused": t.refused,
                    "answers": dict(t.answers),
                }
                for t in self.trials
            ],
        }

    def lines(self) -> Iterator[str]:
        if self.problem is not None:
            yield f"held back: {self.problem}"
            return
        yield f"it can be sent to {self.topic}"
        for trial in self.trials:
            if trial.refused is not None:
                field = f"{trial.field}: " if trial.field else ""
                yield f"{trial.processor} would refuse it: {field}{trial.refused}"
            else:
                answers = ", ".join(f"{n} to {name}" for name, n in trial.answers.items()) or "nothing"
                yield f"{trial.processor} would accept it and answer {answers} (tried on an empty state)"
        if not self.trials:
            yield "no processor reads it: whether its table takes the row, only a redrive tells"


def verdict(
    connection: Connection,
    codec: Codec,
    pipelines: Pipelines,
    letter: Letter,
    value: bytes | None,
    try_: Try,
) -> Verdict:
    """Try a letter as it stands, or with other bytes for its record. Raises `RegistryUnavailable`."""
    now = datetime.now(UTC)
    if value is not None:
        letter = replace(letter, to_value=value, edited=True)
    planned = plan(codec, pipelines, letter, now)
    if planned.topic is None:
        return Verdict(planned.problem, None, ())
    pipeline = next(p for p in pipelines if planned.topic in p.topics)
    assert letter.to_value is not None
    append_ms = int(now.timestamp() * 1000)
    trials = try_(connection, codec, pipeline, planned.topic, letter.to_value, append_ms)
    return Verdict(None, planned.topic.name, trials)
