"""Keep pyarrow from importing pandas, which it does at the first conversion from or to NumPy where it can."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Absent(MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("this process does without pandas; see infra/arrow.py", name=name)
        return None


def without_pandas() -> None:
    """From now on pandas cannot be imported by this process; pyarrow goes on without.

    It would take a second of processor time and 50 MB, in the midst of a process's first batch.
    """
    if not any(isinstance(finder, _Absent) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Absent())
