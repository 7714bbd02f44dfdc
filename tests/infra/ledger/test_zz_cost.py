from __future__ import annotations

import gc
import time
from contextlib import closing
from dataclasses import replace

from infra.broker import PartitionBatch
from infra.progress import Progress
from infra.telemetry.health import Health
from schemas.fraud import CARD_LEDGER, PIPELINE
from sinks.fraud import ROWS, TOLD
from sinks.outbox import Outbox
from sinks.rows import RowMapping
from sinks.writer import Writer
from tests.infra.ledger.conftest import Ledger, decision
from tests.simulation.broker import SimulatedProducer

N = 12288 * 3


def test_cost(ledger: Ledger) -> None:
    events = [
        decision(n, event_id=f"e{n:07}", merchant_id=f"m{n % 100}", card_id=f"c{n % 5000}") for n in range(N)
    ]
    ledger.send(events)
    plain_table = replace(CARD_LEDGER, chained=False, personal=())
    plain = replace(PIPELINE, tables=(plain_table,))
    mapping = (RowMapping(plain_table, ROWS[0].rows, ROWS[0].columns),)
    out = {}
    for rnd in range(3):
        for name, pipeline, rows, subs in (
            ("plain", plain, mapping, 0),
            ("chained", PIPELINE, ROWS, 0),
            ("chained+1% told", PIPELINE, ROWS, 1),
            ("chained+all told", PIPELINE, ROWS, 100),
        ):
            ledger.empty()
            for s in range(subs):
                ledger.connection.execute(
                    "INSERT INTO outward_endpoints (endpoint_id, kind, tenant, merchant_id, target, decisions, since_sequence) VALUES (%s,'webhook','default',%s,'x','{APPROVE,REVIEW,DECLINE}',0)",
                    (f"x{s}", f"m{s}"),
                )
            writer = Writer(
                pipeline,
                rows,
                ledger.codec,
                SimulatedProducer(ledger.broker).as_producer,
                ledger.settings.database_url,
                Progress("x", [], Health()),
                outbox=Outbox(TOLD, "card-decisions", "t") if pipeline is PIPELINE else None,
            )
            with closing(writer):
                places = [at for topic in writer.topics for at in ledger.broker.places(topic)]
                claims = writer.claim({at: ledger.broker.bounds(at) for at in places})
                batches = []
                pos = dict.fromkeys(places, 0)
                while any(pos[at] < ledger.broker.bounds(at).end for at in places):
                    b = []
                    for at in places:
                        m, e = ledger.broker.read(at, pos[at], 1365)
                        b.append(PartitionBatch(at, claims[at].epoch, m, e))
                        pos[at] = e
                    batches.append(b)
                gc.collect()
                a, ca = time.perf_counter(), time.process_time()
                for b in batches:
                    writer.write(b)
                w, cpu = time.perf_counter() - a, time.process_time() - ca
            out.setdefault(name, []).append((round(w / N * 1e6, 2), round(cpu / N * 1e6, 2)))
    ledger.sign()
    a = time.perf_counter()
    acc = ledger.verify()
    out["verify us/row"] = round((time.perf_counter() - a) / N * 1e6, 2), acc.clean, acc.rows
    print("COST (wall us/row, own cpu us/row):")
    for k, v in out.items():
        print("COST", k, v)
