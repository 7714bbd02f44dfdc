"""Builds the compiled loops (`*.pyx`) in place, whenever the project is installed: editable, or as a wheel.

`python hatch_build.py` does the same without installing (`make setup` runs it when a source has changed).
"""

from __future__ import annotations

import os
import sys
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
    # Needed to build only, so that whoever reads the list of sources does without.
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    before = Path.cwd()
    os.chdir(ROOT)  # setuptools and Cython name modules by paths relative to where they run
    try:
        extensions = [
            Extension(
                source.removesuffix(".pyx").replace("/", "."),
                [source],
                extra_compile_args=["-O3", "-fwrapv"],
            )
            for source in SOURCES
        ]
        command = build_ext(
            Distribution(
                {
                    "name": "millrace",
                    "ext_modules": cythonize(
                        extensions, build_dir="build/cython", compiler_directives=DIRECTIVES, quiet=True
                    ),
                }
            )
        )
        command.inplace = True
        command.build_temp = f"build/{sys.implementation.cache_tag}"
        command.ensure_finalized()
        command.run()
        return [command.get_ext_filename(extension.name) for extension in extensions]
    finally:
        os.chdir(before)


class CompiledLoops(BuildHookInterface[Any]):
    """Hatchling's hook: builds before the files are gathered, and names what came of it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["artifacts"] += [f"/{path}" for path in build()]
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build())
