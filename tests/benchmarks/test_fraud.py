"""The fraud pipeline as a benchmark's subject: its input, its rules, and a checker that can say no."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.fraud import RISKS, Checker, Fields, card_transactions, rows_of
from benchmarks.rules import fifty
from benchmarks.transactions import Transactions
from infra.columns import arrow_schema
from models.rules.ruleset import load_rules
from schemas.fraud import CARD_TRANSACTIONS
from streams.fraud.faults import suspects

DATA = Transactions(20_000)
CHECKER = Checker(DATA, {"rules": 1, "model": 2})


def whole() -> Fields:
    """All transactions once, with the values that they should have."""
    wanted: Fields = {"number": np.arange(DATA.records)}
    wanted |= CHECKER.expected | dict.fromkeys(RISKS, DATA.amount * 7)
    return CHECKER.gather([wanted])


def test_columns_are_the_events() -> None:
    """Peers and we are sent the same transactions, whether they were made one by one or by column."""
    columns = DATA.columns(500, 900)
    for n, event in enumerate(itertools.islice(DATA.events(), 500, 900)):
        assert {name: column[n].as_py() for name, column in columns.items()} == event
    results = {"count_24h", "sum_24h_minor", "score"}
    scored = DATA.scored_columns(0, 900)
    assert {n: scored[n].to_pylist() for n in results} == {
        n: [e[n] for e in itertools.islice(DATA.scored(), 900)] for n in results
    }


def test_a_prefix_has_the_fold_of_the_whole() -> None:
    """What was sent is checked by itself, however much more there was to send."""
    part = DATA.first(7_000)
    assert (part.window(86_400_000)[1] == DATA.window(86_400_000)[1][:7_000]).all()
    assert (part.rank == DATA.rank[:7_000]).all()
    assert DATA.records == 20_000


def test_the_transactions_are_ones_that_production_takes() -> None:
    """Nothing of what is sent would be refused: the load is of decisions, not of dead letters."""
    batch = card_transactions(DATA, 0, 5_000)
    assert batch.schema.names == arrow_schema(CARD_TRANSACTIONS).names
    assert not suspects(batch).any()


def test_there_are_fifty_rules_and_production_takes_them() -> None:
    """Rules of a version that cannot be loaded would leave the benchmark without any."""
    loaded = load_rules(1, fifty())
    assert len(loaded.rules) == 50
    assert {rule.meaning.action for rule in loaded.rules} == {"review", "decline"}


def test_all_windows_that_decisions_have_are_compared() -> None:
    """The fold covers counts and sums, and the versions in force."""
    wanted = {
        "count_10m",
        "sum_10m_minor",
        "count_1h",
        "sum_1h_minor",
        "count_24h",
        "sum_24h_minor",
        "count_7d",
        "sum_7d_minor",
    }
    assert wanted | {"rules_version", "model_version", "occurred_at"} <= CHECKER.expected.keys()
    assert (CHECKER.expected["count_7d"] > 1).any()


def test_what_is_whole_passes() -> None:
    """Each transaction decided and stored once with its values is right, and both hashes say so."""
    check = CHECKER.compare(whole(), whole(), DATA.records)
    assert check.passed
    assert check.hash == check.expected_hash
    assert check.counts["decisions"] == check.counts["rows"] == DATA.records


@pytest.mark.parametrize(
    ("finding", "where"),
    [
        ("without_decision", "decisions"),
        ("without_row", "rows"),
        ("duplicates", "rows"),
        ("duplicates", "decisions"),
    ],
)
def test_each_has_one_decision_and_one_row(finding: str, where: str) -> None:
    """A missing decision or row fails the check, and so does one too many."""
    found = {"decisions": whole(), "rows": whole()}
    found[where]["times"][77] = 0 if finding.startswith("without") else 2
    check = CHECKER.compare(found["decisions"], found["rows"], int(found["rows"]["times"].sum()))
    assert not check.passed
    assert check.counts[finding] == 1


@pytest.mark.parametrize("name", ["count_7d", "sum_24h_minor", "rules_version", "amount_minor"])
def test_a_value_that_the_fold_does_not_have_fails(name: str) -> None:
    """A wrong count, sum, version or amount is found, although topic and table agree on it."""
    decisions, rows = whole(), whole()
    for found in (decisions, rows):
        found[name][5] += 1
    check = CHECKER.compare(decisions, rows, DATA.records)
    assert not check.passed
    assert check.counts["wrong"] == 1
    assert check.hash != check.expected_hash


def test_a_row_that_is_not_its_decision_fails() -> None:
    """A risk that changed between topic and table is found by its last bit."""
    rows = whole()
    rows[RISKS[-1]][9] ^= 1
    check = CHECKER.compare(whole(), rows, DATA.records)
    assert not check.passed
    assert check.counts["rows_unlike_decisions"] == 1


def test_a_row_that_no_range_record_accounts_for_fails() -> None:
    """Rows alone do not pass: what the sink says it has read must come to the same."""
    assert CHECKER.compare(whole(), whole(), DATA.records - 3).counts["unaccounted"] == 3


def test_a_model_without_a_forest_fails() -> None:
    """What is said to be scored by two forests is: a null chance of fraud comes from a model with one."""
    decisions, rows = whole(), whole()
    for found in (decisions, rows):
        found["fraud_chance"][:] = np.float64(-1).view(np.int64)
    check = CHECKER.compare(decisions, rows, DATA.records)
    assert not check.passed
    assert check.counts["without_chance"] == DATA.records


def test_an_id_that_was_never_sent_fails() -> None:
    """A decision on a transaction of nowhere is not counted as one of ours."""
    wanted = {name: np.zeros(2, np.int64) for name in CHECKER.names}
    found = CHECKER.gather([{"number": np.array([-1, DATA.records]), **wanted}])
    assert found["unknown"][0] == 2
    assert not CHECKER.compare(found, whole(), DATA.records).passed


def test_rows_are_cut_from_copy_wherever_its_blocks_end() -> None:
    """COPY's blocks know nothing of rows: a row in two of them is whole again."""
    row = np.dtype([("columns", ">i2"), ("length", ">i4"), ("value", ">i8")])
    rows = np.array([(1, 8, n * n) for n in range(200_000)], row)
    data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff"
    for size in (7, 1_000, 3_000_000):
        blocks = (data[start : start + size] for start in range(0, len(data), size))
        found = np.concatenate(list(rows_of(blocks, row)))
        assert (found["value"] == rows["value"]).all()
