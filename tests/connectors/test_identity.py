"""Event ids made by the server."""

from __future__ import annotations

import time
import uuid

from connectors.identity import new_event_id


def test_ids_are_distinct_and_later_ones_sort_later() -> None:
    """10,000 ids differ, are UUIDs of version 7, and order by the millisecond in which they were made."""
    ids = [new_event_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert {(uuid.UUID(i).version, uuid.UUID(i).variant) for i in ids} == {(7, uuid.RFC_4122)}
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)
    time.sleep(0.002)
    assert new_event_id() > max(ids)
    made_ms = uuid.UUID(ids[0]).int >> 80
    assert abs(made_ms - time.time() * 1000) < 60_000
