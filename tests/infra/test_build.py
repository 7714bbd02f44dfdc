"""The build of the compiled loops."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import SOURCES

ROOT = Path(__file__).parents[2]


def test_every_loop_is_built_and_typed() -> None:
    """Every Cython source is built by the hook, and has a stub, without which mypy knows nothing of it."""
    found = {
        str(path.relative_to(ROOT)) for top in ("models", "streams") for path in (ROOT / top).rglob("*.pyx")
    }
    assert found == set(SOURCES)
    assert all((ROOT / source).with_suffix(".pyi").is_file() for source in SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_a_stub_names_what_is_there(source: str) -> None:
    """Whatever a stub declares at the top of a compiled module can be imported from it."""
    module = importlib.import_module(source.removesuffix(".pyx").replace("/", "."))
    stub = (ROOT / source).with_suffix(".pyi").read_text()
    lines = [line for line in stub.splitlines() if line.startswith(("def ", "class ")) or ": " in line[:20]]
    names = {line.removeprefix("def ").removeprefix("class ").split("(")[0].split(":")[0] for line in lines}
    names = {name for name in names if name.isidentifier()}
    assert len(names) >= 3
    assert {name for name in names if not hasattr(module, name)} == set()


def test_a_wheel_holds_the_compiled_loops(tmp_path: Path) -> None:
    """A wheel carries the compiled modules and is marked as one of this platform, not of any."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    # What the console is made of besides code.
    assert {"api/console/templates/base.html", "api/console/static/console.css"} <= set(names)
    for source in SOURCES:
        assert any(name.startswith(source.removesuffix("pyx")) and name.endswith(".so") for name in names)
