"""Builds the compiled loops (`*.pyx`) in place, whenever the project is installed: editable, or as a wheel.

`python hatch_build.py` does the same without installing (`make setup` runs it when a source has changed).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCES = ("models/tree_walk.pyx", "streams/fraud/histories.pyx")
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,  # what comes from outside is checked once per batch, not once per access
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}


def build() -> list[str]:
    """Compile what is out of date; returns the extension modules' paths, relative to the project."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    results = {source: source.removesuffix(".pyx") + suffix for source in SOURCES}
    stale = [source for source, result in results.items() if _is_stale(ROOT / source, ROOT / result)]
    if stale:
        before = Path.cwd()
        os.chdir(ROOT)  # setuptools and Cython name modules by paths relative to where they run
        try:
            _compile(stale)
        finally:
            os.chdir(before)
    return list(results.values())


def _is_stale(source: Path, result: Path) -> bool:
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    return not result.exists() or result.stat().st_mtime < newest


def _compile(sources: list[str]) -> None:
    # Needed to compile only: an install that finds everything built does without.
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    extensions = [
        Extension(
            source.removesuffix(".pyx").replace("/", "."),
            [source],
            extra_compile_args=["-O3", "-g0", "-fwrapv"],
        )
        for source in sources
    ]
    modules = cythonize(
        extensions, build_dir="build/cython", compiler_directives=DIRECTIVES, force=True, quiet=True
    )
    command = build_ext(Distribution({"name": "millrace", "ext_modules": modules}))
    command.inplace = command.force = True
    command.build_temp = f"build/{sys.implementation.cache_tag}"
    command.ensure_finalized()
    command.run()


class CompiledLoops(BuildHookInterface[Any]):
    """Hatchling's hook: builds before the files are gathered, and names what came of it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["artifacts"] += [f"/{path}" for path in build()]
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build())
