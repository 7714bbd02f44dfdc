"""The compiled card histories against plain ones: windows, duplicates, bounds, batches, restarts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.declare import DAY_MS
from streams.decide import State
from streams.fraud import histories
from streams.fraud.histories import WINDOWS, Bounds, Histories, Inserted
from streams.fraud.history import HOUR_MS
from tests.streams.fraud.plain_histories import PlainHistories, Use

SMALL = Bounds(widths_ms=(2, 4, 7, 15), lateness_ms=6, idle_ms=12, cards_max=3)


def answer_to(use: Use, row: int) -> bytes:
    """Different for each row, so that a duplicate shows which one it was answered with."""
    return f"{use.id} at {use.at_ms}, row {row}".encode()


def insert(state: Histories, uses: Sequence[Use], named_ms: Sequence[int] = ()) -> Inserted:
    return state.insert(
        np.array([use.at_ms for use in uses], dtype=np.int64),
        np.array([use.amount for use in uses], dtype=np.int64),
        np.array([use.append_ms for use in uses], dtype=np.int64),
        [use.card for use in uses],
        [use.id for use in uses],
        [use.merchant for use in uses],
        named_ms,
    )


def run(state: Histories, uses: Sequence[Use], start: int = 0) -> list[tuple[bytes, list[int]]]:
    """One batch, answered; for each row the answer that it gets, and its windows where it is new."""
    inserted = insert(state, uses)
    answers: list[bytes] = []
    for row, use in enumerate(uses):
        first = int(inserted.first[row])
        if first == row:
            answers.append(answer_to(use, start + row))
        else:
            answers.append(inserted.known[row] if first < 0 else answers[first])
            assert not inserted.windows[row].any()
    new = inserted.first == np.arange(len(uses))
    assert set(inserted.known) == set(np.flatnonzero(inserted.first < 0).tolist())
    state.keep([answer if is_new else None for answer, is_new in zip(answers, new, strict=True)])
    return [
        (answer, windows if is_new else [])
        for answer, windows, is_new in zip(answers, inserted.windows.tolist(), new.tolist(), strict=True)
    ]


def run_in_batches(state: Histories, uses: Sequence[Use], size: int) -> list[tuple[bytes, list[int]]]:
    return [
        found
        for start in range(0, len(uses), size)
        for found in run(state, uses[start : start + size], start)
    ]


def run_plain(state: PlainHistories, uses: Sequence[Use], start: int = 0) -> list[tuple[bytes, list[int]]]:
    found = []
    for row, use in enumerate(uses, start):
        before = state.answers.get(use.id)
        windows = state.insert(use, answer_to(use, row))
        found.append((answer_to(use, row) if before is None else before, windows or []))
    return found


def restored(chunks: Sequence[bytes], bounds: Bounds) -> Histories:
    state = Histories(bounds)
    for chunk in chunks:
        state.load(chunk)
    assert state.delta() is None
    return state


@st.composite
def logs(draw: st.DrawFn) -> list[Use]:
    """A log of few cards and tenants: out of order, ties, resends, merchants known and not, pauses, leaps."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(-25, 3) | st.sampled_from([0, 0, 0, 1, 2, 16, 40]),  # from where the log stands
                st.sampled_from(["a", "a", "a", "b", "c", "d", "other\0a"]),
                st.integers(0, 9) | st.just(10**12),
                st.sampled_from([None, "x", "y", "z"]),
                st.sampled_from([0, 0, 0, 0, 1, 5, 12, -3]),
                st.none() | st.integers(0, 30),  # an id that came before
            ),
            min_size=1,
            max_size=60,
        )
    )
    now_ms, append_ms = 1000, 5000
    uses: list[Use] = []
    for n, (step, card, amount, merchant, pause, again) in enumerate(drawn):
        now_ms = max(now_ms, now_ms + step)
        append_ms += pause
        if again is not None and again < n:
            uses.append(Use(now_ms, amount, append_ms, card, uses[again].id, merchant))
        else:
            uses.append(Use(now_ms + min(step, 0), amount, append_ms, card, f"e{n}", merchant))
    return uses


bounds = st.builds(
    Bounds,
    widths_ms=st.lists(st.integers(1, 20), min_size=4, max_size=4).map(lambda widths: tuple(sorted(widths))),
    lateness_ms=st.integers(0, 10),
    idle_ms=st.integers(1, 15),
    cards_max=st.integers(1, 4),
)


@given(logs(), bounds | st.just(SMALL))
@settings(max_examples=500)
def test_windows_and_answers_are_exact(uses: list[Use], bounds: Bounds) -> None:
    """Every transaction gets the windows, or the earlier answer, that plain histories give it."""
    state, plain = Histories(bounds), PlainHistories(bounds)
    assert run(state, uses) == run_plain(plain, uses)
    assert (len(state), state.cards_total) == (len(plain.answers), len(plain.cards))
    assert state.merchants_total == len(
        {use.merchant for card in plain.cards.values() for use in card.uses} - {None}
    )


@given(logs(), bounds | st.just(SMALL), st.data())
@settings(max_examples=200)
def test_named_windows_are_as_exact(uses: list[Use], bounds: Bounds, data: st.DataObject) -> None:
    """Windows of any width up to the widest, named with a batch, are those of plain histories."""
    named = tuple(data.draw(st.lists(st.integers(1, bounds.widths_ms[3]), max_size=4)))
    state, plain = Histories(bounds), PlainHistories(bounds, named)
    for start in range(0, len(uses), 7):
        some = uses[start : start + 7]
        inserted = insert(state, some, named)
        for row, use in enumerate(some):
            expected = plain.insert(use, b"")
            found = [*inserted.windows[row].tolist(), *inserted.named[row].tolist()]
            assert found == ([0] * (len(WINDOWS) + 3 * len(named)) if expected is None else expected)
        state.keep([b"" for _ in some])


@pytest.mark.parametrize("named", [(0,), (16,), (1,) * 17])
def test_windows_that_cannot_be_named_are_refused(named: tuple[int, ...]) -> None:
    """Wider than the state reaches, or more than there is room for."""
    use = Use(1, 1, 1, "a", "e", None)
    with pytest.raises(ValueError, match="cannot be named"):
        insert(Histories(SMALL), [use], named)


@given(logs(), bounds | st.just(SMALL))
@settings(max_examples=200)
def test_cuts_into_batches_change_nothing(uses: list[Use], bounds: Bounds) -> None:
    """The same log in batches of 1, 2, 7 and whole gives the same windows, answers and state."""
    whole = Histories(bounds)
    expected = run(whole, uses)
    snapshot = list(whole.snapshot())
    for size in (1, 2, 7):
        state = Histories(bounds)
        found = run_in_batches(state, uses, size)
        assert [windows for _, windows in found] == [windows for _, windows in expected]
        assert found == expected
        assert list(state.snapshot()) == snapshot


@given(logs(), bounds | st.just(SMALL), st.data())
@settings(max_examples=200)
def test_a_restored_state_goes_on_the_same(uses: list[Use], bounds: Bounds, data: st.DataObject) -> None:
    """A state restored from snapshot and deltas, at any cut, goes on as one that never stopped."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(uses)), min_size=1, max_size=4)))
    state = Histories(bounds)
    found: list[Any] = []
    chunks: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(uses)], strict=True):
        found += run(state, uses[start:end], start)
        delta = state.delta()
        if delta is not None:
            chunks.append(delta)
        assert state.delta() is None
        if data.draw(st.booleans()):
            chunks = list(state.snapshot())
        state = restored(chunks, bounds)
    unbroken = Histories(bounds)
    assert found == run(unbroken, uses)
    assert list(state.snapshot()) == list(unbroken.snapshot())


def busy_log(
    rng: Random, count: int, cards: int, merchants: int, *, disorder_ms: int, step_ms: int
) -> list[Use]:
    """A long log of few cards, so that each has hundreds of transactions in its windows."""
    uses: list[Use] = []
    now_ms = 1_700_000_000_000
    for n in range(count):
        now_ms += rng.randrange(step_ms)
        if rng.random() < 0.002:
            now_ms += DAY_MS
        late_ms = rng.randrange(disorder_ms) if rng.random() < 0.3 else 0
        if rng.random() < 0.01:
            late_ms = rng.randrange(9 * DAY_MS)
        uses.append(
            Use(
                now_ms - late_ms,
                int(rng.lognormvariate(7, 1)),
                now_ms,
                f"c{rng.randrange(cards)}",
                rng.choice(uses).id if uses and rng.random() < 0.03 else f"e{n}",
                f"m{int(rng.paretovariate(0.3)) % merchants}" if rng.random() < 0.95 else None,
            )
        )
    return uses


@pytest.mark.parametrize(("merchants", "step_ms"), [(3, 60_000), (900, 60_000), (900, 1_500_000)])
def test_busy_cards_are_exact(merchants: int, step_ms: int) -> None:
    """Cards with thousands of transactions, many late, have exact windows; so has their restored state."""
    rng = Random(merchants + step_ms)
    uses = busy_log(rng, 4_000, 2, merchants, disorder_ms=HOUR_MS, step_ms=step_ms)
    plain, state = PlainHistories(Bounds()), Histories()
    expected = run_plain(plain, uses)
    assert run_in_batches(state, uses[:2_000], 97) == expected[:2_000]
    again = restored(list(state.snapshot()), Bounds())
    state.delta()
    assert run(state, uses[2_000:], 2_000) == expected[2_000:]
    assert run(again, uses[2_000:], 2_000) == expected[2_000:]
    assert again.delta() == state.delta()
    assert list(again.snapshot()) == list(state.snapshot())
    assert (len(state), state.merchants_total) == (
        len(plain.answers),
        len({use.merchant for card in plain.cards.values() for use in card.uses} - {None}),
    )


def test_a_busy_card_that_falls_quiet_stays_exact() -> None:
    """A card whose thousands of transactions are forgotten, and that starts again, has exact windows."""
    rng = Random(3)
    uses: list[Use] = []
    for burst in range(3):
        start_ms = 1_700_000_000_000 + burst * 30 * DAY_MS
        for n in range(700):
            at_ms = start_ms + n * 100 + rng.randrange(300)
            uses.append(
                Use(at_ms, rng.randrange(1000), start_ms, "c", f"{burst}-{n}", f"m{rng.randrange(400)}")
            )
        for n in range(60):
            at_ms = start_ms + (n + 1) * 6 * HOUR_MS
            uses.append(
                Use(at_ms, rng.randrange(1000), start_ms, "c", f"{burst}+{n}", f"m{rng.randrange(9)}")
            )
    assert run_in_batches(Histories(), uses, 50) == run_plain(PlainHistories(Bounds()), uses)


def test_a_large_snapshot_comes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot larger than a chunk is cut, within a card too, and restores the same state."""
    monkeypatch.setattr(histories, "CHUNK_BYTES", 300)
    uses = busy_log(Random(1), 300, 3, 9, disorder_ms=HOUR_MS, step_ms=60_000)
    state: State = Histories()
    assert isinstance(state, Histories)
    run(state, uses)
    chunks = list(state.snapshot())
    assert len(chunks) > 20 and max(map(len, chunks)) < 700
    again = restored(chunks, Bounds())
    assert list(again.snapshot()) == chunks
    more = busy_log(Random(2), 300, 3, 9, disorder_ms=HOUR_MS, step_ms=60_000)
    assert run(again, more) == run(state, more)


def test_an_id_forgotten_within_its_batch_is_new_again() -> None:
    """A transaction that a later row pushes beyond the horizon is answered, and decided anew when resent."""
    uses = [
        Use(1000, 1, 0, "a", "e0", None),
        Use(2000, 2, 0, "a", "e1", None),
        Use(2000, 3, 0, "a", "e0", None),
        Use(2001, 4, 0, "a", "e0", None),
    ]
    state = Histories(SMALL)
    inserted = insert(state, uses)
    assert inserted.first.tolist() == [0, 1, 2, 2]
    state.keep([b"0", b"1", b"2", None])
    assert insert(state, uses[:1]).known == {0: b"2"}


@pytest.mark.parametrize(("behind_ms", "is_remembered"), [(20, True), (21, False)])
def test_what_lies_behind_the_horizon_leaves_no_trace(behind_ms: int, is_remembered: bool) -> None:
    """A transaction at its card's watermark is answered but not remembered; a millisecond later it is."""
    state = Histories(SMALL)
    run(state, [Use(1000, 1, 0, "a", "e0", "m")])
    state.delta()
    before = list(state.snapshot())
    late = Use(1000 - behind_ms, 7, 99, "a", "e1", "n")
    assert run(state, [late])[0][1] == [1, 7, 1, 7, 1, 7, 7, 1, 1, 7, 7, -1, behind_ms, 0]
    assert (len(state), state.merchants_total) == ((2, 2) if is_remembered else (1, 1))
    assert (state.delta() is not None) == is_remembered == (list(state.snapshot()) != before)


def test_a_batch_is_answered_once_before_the_next() -> None:
    """Between a batch and its answers state is neither read nor written; wrong answers change nothing."""
    use = Use(1000, 1, 0, "a", "e0", "m")
    state = Histories()
    with pytest.raises(ValueError, match="there is no batch to answer; insert one before"):
        state.keep([])
    insert(state, [use])
    for early in (
        lambda: insert(state, [use]),
        state.delta,
        lambda: list(state.snapshot()),
        lambda: state.load(b""),
    ):
        with pytest.raises(ValueError, match=r"give them with keep\(\)"):
            early()
    with pytest.raises(ValueError, match="2 answers do not fit a batch of 1 rows"):
        state.keep([b"x", b"y"])
    with pytest.raises(TypeError, match="the answer to row 0 is no bytes"):
        state.keep([None])
    state.keep([b"x"])
    assert insert(state, [use]).known == {0: b"x"}


def test_columns_that_do_not_fit_are_refused() -> None:
    """Columns of unlike lengths or of another type are refused, and leave no trace."""
    one, state = np.ones(1, dtype=np.int64), Histories()
    with pytest.raises(ValueError, match="the columns have 1, 1, 1, 1, 1 and 0 rows"):
        state.insert(one, one, one, ["a"], ["e"], [])
    with pytest.raises(TypeError, match="row 0 has a card, id or merchant that is no str"):
        state.insert(one, one, one, ["a"], [b"e"], [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="Buffer dtype mismatch"):
        state.insert(one.astype(np.int32), one, one, ["a"], ["e"], [None])
    assert len(state) == 0 and state.delta() is None
    assert insert(state, []).windows.shape == (0, len(WINDOWS))
    state.keep([])
    assert state.delta() is None


def test_a_delta_that_does_not_follow_is_refused() -> None:
    """A delta that is loaded twice says that the chunks are not those of one state."""
    state = Histories()
    run(state, [Use(1000, 1, 0, "a", "e0", None)])
    delta = state.delta()
    assert delta is not None
    again = restored([delta], Bounds())
    with pytest.raises(ValueError, match="'e0' cannot be new here: chunks are missing or in another order"):
        again.load(delta)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Bounds(widths_ms=(2, 1, 3, 4)), "the narrowest first"),
        (Bounds(cards_max=0), "bounds nothing"),
        (Bounds(idle_ms=0), "bounds nothing"),
    ],
)
def test_bounds_that_bound_nothing_are_refused(wrong: Bounds, message: str) -> None:
    """Widths out of order, or no room for a card, are refused."""
    with pytest.raises(ValueError, match=message):
        Histories(wrong)
