"""`make mutants`: takes each safeguard out of a copy of the tree and requires the named test to fail.

A fault test that cannot fail proves nothing. The table that this prints is the one in docs/guarantees.md.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).parents[2]
PORT_BASE = 30_000
SECONDS = 240
COMPILED = ("models", "streams")
"""Where compiled loops lie; the copy has those of the tree."""


@dataclass(frozen=True)
class Mutant:
    """`old` in `file` becomes `new`; the pytest id `test` must then fail.

    `also` has more of (file, old, new), where two safeguards stand in for each other.
    """

    safeguard: str
    file: str
    old: str
    new: str
    test: str
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        return (self.file, self.old, self.new), *self.also


SINK_MACHINE = "tests/simulation/test_sink.py::test_the_sink_does_what_the_model_does"
STATE_MACHINE = "tests/simulation/test_state.py::test_the_state_is_what_a_fold_gives"
CONTRACTS = "tests/contracts/test_pipelines.py"

MUTANTS = (
    Mutant(
        "compare-and-set of the position",
        "infra/checkpoints.py",
        " AND c.epoch = m.epoch AND c.next_offset = m.from_offset",
        "",
        "tests/infra/test_checkpoints.py::test_only_the_stored_position_can_be_advanced_from",
    ),
    Mutant(
        "epoch",
        "infra/checkpoints.py",
        "if epoch != epochs[at]:",
        "if False:",
        "tests/infra/test_checkpoints.py::test_an_older_epoch_cannot_lock",
    ),
    Mutant(
        "raising the epoch on a claim",
        "infra/checkpoints.py",
        "DO UPDATE SET epoch = checkpoints.epoch + 1,",
        "DO UPDATE SET",
        "tests/infra/test_checkpoints.py::test_each_claim_raises_the_epoch",
    ),
    Mutant(
        "merge within the batch",
        "sinks/writer.py",
        '" SELECT DISTINCT ON ({key}) {columns} FROM {stage} ORDER BY {key}, {order_by} DESC, stage_n"',
        '" SELECT {columns} FROM {stage}"',
        "tests/sinks/test_writer.py::test_duplicates_change_nothing_and_are_counted",
    ),
    Mutant(
        "declared merge: the highest version wins",
        "sinks/writer.py",
        " WHERE old.{order_by} < excluded.{order_by}",
        "",
        "tests/sinks/test_writer.py::test_duplicates_change_nothing_and_are_counted",
    ),
    Mutant(
        "bisecting",
        "sinks/writer.py",
        "if refusal.row is not None or len(items) == 1:",
        "if True:",
        "tests/sinks/test_writer.py::test_what_the_database_refuses_is_a_dead_letter_and_its_neighbours_land",
    ),
    Mutant(
        "savepoint around the direct COPY",
        "sinks/writer.py",
        "                with connection.transaction():\n                    put(target.copy)",
        "                if True:\n                    put(target.copy)",
        "tests/sinks/test_writer.py::test_duplicates_change_nothing_and_are_counted",
    ),
    Mutant(
        "leaving out what a lost commit stored",
        "sinks/writer.py",
        "(i.message.offset() or 0) >= current[i.at]]",
        "True]",
        SINK_MACHINE,
    ),
    Mutant(
        "dead letter before the position moves",
        "sinks/writer.py",
        "        self._store_letters(cursor, [*letters, *own])\n",
        "",
        "tests/sinks/test_writer.py::test_what_the_database_refuses_is_a_dead_letter_and_its_neighbours_land",
    ),
    Mutant(
        "duplicate drop before the state",
        "streams/fraud/scoring.py",
        "        new = np.flatnonzero(first == np.arange(len(first)))\n",
        "        new = np.arange(len(first))\n",
        "tests/streams/fraud/test_scoring.py",
    ),
    Mutant(
        "state as of its offset",
        "streams/runner.py",
        "changes[at] = (one.position, one.owned.unsaved)",
        "changes[at] = (one.position, one.owned.unsaved[:-1])",
        "tests/streams/test_runtime.py::test_every_record_is_answered_once_and_state_survives_a_restart",
    ),
    Mutant(
        "a snapshot beside its owner, of its own state alone",
        "infra/checkpoints.py",
        "                self.lock(cursor, {at: epoch})\n",
        "",
        "tests/streams/test_compaction.py::test_a_partition_that_was_taken_over_is_left_alone",
    ),
    Mutant(
        "deltas that came while a snapshot was made",
        "infra/checkpoints.py",
        '                    " AND next_offset <= %s",\n                    (*one, reached),\n',
        "                    one,\n",
        "tests/streams/test_compaction.py::test_deltas_that_come_meanwhile_stay",
    ),
    Mutant(
        "version written down before it is used",
        "streams/runner.py",
        "            versions.activate(connection, self.checkpoints, at, owned.epoch, begin, new)",
        "            pass",
        "tests/streams/test_runtime.py::test_a_version_applies_from_an_offset_that_is_written_down_first",
    ),
    Mutant(
        "transient errors are no dead letters",
        "infra/postgres.py",
        '    if state in _TRANSIENT or state.startswith("08"):\n        return Failure.TRANSIENT',
        '    if state in _TRANSIENT or state.startswith("08"):\n        return Failure.INVALID',
        "tests/sinks/test_writer.py::test_the_database_away_delays_and_loses_nothing",
    ),
    Mutant(
        "knowing the record before the position again",
        "infra/broker.py",
        "if message.timestamp()[1] != claim.append_ms:",
        "if False:",
        "tests/faults/test_backup.py::test_a_log_with_another_record_before_the_position_is_refused",
    ),
    Mutant(
        "ending a stopped process's transaction",
        "infra/checkpoints.py",
        "            self._evict(connection)\n",
        "",
        "tests/infra/test_checkpoints.py::test_a_transaction_that_stands_still_is_ended",
    ),
    Mutant(
        "epoch, wherever it is looked at",
        "infra/checkpoints.py",
        "if epoch != epochs[at]:",
        "if False:",
        SINK_MACHINE,
        also=(
            (
                "infra/checkpoints.py",
                " AND c.epoch = m.epoch AND c.next_offset = m.from_offset",
                " AND c.next_offset = m.from_offset",
            ),
        ),
    ),
    Mutant(
        "refusals by SQLSTATE, not by psycopg's class",
        "sinks/writer.py",
        "        except psycopg.Error as error:\n            # By SQLSTATE",
        "        except psycopg.OperationalError:\n            raise\n"
        "        except psycopg.Error as error:\n            # By SQLSTATE",
        SINK_MACHINE,
    ),
    Mutant(
        "mirror of a dead letter before it is committed",
        "sinks/writer.py",
        "            self._mirror(own)\n",
        "            pass\n",
        SINK_MACHINE,
    ),
    Mutant(
        "range record from the position that was stored",
        "sinks/writer.py",
        "                    current[at],\n                    batch.next_offset,\n",
        "                    self._positions[at],\n                    batch.next_offset,\n",
        SINK_MACHINE,
    ),
    Mutant(
        "answers acknowledged before the checkpoint",
        "streams/runner.py",
        "waiting = self.producer.flush(FLUSH_SECONDS)",
        "waiting = 0",
        STATE_MACHINE,
    ),
    Mutant(
        "a checkpoint as of the moment at which it was begun",
        "streams/runner.py",
        "one.owned.committed, one.position, one.append_ms)",
        "one.owned.committed, one.owned.applied, one.append_ms)",
        STATE_MACHINE,
    ),
    Mutant(
        "noticing a checkpoint whose answer was lost",
        "streams/runner.py",
        "                self._settle(one.owned, current[at])\n",
        "                pass\n",
        STATE_MACHINE,
    ),
    Mutant(
        "deltas kept until their commit is certain",
        "streams/runner.py",
        "            del owned.unsaved[: owned.attempted[1]]\n        owned.attempted = None",
        "        owned.unsaved.clear()\n        owned.attempted = None",
        STATE_MACHINE,
    ),
    Mutant(
        "older versions for what may have been answered",
        "streams/runner.py",
        "begin = max(first, owned.unanswered_from)",
        "begin = first",
        STATE_MACHINE,
    ),
    Mutant(
        "version whose COMMIT was not answered",
        "infra/versions.py",
        '            " ON CONFLICT (consumer, topic, partition, kind, from_offset)"\n'
        '            " DO UPDATE SET version = excluded.version",\n',
        '            "",\n',
        "tests/simulation/test_versions.py::test_a_version_whose_commit_was_not_answered_is_written_down_once",
    ),
    Mutant(
        "every change of a key into the next delta",
        "streams/decide.py",
        "        self._values[key] = value\n        self._changed.add(key)\n",
        "        if key not in self._values:\n            self._changed.add(key)\n"
        "        self._values[key] = value\n",
        STATE_MACHINE,
    ),
    Mutant(
        "decisions without a clock",
        "streams/fraud/scoring.py",
        "np.full(count, FRAUD_SCORING.code_version, dtype=np.int32)",
        'np.full(count, __import__("time").time_ns() // 10**18, dtype=np.int32)',
        f"{CONTRACTS}::test_answers_and_state_do_not_depend_on_the_clock[fraud]",
    ),
    Mutant(
        "decisions that know no batches",
        "models/rules/ruleset.py",
        "safe = 1.0 - model_risk\n",
        "safe = 1.0 - model_risk if len(model_risk) < 100 else 0.9 - model_risk\n",
        f"{CONTRACTS}::test_answers_and_state_do_not_depend_on_batches_nor_on_restarts[fraud]",
    ),
    Mutant(
        "a row that came again stays as it was",
        "sinks/writer.py",
        "WHERE old.{order_by} < excluded.{order_by}",
        "WHERE old.{order_by} <= excluded.{order_by}",
        f"{CONTRACTS}::test_what_comes_again_changes_nothing[orders]",
    ),
    Mutant(
        "verify compares values, not only keys",
        "sinks/table_check.py",
        "THEN CASE WHEN {stored} IS NOT DISTINCT FROM {given} THEN 0 ELSE 4 END",
        "THEN CASE WHEN {stored} IS NOT DISTINCT FROM {given} THEN 0 ELSE 0 END",
        f"{CONTRACTS}::test_verify_accepts_what_the_sink_wrote_and_names_what_was_altered[fleet]",
    ),
)


def documented() -> str:
    """The table in docs/guarantees.md."""
    rows = (f"| {m.safeguard} | `{m.test.removeprefix('tests/')}` |" for m in MUTANTS)
    return "\n".join(("| safeguard taken out | test that fails |", "|---|---|", *rows))


def failed(mutant: Mutant) -> tuple[bool, str]:
    """Whether the test fails without the safeguard, and what it says then; otherwise the run's last words."""
    with tempfile.TemporaryDirectory(prefix="millrace-mutant-") as folder:
        copy = Path(folder) / "tree"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=TREE, capture_output=True, check=True)
        compiled = [str(path.relative_to(TREE)) for top in COMPILED for path in (TREE / top).rglob("*.so")]
        for name in (*tracked.stdout.decode().split("\0"), *compiled):
            if name and (TREE / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(TREE / name, copy / name)
        for file, old, new in mutant.edits:
            text = (copy / file).read_text()
            if text.count(old) != 1:
                return False, f"{file} has the text {text.count(old)} times; adjust the mutant"
            (copy / file).write_text(text.replace(old, new))
        environ = {
            **os.environ,
            "PYTHONPATH": str(copy),
            "MILLRACE_CACHE": os.environ.get("MILLRACE_CACHE", str(TREE / ".millrace" / "cache")),
            "MILLRACE_TEST_PORT_BASE": os.environ.get("MILLRACE_TEST_PORT_BASE", str(PORT_BASE)),
        }
        pytest = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=120")
        run = subprocess.Popen(
            (*pytest, mutant.test),
            cwd=copy,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = run.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            printed = f"did not end within {SECONDS} s"
        finally:
            # An interrupted run leaves processes and services behind, whose ports the next one needs.
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            home = {
                "MILLRACE_HOME": str(copy / ".millrace" / "test"),
                "MILLRACE_PORT_BASE": environ["MILLRACE_TEST_PORT_BASE"],
            }
            down = (sys.executable, "-m", "infra.cli", "down", "--purge")
            subprocess.run(down, cwd=copy, env=environ | home, capture_output=True)
        lines = printed.strip().splitlines() or ["nothing was printed"]
        # 1: tests ran and failed. Anything else (no such test, a crash) proves nothing.
        if run.returncode != 1 or " failed" not in lines[-1]:
            return False, lines[-1]
        said = (line.lstrip(" |+E") for line in lines if re.match(r"[ |+]*E\s+\S", line))
        return True, next(said, lines[-1])[:100]


def main() -> int:
    """Run every mutant (or those whose safeguard contains an argument); 1 if one survives."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(a in m.safeguard for a in sys.argv[1:])]
    survivors = 0
    for mutant in wanted:
        began = time.monotonic()
        caught, words = failed(mutant)
        survivors += not caught
        sign = "caught  " if caught else "SURVIVED"
        seconds = time.monotonic() - began
        sys.stdout.write(f"{sign} {mutant.safeguard:<46} {mutant.test} ({seconds:.0f} s)\n         {words}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(wanted) - survivors} of {len(wanted)} safeguards are missed when they are gone\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
