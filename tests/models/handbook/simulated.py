"""Card transactions made by the rules of the Fraud Detection Handbook's simulator, small and always the same.

Its rules, chapter 3: a customer has a place, a mean amount of 5 to 100 (deviation half of it), up to four
transactions a day at terminals nearby, most around noon. Fraud is an amount above 220; every transaction of a
compromised terminal for 28 days; and of a compromised customer for 14 days every third, at five times its
amount.
Here more of them are compromised, as there are fewer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

START = np.datetime64("2023-01-02", "ms")
DAY_MS = 86_400_000
AMOUNT_MAX = 220.0
TERMINAL_DAYS, CUSTOMER_DAYS = 28, 14
RADIUS = 8.0


TERMINALS_A_DAY, CUSTOMERS_A_DAY = 0.6, 1.0
"""That are compromised, on average."""


def simulated(days: int, customers: int = 600, terminals: int = 800, seed: int = 1) -> pa.Table:
    """Labelled transactions in the order of time, two a customer and day."""
    random = np.random.default_rng(seed)
    homes, places = random.uniform(0, 100, (customers, 2)), random.uniform(0, 100, (terminals, 2))
    mean, rate = random.uniform(5, 100, customers), random.uniform(0, 4, customers)
    distance = np.sqrt(((homes[:, None] - places[None]) ** 2).sum(axis=2))
    near = [np.flatnonzero(row < max(RADIUS, np.sort(row)[3])) for row in distance]
    day_of, at, customer, terminal, amount = [], [], [], [], []
    for day in range(days):
        for who, count in enumerate(random.poisson(rate)):
            seconds = random.normal(DAY_MS / 2_000, 20_000, count)
            for second in seconds[(seconds > 0) & (seconds < DAY_MS / 1_000)]:
                paid = random.normal(mean[who], mean[who] / 2)
                day_of.append(day)
                at.append(day * DAY_MS + int(second) * 1_000)
                customer.append(who)
                terminal.append(random.choice(near[who]))
                amount.append(round(paid if paid >= 0 else random.uniform(0, 2 * mean[who]), 2))
    order = np.argsort(np.array(at), kind="stable")
    days_of, who, where = (np.array(c)[order] for c in (day_of, customer, terminal))
    paid_of = np.array(amount)[order]
    scenario = np.where(paid_of > AMOUNT_MAX, 1, 0)
    for day in range(days):
        for place in random.integers(terminals, size=random.poisson(TERMINALS_A_DAY)):
            during = (days_of >= day) & (days_of < day + TERMINAL_DAYS)
            scenario[during & (where == place)] = 2
        for one in random.integers(customers, size=random.poisson(CUSTOMERS_A_DAY)):
            during = (days_of >= day) & (days_of < day + CUSTOMER_DAYS)
            rows = np.flatnonzero(during & (who == one))
            stolen = random.choice(rows, len(rows) // 3, replace=False)
            paid_of[stolen] = np.round(paid_of[stolen] * 5, 2)
            scenario[stolen] = 3
    return pa.table(
        {
            "transaction_id": np.arange(len(order)),
            "occurred_at": pa.array(START + np.array(at)[order].astype("timedelta64[ms]")),
            "customer_id": who,
            "terminal_id": where,
            "amount": paid_of,
            "is_fraud": (scenario > 0).astype(np.int8),
            "fraud_scenario": scenario.astype(np.int8),
        }
    )
