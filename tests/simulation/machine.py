"""How the state machines run: always the same histories for a seed, so few that `make test` stays short.

MILLRACE_FAULTS_SEED chooses the histories, MILLRACE_FAULTS_HISTORIES how many (`make faults` takes more).
What fails is printed step by step; with MILLRACE_FAULTS_SHRINK=1 it is reduced to few steps first, which
takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

SEED = int(os.environ.get("MILLRACE_FAULTS_SEED", "1"))
STEPS = 40

Step = tuple[str, dict[str, Any]]
"""A method of the machine, and its arguments."""


def steps(methods: Mapping[str, tuple[int, dict[str, st.SearchStrategy[Any]]]]) -> st.SearchStrategy[Step]:
    """One step: a method, as often as its weight says, with its arguments.

    (Of rules of their own hypothesis would leave some out of each history, and what matters here, a crash
    between two steps that belong together, needs all of them.)
    """
    weighted = [name for name, (weight, _) in methods.items() for _ in range(weight)]
    return st.sampled_from(weighted).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries(methods[name][1]))
    )


def simulate(machine: Callable[[], RuleBasedStateMachine], histories: int) -> None:
    """Run the machine over so many generated histories, or as many as the environment says."""
    histories = int(os.environ.get("MILLRACE_FAULTS_HISTORIES", str(histories)))
    shrinks = os.environ.get("MILLRACE_FAULTS_SHRINK") == "1"
    print(f"MILLRACE_FAULTS_SEED={SEED}, {histories} histories of up to {STEPS} steps")  # noqa: T201
    run_state_machine_as_test(
        seed(SEED)(machine),  # type: ignore[arg-type]
        settings=settings(
            max_examples=histories,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
