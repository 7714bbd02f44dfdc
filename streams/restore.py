"""A processor's state from its stored chunks."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from streams.decide import State


def restore(state: State, chunks: Iterable[bytes]) -> int:
    """Load a snapshot and its deltas into an empty state; returns their size in bytes.

    Python's cyclic collector rests meanwhile: loading makes millions of objects of which none is garbage, and
    looking for some again and again took longer than the loading (benchmarks/state_recovery.py).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    size = 0
    try:
        for chunk in chunks:
            state.load(chunk)
            size += len(chunk)
    finally:
        if was_enabled:
            gc.enable()
    return size
