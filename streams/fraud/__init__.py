"""The fraud processor."""

from __future__ import annotations

from infra.settings import Settings
from schemas.fraud import FRAUD_SCORING
from streams.decide import LogicFactory
from streams.fraud.scoring import FraudScoring

PROCESSORS: dict[str, LogicFactory] = {
    FRAUD_SCORING.name: lambda: FraudScoring(lambda: Settings.load().object_store)
}
