"""The orders processors: intake and receipts check and merge, the saga owns orders, stock owns SKUs."""

from __future__ import annotations

from schemas.orders import INTAKE, RECEIPTS, SAGA, STOCK
from streams.decide import LogicFactory
from streams.orders.intake import Intake, Receipts
from streams.orders.saga import Saga
from streams.orders.stock import Stock

PROCESSORS: dict[str, LogicFactory] = {
    INTAKE.name: Intake,
    RECEIPTS.name: Receipts,
    SAGA.name: Saga,
    STOCK.name: Stock,
}
