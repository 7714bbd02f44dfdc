"""The table of mutants: each fits the code, each names a test, and the documentation has them all."""

from __future__ import annotations

import re

import pytest

from tests.faults.mutants import MUTANTS, TREE, Mutant, documented


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.safeguard)
def test_a_mutant_fits_the_code_and_names_a_test(mutant: Mutant) -> None:
    """What it takes out stands in the file once, what comes instead differs, and its test exists."""
    for file, old, new in mutant.edits:
        assert (TREE / file).read_text().count(old) == 1 and old != new
    file, _, name = mutant.test.partition("::")
    text = (TREE / file).read_text()
    function = re.escape(name.partition("[")[0])
    assert not name or re.search(rf"^def {function}\(", text, re.MULTILINE), f"{file} has no {name}"


def test_the_documentation_has_the_table() -> None:
    """docs/guarantees.md lists exactly these safeguards and tests; otherwise put this there:"""
    assert documented() in (TREE / "docs" / "guarantees.md").read_text(), documented()
