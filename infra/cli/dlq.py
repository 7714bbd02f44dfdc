"""`millrace dlq`: find dead letters, correct them, send them again or decide against them."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.audit.shell import ACTION, audited
from infra.cli._explained import explained
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.dlq.edits import Edit
    from infra.dlq.letters import Selection
    from infra.dlq.redrive import Plan

app = typer.Typer()
dlq = typer.Typer(
    help="Dead letters: find, correct, redrive, discard. What changes them shows first what it would do.",
    no_args_is_help=True,
)
app.add_typer(dlq, name="dlq")

SHOWN = 10
"""How many letters a dry run spells out; the rest is counted."""
RATE = 100.0

Ids = Annotated[list[int] | None, typer.Argument(help="Letters by id, as `dlq list` gives them.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that are open, where nothing else is given.")]
ApplyOption = Annotated[bool, typer.Option("--apply", help="Do it; without this it is only shown.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who does it, for the audit; default user@host.")]
NoteOption = Annotated[str | None, typer.Option("--reason", help="Why, for the audit.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


Conditions = dict[str, Any]
"""Which letters are meant: the options of `_by_conditions`, by name."""
CONDITIONS: dict[str, Any] = {
    "pipeline": Annotated[str | None, typer.Option("--pipeline", "-p", help="Only of this pipeline.")],
    "error_class": Annotated[
        str | None, typer.Option("--class", "-c", help="Only of this error class, as `undecodable`.")
    ],
    "topic": Annotated[str | None, typer.Option(help="Only of this topic.")],
    "consumer": Annotated[str | None, typer.Option(help="Only what this processor or sink refused.")],
    "field": Annotated[str | None, typer.Option(help="Only with this field at fault.")],
    "tenant": Annotated[str | None, typer.Option(help="Only of this tenant.")],
    "input_id": Annotated[str | None, typer.Option("--event-id", help="Only of the event with this id.")],
    "match": Annotated[str | None, typer.Option(help="Only where the reason contains this text.")],
    "since": Annotated[str | None, typer.Option(help="Only refused since: 2h, 7d, 2026-03-01T12:00Z.")],
    "until": Annotated[str | None, typer.Option(help="Only refused before.")],
}


def _by_conditions(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which letters; it gets their values as `conditions`."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    del own["conditions"]

    def run(**values: Any) -> None:
        command(conditions={name: values.pop(name) for name in CONDITIONS}, **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(n, keyword, default=None, annotation=a) for n, a in CONDITIONS.items()]
    parameters = [*(p.replace(kind=keyword) for p in own.values()), *shared]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    if action := getattr(command, ACTION, None):
        setattr(run, ACTION, action)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@dlq.command("list")
@_by_conditions
def list_(
    conditions: Conditions,
    status: Annotated[
        str, typer.Option(help="open, sending, redriven, discarded or all; several with commas.")
    ] = "open,sending",
    summary: Annotated[bool, typer.Option("--summary", "-s", help="One line for each cause.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most letters listed.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, newest first, or how many there are of each cause."""
    from dataclasses import asdict

    from infra.dlq.letters import as_dict, causes, find

    selection = _selection(conditions, status=status)
    with _explained(), _database() as connection:
        if summary:
            found = causes(connection, selection)
            if as_json:
                typer.echo(json.dumps([asdict(c) for c in found], default=str, indent=2))
                return
            _table(
                ("letters", "pipeline", "consumer", "topic", "class", "field", "newest", "for example"),
                [
                    (
                        str(c.letters),
                        c.pipeline,
                        c.consumer,
                        c.topic,
                        c.error_class,
                        c.field or "",
                        f"{c.last_at:%m-%d %H:%M}",
                        c.example,
                    )
                    for c in found
                ],
            )
            typer.echo(f"{sum(c.letters for c in found)} dead letters of {len(found)} causes", err=True)
            return
        letters = find(connection, selection, limit + 1)
    if as_json:
        typer.echo(json.dumps([as_dict(x) for x in letters[:limit]], indent=2))
        return
    _table(
        ("id", "status", "refused", "place", "consumer", "class", "field", "reason"),
        [
            (
                str(x.id),
                f"{x.status}{', edited' if x.edited and x.status == 'open' else ''}",
                f"{x.created_at:%m-%d %H:%M:%S}",
                x.place,
                x.consumer,
                x.error_class,
                x.field or "",
                x.error,
            )
            for x in letters[:limit]
        ],
    )
    more = (
        f"the newest {limit}; --limit shows more, --summary counts" if len(letters) > limit else len(letters)
    )
    typer.echo(f"dead letters: {more}", err=True)


@dlq.command()
def show(
    letter: Annotated[str, typer.Argument(help="An id, or topic/partition/offset.")],
    as_json: JsonOption = False,
) -> None:
    """Show a letter: the reason, the decoded record beside it, and all that was done to it."""
    from infra.dlq import edits, letters, view
    from schemas.pipelines import PIPELINES

    with _explained(), _database() as connection, _codec() as codec:
        for found in letters.one(connection, letter):
            topic = edits.topic_of(PIPELINES, found)
            original = edits.read(codec, topic, found.value)
            edited = edits.read(codec, topic, found.to_value) if found.edited else None
            past = letters.history(connection, found)
            if as_json:
                told = {
                    **letters.as_dict(found),
                    "key": found.key,
                    "value": found.value,
                    "event": original.event,
                    "fault": original.fault,
                    "edited_event": edited.event if edited else None,
                    "history": past,
                }
                typer.echo(edits.to_json(json.loads(json.dumps(told, default=_plain))))
            else:
                for line in view.lines(found, original, edited, past):
                    typer.echo(line)


@dlq.command()
@_by_conditions
@audited("dlq.edit", untold=("set_", "transform"))
def edit(
    conditions: Conditions,
    ids: Ids = None,
    all_: AllOption = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, the value in JSON; may be repeated.")
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="A Python expression of `event`, as \"event | {'mcc': event['mcc'][:4]}\"."),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Only write it anew, with the topic's newest schema.")
    ] = False,
    read_as: Annotated[
        int | None, typer.Option(help="Read the bytes by the schema with this id, whatever they name.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The whole event, as JSON.")
    ] = None,
    original: Annotated[bool, typer.Option("--original", help="Take earlier edits back.")] = False,
    apply: ApplyOption = False,
    by: ByOption = None,
    reason: NoteOption = None,
) -> None:
    """Correct letters: by fields, by an expression, by a newer schema, or (one letter) in $EDITOR.

    The letter keeps its bytes; a redrive sends the edited ones. Without --apply it only shows the changes.
    """
    from infra.dlq import edits, letters
    from schemas.pipelines import PIPELINES

    selection = _chosen(conditions, ids, all_)
    with _explained(), _database() as connection, _codec() as codec:
        wanted = letters.ids_of(connection, selection)
        if original:
            if apply:
                done = edits.revert(connection, wanted, by or letters.operator(), reason)
                typer.echo(f"{len(done)} letters stand with their own bytes again")
            else:
                edited = sum(
                    x.edited for chunk in letters.chunks(wanted, 500) for x in letters.load(connection, chunk)
                )
                _dry(f"{edited} of {len(wanted)} letters would stand with their own bytes again")
            return
        changes: list[Callable[[dict[str, Any]], dict[str, Any]]] = []
        if transform:
            changes.append(edits.expression(transform))
        if set_:
            changes.append(edits.setting(set_))
        whole = edits.from_json(file.read_text()) if file else None
        if whole is not None and len(wanted) > 1:
            raise letters.DlqError(f"--file would make {len(wanted)} letters one event; name one letter")
        if not changes and whole is None and not upgrade and read_as is None:
            whole = _in_editor(codec, connection, wanted)
        note = reason or _how(set_, transform, read_as, file)
        _edit(connection, codec, PIPELINES, wanted, changes, whole, read_as, apply, by, note)


@dlq.command()
def test(
    letter: Annotated[int, typer.Argument(help="A letter by id.")],
    event: Annotated[
        str | None, typer.Option(help="An event as JSON in place of the letter's; - reads it from stdin.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try a letter as it stands: could it be sent, and what would its processor say? Changes nothing.

    The processor decides on an empty state: what depends on earlier events only a redrive tells.
    """
    from infra.codec import Unencodable
    from infra.dlq import edits, letters
    from infra.dlq.trial import Verdict, verdict
    from schemas.pipelines import PIPELINES

    with _explained(), _database() as connection, _codec() as codec:
        (found,) = letters.one(connection, str(letter))
        topic = edits.topic_of(PIPELINES, found)
        try:
            text = sys.stdin.read() if event == "-" else event
            value = codec.encode(topic, edits.from_json(text)) if text and topic else None
        except Unencodable as error:
            told = Verdict(str(error), None, ())
        else:
            told = verdict(connection, codec, PIPELINES, found, value, _trials)
    if as_json:
        typer.echo(json.dumps(told.to_json()))
    else:
        for line in told.lines():
            typer.echo(line)
    if told.problem or any(t.refused for t in told.trials):
        raise typer.Exit(1)


def _trials(
    connection: Any, codec: Any, pipeline: Any, topic: Any, value: bytes, append_ms: int
) -> list[Any]:
    """Joins the layers: the processors' own logic lies above this one."""
    import importlib

    from streams.trial import tried

    logics = importlib.import_module(f"streams.{pipeline.name}").PROCESSORS
    return list(tried(connection, codec, pipeline, logics, topic, value, append_ms))


@dlq.command()
@_by_conditions
@audited("dlq.redrive")
def redrive(
    conditions: Conditions,
    ids: Ids = None,
    all_: AllOption = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most letters sent.")] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Most records a second.")] = RATE,
    apply: ApplyOption = False,
    by: ByOption = None,
    reason: NoteOption = None,
) -> None:
    """Send letters to their topics again, each once however often it is repeated.

    Without --apply it only shows what would be sent.
    """
    from datetime import UTC, datetime

    from infra.dlq import letters
    from infra.dlq import redrive as sending
    from schemas.pipelines import PIPELINES

    selection = _chosen(conditions, ids, all_)
    settings = Settings.load()
    with _explained():
        with _database() as connection, _codec() as codec:
            wanted = letters.ids_of(connection, selection, limit)
            if not apply:
                now = datetime.now(UTC)
                _show_plans(
                    (
                        sending.plan(codec, PIPELINES, letter, now)
                        for chunk in letters.chunks(wanted, 500)
                        for letter in letters.load(connection, chunk)
                    ),
                    rate,
                )
                return
        sent, problems = Counter[str](), 0

        def tell(outcome: sending.Outcome) -> None:
            nonlocal problems
            if outcome.place is None:
                problems += 1
                if problems <= SHOWN:
                    typer.echo(f"{outcome.letter}: held back: {outcome.problem}", err=True)
            else:
                sent[outcome.place.partition("/")[0]] += 1
                if sum(sent.values()) <= SHOWN or outcome.recovered:
                    found = " (sent by an interrupted redrive)" if outcome.recovered else ""
                    typer.echo(f"{outcome.letter}: now {outcome.place}{found}")

        sending.redrive(
            settings,
            PIPELINES,
            wanted,
            actor=by or letters.operator(),
            note=reason,
            rate=rate,
            progress=tell,
        )
    to = ", ".join(f"{n} to {name}" for name, n in sorted(sent.items())) or "nothing to send"
    typer.echo(f"redriven: {to}{f'; held back: {problems}' if problems else ''}")
    if problems:
        raise typer.Exit(1)


@dlq.command()
@_by_conditions
@audited("dlq.discard")
def discard(
    conditions: Conditions,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit.")],
    ids: Ids = None,
    all_: AllOption = False,
    apply: ApplyOption = False,
    by: ByOption = None,
) -> None:
    """Decide against letters, with a reason. They keep their bytes, and `reopen` takes it back."""
    from infra.dlq import letters, view

    selection = _chosen(conditions, ids, all_)
    with _explained(), _database() as connection:
        wanted = letters.ids_of(connection, selection)
        if apply:
            done = letters.discard(connection, wanted, by or letters.operator(), reason)
            kept = f"; {len(wanted) - len(done)} were not open" if len(done) < len(wanted) else ""
            typer.echo(f"discarded: {len(done)}{kept}")
        else:
            for letter in letters.load(connection, wanted[:SHOWN]):
                typer.echo(view.safe(f"{letter.id}: {letter.place} {letter.error_class}: {letter.error}"))
            _dry(f"{len(wanted)} letters would be discarded")


@dlq.command()
@audited("dlq.reopen")
def reopen(
    ids: Annotated[list[int], typer.Argument(help="Discarded letters by id.")],
    by: ByOption = None,
    reason: NoteOption = None,
) -> None:
    """Take a discard back."""
    from infra.dlq import letters

    with _explained(), _database() as connection:
        done = letters.reopen(connection, ids, by or letters.operator(), reason)
    typer.echo(f"open again: {len(done)}")


# What the commands share


def _selection(conditions: Conditions, ids: Sequence[int] | None = None, *, status: str) -> Selection:
    from datetime import UTC, datetime

    from infra.dlq.letters import STATUSES, Selection
    from infra.moments import MomentError, moment

    statuses = STATUSES if status == "all" else tuple(s.strip() for s in status.split(","))
    if unknown := [s for s in statuses if s not in STATUSES]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(STATUSES)}, all", param_hint="--status"
        )
    now = datetime.now(UTC)
    try:
        times = {n: moment(text, now) for n in ("since", "until") if (text := conditions[n])}
    except MomentError as error:
        raise typer.BadParameter(str(error)) from None
    return Selection(ids=tuple(ids or ()), statuses=statuses, **{**conditions, **times})


def _chosen(conditions: Conditions, ids: Sequence[int] | None, all_: bool) -> Selection:
    """The letters meant by a command that changes them; they must be named in some way."""
    # By id whatever their standing, so that each one that cannot be changed is told why.
    selection = _selection(conditions, ids, status="all" if ids else "open,sending")
    if not selection.narrows and not all_:
        raise typer.BadParameter("name letters by id or by --pipeline, --class, --since ..., or give --all")
    return selection


@contextmanager
def _database() -> Iterator[Any]:
    from infra.postgres import connect

    with connect(Settings.load().database_url, "millrace-dlq") as connection:
        connection.execute("SET TIME ZONE 'UTC'")  # times are shown as the logs tell them
        yield connection


@contextmanager
def _codec() -> Iterator[Any]:
    from infra.codec import Codec

    codec = Codec(Settings.load().schema_registry_url)
    try:
        yield codec
    finally:
        codec.close()


def _explained() -> AbstractContextManager[None]:
    from infra.dlq.letters import DlqError

    return explained(DlqError, ConnectionError)


def _dry(sentence: str) -> None:
    typer.echo(f"{sentence}; nothing was done: repeat it with --apply")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from infra.dlq.view import safe

    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "letters", "refused"))
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


def _plain(value: Any) -> Any:
    from datetime import datetime

    from schemas.json_bytes import to_json

    return value.isoformat() if isinstance(value, datetime) else to_json(value)


def _how(set_: list[str] | None, transform: str | None, read_as: int | None, file: Path | None) -> str:
    """How an edit came about, for the audit."""
    parts = [
        f"--read-as {read_as}" if read_as is not None else "",
        f"--file {file.name}" if file else "",
        f"--transform {transform}" if transform else "",
        *(f"--set {text}" for text in set_ or ()),
    ]
    return " ".join(p for p in parts if p) or "written anew"


def _in_editor(codec: Any, connection: Any, wanted: Sequence[int]) -> Any:
    """One letter's event as people leave it in their editor."""
    from infra.dlq import edits, letters
    from schemas.pipelines import PIPELINES

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if len(wanted) != 1 or not editor:
        raise letters.DlqError(
            "say how to edit: --set field=value, --transform, --upgrade, --file, or one letter and $EDITOR"
        )
    (letter,) = letters.load(connection, wanted)
    content = edits.read(codec, edits.topic_of(PIPELINES, letter), letter.to_value)
    with tempfile.NamedTemporaryFile("w", suffix=".json", prefix=f"letter-{letter.id}-") as file:
        file.write(edits.to_json(content.event or {}) + "\n")
        file.flush()
        if subprocess.run([*shlex.split(editor), file.name], check=False).returncode != 0:
            raise letters.DlqError(f"{editor} did not end well, so nothing was edited; try again")
        return edits.from_json(Path(file.name).read_text())


def _edit(
    connection: Any,
    codec: Any,
    pipelines: Any,
    wanted: Sequence[int],
    changes: Sequence[Any],
    whole: Any,
    read_as: int | None,
    apply: bool,
    by: str | None,
    note: str,
) -> None:
    from infra.dlq import edits, letters, view

    made = problems = shown = 0
    for chunk in letters.chunks(wanted, 500):
        proposed: list[Edit] = [
            edits.propose(codec, pipelines, letter, changes, whole=whole, read_as=read_as)
            for letter in letters.load(connection, chunk)
        ]
        gone = edits.store(connection, proposed, by or letters.operator(), note) if apply else []
        for one in proposed:
            problem = one.problem or ("it is no longer open" if one.letter.id in gone else None)
            problems += problem is not None
            made += problem is None
            shown += 1
            if shown > SHOWN:
                continue
            if problem:
                typer.echo(f"{one.letter.id}: {problem}", err=True)
                continue
            same = "" if one.changed else " the event stays the same, written anew with the newest schema"
            typer.echo(f"{one.letter.id}: {one.letter.place}{same}")
            for line in view.difference(one.before or {}, one.after or {}):
                typer.echo(f"    {line}")
    if shown > SHOWN:
        typer.echo(f"... and {shown - SHOWN} more")
    left = f", {problems} could not be" if problems else ""
    if apply:
        typer.echo(f"edited: {made}{left}; send them with `millrace dlq redrive`")
    else:
        _dry(f"{made} of {len(wanted)} letters would be edited{left}")
    if problems:
        raise typer.Exit(1)


def _show_plans(plans: Iterable[Plan], rate: float) -> None:
    from infra.dlq.view import text

    to_send = unchanged = held = 0
    for planned in plans:
        letter = planned.letter
        if planned.topic is None:
            held += 1
            if held <= SHOWN:
                typer.echo(f"{letter.id}: held back: {planned.problem}", err=True)
            continue
        to_send += 1
        unchanged += not letter.edited
        if to_send <= SHOWN:
            typer.echo(
                f"{letter.id}: {letter.place} → {planned.topic.name}, key {text(planned.key)},"
                f" {len(letter.to_value or b'')} bytes,"
                f" {'edited' if letter.edited else 'unchanged since it was refused'}"
            )
    if to_send > SHOWN:
        typer.echo(f"... and {to_send - SHOWN} more")
    if held > SHOWN:
        typer.echo(f"... and {held - SHOWN} more held back", err=True)
    _dry(
        f"{to_send} letters would be sent ({unchanged} unchanged), {held} held back,"
        f" in about {to_send / rate:.0f} s"
    )
