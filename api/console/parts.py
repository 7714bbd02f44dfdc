"""What the console depends on, and what an error says of it: a part that is away, or a request to correct."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import psycopg
from confluent_kafka import KafkaException

from infra.checkpoints import Fenced, PositionRefused
from infra.codec import RegistryUnavailable
from infra.deliveries import EndpointError
from infra.dlq.letters import DlqError
from infra.dlq.redrive import RedriveInterrupted
from infra.jobs import JobRuns
from infra.moments import MomentError
from infra.replay.places import RangeRefused
from infra.replay.runs import RunRefused
from infra.topic_log import LogUnreadable
from infra.trace import TraceError
from models.rules.problem import RuleError
from schemas.avro import SchemaError
from schemas.declare import DeclarationError
from schemas.roles import Refusal


class Part(StrEnum):
    """What may be away while the console stays."""

    BROKER = "Kafka"
    DATABASE = "Postgres"
    REGISTRY = "Schema registry"
    PROCESSES = "Processes"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something is not there: the part that is away, or None where the request is to be corrected."""

    sentence: str
    part: Part | None = None
    status: int = 503


class Away(Exception):
    """A part is known to be away: nobody shall wait for it to say so again."""

    def __init__(self, part: Part, sentence: str) -> None:
        super().__init__(sentence)
        self.part = part


_REFUSALS = (
    DlqError,
    RunRefused,
    RangeRefused,
    MomentError,
    SchemaError,
    JobRuns,
    PositionRefused,
    Fenced,
    Refusal,
    RuleError,
    EndpointError,
)


def trouble_of(error: Exception) -> Trouble | None:
    """What people are told of `error`; None for a defect, which belongs into the log."""
    if isinstance(error, Away):
        return Trouble(str(error), error.part)
    if isinstance(error, psycopg.errors.UndefinedTable):
        return Trouble("The database lacks a table; `millrace up` creates it.", Part.DATABASE)
    if isinstance(error, psycopg.errors.SerializationFailure):
        return Trouble("The tables were exchanged meanwhile; ask again.", Part.DATABASE)
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Trouble("The database took too long; ask for less.", Part.DATABASE)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Trouble("Postgres does not answer; see `millrace status`.", Part.DATABASE)
    if isinstance(error, RegistryUnavailable):
        return Trouble("The schema registry does not answer; see `millrace status`.", Part.REGISTRY)
    if isinstance(error, LogUnreadable | RedriveInterrupted):
        return Trouble(_sentence(error), Part.BROKER)
    if isinstance(error, KafkaException):
        return Trouble("Kafka does not answer; see `millrace status`.", Part.BROKER)
    if isinstance(error, TraceError | DeclarationError):
        return Trouble(_sentence(error), status=404)
    if isinstance(error, _REFUSALS):
        return Trouble(_sentence(error), status=409)
    return None


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    # A sentence that begins with a rule's name keeps it as it is.
    begins = text[:1] if "@" in text.partition(" ")[0] else text[:1].upper()
    return f"{begins}{text[1:]}{'' if text.endswith('.') else '.'}"
