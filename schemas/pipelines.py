"""The pipelines of this installation. A new one is a folder beside this file and a name here."""

from __future__ import annotations

from schemas import fleet, fraud, imaging, orders
from schemas.declare import Pipelines

PIPELINES = Pipelines.of(fraud.PIPELINE, fleet.PIPELINE, orders.PIPELINE, imaging.PIPELINE)
