"""Ends a process whose lag grows while its position stands still: restarted, it reads on.

A consumer can fall silent without an error: a lock never released, a call that never returns, a client
library that has lost its partition. From within the loop that hangs nothing can be seen, so a thread of its
own looks, and asks the broker itself for the end offsets. A consumer that says it waits for a service
(`Progress.waits`) is not silent, and restarting it would bring the service back no sooner.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from infra import exit_codes
from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.kafka_access import KafkaAccess
from infra.progress import Progress
from infra.topic_log import LogUnreadable, ends

log = logging.getLogger(__name__)

LOOKS_PER_PERIOD = 10


@dataclass(slots=True)
class _Still:
    """A partition that stands still: its position, since when, and the end offset at that time."""

    position: int
    since: float
    end: int


class Standstill:
    """Which partitions stand still while their lag grows. No clock and no I/O: the caller says the time."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._seen: dict[TopicPartition, _Still] = {}

    def look(
        self,
        now: float,
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        *,
        excused: bool = False,
    ) -> list[str]:
        """A sentence for each partition that has stood still for the whole period while its lag grew.

        `excused`: the consumer waits for something that it knows of; the period begins anew.
        """
        found = []
        for gone in self._seen.keys() - positions.keys():
            del self._seen[gone]
        for at, position in positions.items():
            end = ends.get(at, position)
            seen = self._seen.get(at)
            # (Nor while nothing waits: only from the first record on that should have been read.)
            if seen is None or excused or position != seen.position or seen.end <= position:
                self._seen[at] = _Still(position, now, end)
            elif now - seen.since >= self._after_s and end > seen.end:
                found.append(
                    f"position {position} of {at} has stood still for {now - seen.since:.0f} s while its lag"
                    f" grew from {seen.end - position} to {end - position}"
                )
        return found


def end_process(sentences: Sequence[str]) -> None:
    """Say why, write every thread's stack to stderr, and end this process at once, to be started again."""
    log.critical("; ".join(sentences), extra={"exit_code": exit_codes.STUCK})
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(exit_codes.STUCK)  # what hangs would hang an orderly end as well


class Watchdog:
    """A thread that watches the consumers of this process. `after_s` 0 watches nothing."""

    def __init__(
        self,
        access: KafkaAccess,
        consumers: Iterable[Progress],
        after_s: float,
        end: Callable[[Sequence[str]], None] = end_process,
    ) -> None:
        self._access = access
        self._watched = [(progress, Standstill(after_s)) for progress in consumers]
        self._after_s = after_s
        self._end = end
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        if after_s > 0:
            self._thread.start()

    def close(self) -> None:
        """Watch no longer: the process ends, and its partitions may stand still."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        client = admin(self._access)
        looked = time.monotonic()
        while not self._closing.wait(self._after_s / LOOKS_PER_PERIOD):
            # Not a process that was stopped and let go on (SIGSTOP, a machine put to sleep): its partitions
            # may have another owner, and it shall find out that it is fenced, not be started against it.
            was_asleep = time.monotonic() > looked + self._after_s / 2
            looked = time.monotonic()
            stuck: list[str] = []
            for progress, standstill in self._watched:
                positions = progress.positions()
                try:
                    now_ends = ends(client, positions) if positions else {}
                except LogUnreadable:
                    continue  # without a broker nobody can move
                now = time.monotonic()
                stuck += standstill.look(now, positions, now_ends, excused=was_asleep or progress.is_waiting)
            if stuck:
                self._end(stuck)
                return
