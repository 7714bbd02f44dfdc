"""Whatever is done to the log by the database's owner, or to the file of heads, `verify` finds it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from infra.audit import log as module
from infra.audit.entry import GENESIS, Entry
from infra.audit.heads import Heads
from infra.audit.log import AuditLog
from infra.audit.verify import Account, Kind, verify
from infra.identity.keyring import KeyRing
from infra.postgres import Connection
from tests.infra.audit.conftest import ANNA, empty, stored, until

ENTRIES = (9, 4, 14)
"""Of the three chains, without their first and last."""

_COLUMNS = (
    "chain::text, sequence, (extract(epoch FROM at) * 1000000)::bigint, subject, tenant, proof, action,"
    " object, outcome, details::text, hash"
)
_INSERT = (
    "INSERT INTO audit.entries VALUES (%s::uuid, %s, timestamptz 'epoch' + %s * interval '1 microsecond',"
    " %s, %s, %s, %s, %s, %s, %s::json, %s)"
)
_UNPROTECT = (
    "ALTER TABLE audit.entries DISABLE TRIGGER append_only;"
    " ALTER TABLE audit.entries DROP CONSTRAINT entries_pkey;"
    " ALTER TABLE audit.entries DROP CONSTRAINT entries_sequence_check;"
    " ALTER TABLE audit.entries DROP CONSTRAINT entries_outcome_check;"
    " ALTER TABLE audit.entries DROP CONSTRAINT entries_action_check;"
    " ALTER TABLE audit.entries DROP CONSTRAINT entries_hash_check;"
    + "".join(
        f" ALTER TABLE audit.entries ALTER {column} DROP NOT NULL;"
        for column in ("chain", "sequence", "at", *Entry._fields[3:], "hash")
    )
)


@dataclass(frozen=True)
class Row:
    """A row as somebody may leave it: any column may be anything."""

    entry: Entry
    hash: bytes | None

    def but(self, **columns: Any) -> Row:
        return replace(self, entry=self.entry._replace(**columns))


class _UndoneError(Exception):
    pass


@dataclass
class Written:
    """A log of three chains that was written by the real writer, and closed."""

    owner: Connection
    heads: Heads
    rows: list[Row]

    def as_if(self, rows: list[Row], heads: Heads | None = None) -> Account:
        """What `verify` says of a table with these rows instead. The table stays as it is."""
        account: Account | None = None
        try:
            with self.owner.transaction():
                self.owner.execute(_UNPROTECT.encode())
                self.owner.execute("DELETE FROM audit.entries")
                values = [(*row.entry, row.hash) for row in rows]
                with self.owner.cursor() as cursor:
                    cursor.executemany(_INSERT, values)
                # Who did it would have put the protection on again.
                self.owner.execute("ALTER TABLE audit.entries ENABLE ALWAYS TRIGGER append_only")
                account = verify(self.owner, heads or self.heads)
                raise _UndoneError
        except _UndoneError:
            assert account is not None
            return account

    def chain(self, n: int) -> list[Row]:
        names = list(dict.fromkeys(row.entry.chain for row in self.rows))
        return [row for row in self.rows if row.entry.chain == names[n]]

    def first(self, change: Callable[[list[Row]], list[Row]]) -> tuple[Kind, int | None]:
        """The one finding after this change of the third chain."""
        changed = self.chain(2)
        others = [row for row in self.rows if row not in changed]
        (finding,) = self.as_if(others + change(list(changed))).findings
        assert finding.chain == changed[0].entry.chain and finding.chain in finding.sentence
        return finding.kind, finding.sequence


@pytest.fixture(scope="module")
def written(
    writer_url: str, owner: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    empty(owner)
    folder = tmp_path_factory.mktemp("audit")
    keys = KeyRing(folder / "keys")
    heads = Heads(folder / "heads.jsonl", keys)
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "SIGNED_EVERY_S", 0.0)  # a head after each batch
    done = 0
    for entries in ENTRIES:
        keys.add()  # each under a key of its own, as after a rotation
        log = AuditLog(writer_url, heads, "tests")
        for n in range(entries):
            log.record(ANNA if n % 3 else None, "read", f"/v1/{n}", "done" if n % 2 else "denied", {"n": n})
            if n % 4 == 3:
                done_now = done + n + 1
                until(lambda done_now=done_now: stored(owner, "read") == done_now)  # type: ignore[misc]
        done += entries
        log.close()
    patch.undo()
    found = owner.execute(f"SELECT {_COLUMNS} FROM audit.entries ORDER BY at, sequence".encode()).fetchall()
    rows = [Row(Entry(*row[:-1]), bytes(row[-1])) for row in found]  # type: ignore[arg-type]
    rows.sort(key=lambda row: (row.entry.chain, row.entry.sequence))
    order = {n + 2: k for k, n in enumerate(ENTRIES)}
    sizes = {row.entry.chain: 0 for row in rows}
    for row in rows:
        sizes[row.entry.chain] += 1
    rows.sort(key=lambda row: (order[sizes[row.entry.chain]], row.entry.sequence))
    yield Written(owner, heads, rows)
    empty(owner)


def rehashed(rows: list[Row], renumber: bool = True) -> list[Row]:
    """With all hashes computed anew, as somebody who knows how would do it."""
    out: list[Row] = []
    ends: dict[str, tuple[int, bytes]] = {}
    for row in rows:
        sequence, before = ends.get(row.entry.chain, (0, GENESIS))
        placed = row.entry._replace(sequence=sequence + 1) if renumber else row.entry
        ends[row.entry.chain] = (sequence + 1, placed.digest(before))
        out.append(Row(placed, ends[row.entry.chain][1]))
    return out


def test_an_untouched_log_is_clean(written: Written) -> None:
    """Three chains under three keys: every entry is walked and covered by a head."""
    account = written.as_if(written.rows)
    assert account.clean, account.findings
    assert (account.chains, account.entries) == (3, sum(ENTRIES) + 6)
    assert account.uncovered == 0 and account.heads >= 3 * 3


@pytest.mark.parametrize("k", [1, 2, 9, 16])
def test_each_manipulation_is_named_with_its_first_entry(written: Written, k: int) -> None:
    """Edit, deletion, reordering and cutting off are told apart, at any place of the chain."""
    assert written.first(lambda c: [*c[: k - 1], c[k - 1].but(subject="eve"), *c[k:]]) == (Kind.ALTERED, k)
    assert written.first(lambda c: c[: k - 1]) == (Kind.CUT, k)
    if k < 16:
        assert written.first(lambda c: [*c[: k - 1], *c[k:]]) == (Kind.MISSING, k)
        swapped = written.first(
            lambda c: [
                *(r for r in c if r.entry.sequence not in (k, 16)),
                c[k - 1].but(sequence=16),
                c[15].but(sequence=k),
            ]
        )
        assert swapped == (Kind.MOVED, k)
    assert written.first(lambda c: [*c, c[k - 1]]) == (Kind.TWICE, k)


def test_a_chain_computed_anew_does_not_fit_its_heads(written: Written) -> None:
    """Edited, deleted or inserted with all hashes after it: the next head says which entries to look at."""

    def edited(c: list[Row]) -> list[Row]:
        return rehashed([*c[:8], c[8].but(outcome="done", action="nothing"), *c[9:]])

    kind, first = written.first(edited)
    assert kind is Kind.REWRITTEN and first is not None and first <= 9
    assert written.first(lambda c: rehashed([*c[:8], *c[9:]]))[0] is Kind.REWRITTEN
    assert written.first(lambda c: rehashed([*c[:8], c[3], *c[8:]]))[0] is Kind.REWRITTEN
    assert written.first(lambda c: rehashed([*c, c[3]])) == (Kind.BEYOND, 17)


def test_a_chain_that_is_gone_or_was_never_ours_is_found(written: Written) -> None:
    """Its heads tell of a chain that was deleted; no head knows one that somebody made."""
    gone, kept = written.chain(1), [*written.chain(0), *written.chain(2)]
    (finding,) = written.as_if(kept).findings
    assert (finding.kind, finding.chain, finding.sequence) == (Kind.CUT, gone[0].entry.chain, 1)
    other = "00000000-0000-4000-8000-000000000000"
    forged = rehashed([row.but(chain=other) for row in gone])
    (finding,) = written.as_if([*written.rows, *forged]).findings
    assert (finding.kind, finding.chain) == (Kind.UNKNOWN, other)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_manipulation_goes_unseen(written: Written, data: st.DataObject) -> None:
    """One to four random changes, with or without computing everything anew: the log is clean exactly if
    nothing differs from what was written."""
    rows = list(written.rows)
    for _ in range(data.draw(st.integers(1, 4), "changes")):
        if rows:
            rows = data.draw(st.sampled_from(CHANGES), "change")(rows, data)
    anew = data.draw(st.sampled_from(("no", "hashes", "hashes and numbers")), "computed anew")
    if anew != "no" and not any(None in row.entry for row in rows):
        rows = rehashed(rows, renumber=anew.endswith("numbers"))
    account = written.as_if(rows)
    same = sorted(map(repr, rows)) == sorted(map(repr, written.rows))
    assert account.clean == same, account.findings
    assert not any(finding.kind is Kind.GUARD for finding in account.findings)


def _edit(rows: list[Row], data: st.DataObject) -> list[Row]:
    n = data.draw(st.integers(0, len(rows) - 1))
    row = rows[n]
    other: dict[str, st.SearchStrategy[Any]] = {
        "sequence": st.integers(-1, 20),
        "at_us": st.integers(0, 2**50),
        "outcome": st.sampled_from(("done", "denied", "failed", "")),
        "details": st.sampled_from(("{}", '{"n": 1}', "null", '{"n":1,"n":2}')),
        "hash": st.one_of(st.binary(min_size=0, max_size=33), st.none()),
    }
    column = data.draw(st.sampled_from(("subject", "tenant", "proof", "action", "object", *other)))
    value = data.draw(other.get(column, st.one_of(st.text("aé0,:", max_size=3), st.none())))
    changed = replace(row, hash=value) if column == "hash" else row.but(**{column: value})
    return [*rows[:n], changed, *rows[n + 1 :]]


def _delete(rows: list[Row], data: st.DataObject) -> list[Row]:
    first = data.draw(st.integers(0, len(rows) - 1))
    count = data.draw(st.integers(1, 4))
    return rows[:first] + rows[first + count :]


def _cut(rows: list[Row], data: st.DataObject) -> list[Row]:
    chain = data.draw(st.sampled_from(rows)).entry.chain
    kept = data.draw(st.integers(0, 15))
    return [r for r in rows if r.entry.chain != chain or (r.entry.sequence or 0) <= kept]


def _swap(rows: list[Row], data: st.DataObject) -> list[Row]:
    a, b = (data.draw(st.integers(0, len(rows) - 1)) for _ in range(2))
    out = list(rows)
    if data.draw(st.booleans()):  # their places
        out[a], out[b] = (
            rows[a].but(chain=rows[b].entry.chain, sequence=rows[b].entry.sequence),
            rows[b].but(chain=rows[a].entry.chain, sequence=rows[a].entry.sequence),
        )
    else:  # their hashes
        out[a], out[b] = replace(rows[a], hash=rows[b].hash), replace(rows[b], hash=rows[a].hash)
    return out


def _insert(rows: list[Row], data: st.DataObject) -> list[Row]:
    n = data.draw(st.integers(0, len(rows)))
    return [*rows[:n], data.draw(st.sampled_from(rows)), *rows[n:]]


def _to_another_chain(rows: list[Row], data: st.DataObject) -> list[Row]:
    chains = sorted({str(row.entry.chain) for row in rows})
    of, to = (data.draw(st.sampled_from([*chains, "00000000-0000-4000-8000-000000000001"])) for _ in range(2))
    if data.draw(st.booleans()):
        n = data.draw(st.integers(0, len(rows) - 1))
        return [*rows[:n], rows[n].but(chain=to), *rows[n + 1 :]]
    return [
        row.but(chain=to if row.entry.chain == of else of if row.entry.chain == to else row.entry.chain)
        for row in rows
    ]


def _shuffle(rows: list[Row], data: st.DataObject) -> list[Row]:
    """The numbers of one chain, dealt anew."""
    chain = data.draw(st.sampled_from(rows)).entry.chain
    places = [n for n, row in enumerate(rows) if row.entry.chain == chain]
    numbers = [rows[n].entry.sequence for n in places]
    random.Random(data.draw(st.integers(0, 99))).shuffle(numbers)
    out = list(rows)
    for n, number in zip(places, numbers, strict=True):
        out[n] = rows[n].but(sequence=number)
    return out


CHANGES = (_edit, _delete, _cut, _swap, _insert, _to_another_chain, _shuffle)


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_of_the_heads_goes_unseen(
    written: Written, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Lines edited, moved, doubled, signed by another key, or deleted before a chain's last: all found."""
    path = tmp_path_factory.getbasetemp() / "changed-heads.jsonl"
    lines = written.heads.path.read_text().splitlines()
    n = data.draw(st.integers(0, len(lines) - 1))
    told = json.loads(lines[n])
    match data.draw(st.sampled_from(("edit", "delete", "move", "double", "own key", "garbage"))):
        case "edit":
            name = data.draw(
                st.sampled_from(("sequence", "hash", "n", "at", "last", "chain", "signature", "key"))
            )
            value = data.draw(st.sampled_from((0, 1, 2, True, "", "0" * 64, lines[0], None)))
            assume(told[name] != value or type(told[name]) is not type(value))
            lines[n] = json.dumps({**told, name: value})
        case "delete":
            later = [json.loads(line)["chain"] for line in lines[n + 1 :]]
            assume(told["chain"] in later)  # the end of a chain's heads alone is not told from a kill
            del lines[n]
        case "move":
            to = data.draw(st.integers(0, len(lines) - 1))
            between = lines[min(n, to) : max(n, to) + 1]
            assume(sum(json.loads(line)["chain"] == told["chain"] for line in between) > 1)
            lines.insert(to, lines.pop(n))
        case "double":
            lines.insert(data.draw(st.integers(0, len(lines))), lines[n])
        case "own key":
            own = KeyRing(Path(path.parent / "own-keys"))
            own.add()
            signed = Heads(path, own)
            path.unlink(missing_ok=True)
            heads, _ = written.heads.read()
            signed.append(next(h for h in heads[told["chain"]] if h.n == told["n"]))
            lines[n] = path.read_text().strip()
        case "garbage":
            lines[n] = data.draw(st.sampled_from(("", "{}", "[]", "null", '"', lines[n][:-5])))
    path.write_text("\n".join(lines) + "\n")
    account = written.as_if(written.rows, Heads(path, written.heads._keys))
    assert any(finding.kind is Kind.HEADS for finding in account.findings)
