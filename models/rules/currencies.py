"""Amounts in one currency as minor units of another, by the rates that a version of the rules states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from models.rules.problem import RuleError
from models.rules.tree import Money

DECIMALS = dict.fromkeys(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "PYG",
        "RWF",
        "UGX",
        "UYI",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ],
    0,
) | dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3)
"""Decimals of the minor unit after ISO 4217, where they are not two."""
CODE = re.compile("[A-Z]{3}")


def minor_per_major(currency: str) -> int:
    """How many minor units a major one has."""
    return int(10 ** DECIMALS.get(currency, 2))


@dataclass(frozen=True)
class Rates:
    """What one major unit of the `stated` currency is worth, in major units of others, `as_of` a day."""

    stated: str
    per_stated: Mapping[str, Fraction]
    as_of: str

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Rates:
        """From `stated`, `as_of` and `rates` (decimals as text). Raises `RuleError`."""
        stated = body["stated"]
        rates = {}
        for currency, rate in {**body["rates"], stated: "1"}.items():
            try:
                value = Fraction(rate)
            except (ValueError, ZeroDivisionError, TypeError):
                value = Fraction(0)
            if not CODE.fullmatch(currency) or not Fraction(1, 10**6) <= value <= 10**6:
                raise RuleError(
                    f"rates: {rate!r} {currency} to one {stated} cannot be used; state an ISO 4217 code and a"
                    " decimal from 0.000001 to 1000000, as USD=1.08"
                )
            rates[currency] = value
        return cls(stated, rates, str(body["as_of"]))

    def minor(self, money: Money) -> Mapping[str, float]:
        """The amount in minor units of each currency that can be compared with it; once rounded."""
        return _minor(self, money)

    def __hash__(self) -> int:
        return hash((self.stated, self.as_of, tuple(sorted(self.per_stated.items()))))


@cache
def _minor(rates: Rates, money: Money) -> Mapping[str, float]:
    found = {money.currency: float(money.amount * minor_per_major(money.currency))}
    if money.currency in rates.per_stated:
        stated = money.amount / rates.per_stated[money.currency]
        for currency, rate in rates.per_stated.items():
            if currency != money.currency:
                found[currency] = float(stated * rate * minor_per_major(currency))
    return found
