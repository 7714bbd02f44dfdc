from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

CHUNK_BYTES: int
WINDOWS: tuple[str, ...]

class Bounds(NamedTuple):
    widths_ms: tuple[int, ...] = ...
    lateness_ms: int = ...
    idle_ms: int = ...
    cards_max: int = ...

class Inserted(NamedTuple):
    windows: Ints
    first: Ints
    known: dict[int, bytes]
    named: Ints

class Histories:
    def __init__(self, bounds: Bounds | None = None) -> None: ...
    def __len__(self) -> int: ...
    @property
    def cards_total(self) -> int: ...
    @property
    def merchants_total(self) -> int: ...
    def insert(
        self,
        at_ms: Ints,
        amount_minor: Ints,
        append_ms: Ints,
        cards: list[str],
        ids: list[str],
        merchants: list[str | None],
        named_ms: Sequence[int] = ...,
    ) -> Inserted: ...
    def keep(self, answers: list[bytes | None]) -> None: ...
    def delta(self) -> bytes | None: ...
    def snapshot(self) -> Iterator[bytes]: ...
    def load(self, chunk: bytes) -> None: ...
