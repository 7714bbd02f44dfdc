"""The processors of the fleet pipeline."""

from __future__ import annotations

from schemas.fleet import GEOFENCING
from streams.decide import LogicFactory
from streams.fleet.geofencing import Geofencing

PROCESSORS: dict[str, LogicFactory] = {GEOFENCING.name: Geofencing}
