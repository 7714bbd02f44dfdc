"""`millrace verify` and `millrace trace`: do topics and tables agree, and where does a row come from?"""

from __future__ import annotations

import importlib
import json
import sys
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from infra.trace import Followed, Origin, Traced
    from infra.verification import Report

app = typer.Typer()


@app.command()
def verify(
    pipeline: Annotated[
        str | None,
        typer.Argument(help="A pipeline, or all of them; `audit`: the audit log; `ledger`: the chains."),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="First offset of each partition, or a time (ISO 8601).")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Offset or time before which to end. Times are append times.")
    ] = None,
    settled: Annotated[
        bool, typer.Option("--settled", help="Also fail while records are still on their way.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Prove that topics and tables agree: every offset in the sink, in the dead letters, or skipped.

    Reads the topics again and compares rows, dead letters and range records with them; it may run while
    the pipeline works. Exit code 1 names the first offending record of each check that fails.

    `verify audit` walks the chains of the audit log and compares them with the heads that were signed outside
    the database: what was altered, moved, deleted or cut off. Exit code 1 names the first such entry of each
    chain.

    `verify ledger` recomputes the chains of the ledgers and compares them with the heads that were signed
    outside of the database: what was edited, deleted, moved or cut off. Exit code 1 names the first such row
    of each chain.
    """
    if pipeline == "audit":
        _audit(as_json)
        return
    if pipeline == "ledger":
        _ledger(as_json)
        return
    import psycopg

    from infra.arrow import without_pandas
    from infra.codec import RegistryUnavailable
    from infra.log_span import Bound
    from infra.moments import MomentError
    from infra.topic_log import LogUnreadable
    from schemas.declare import DeclarationError
    from schemas.pipelines import PIPELINES
    from sinks.verify import verify as run

    without_pandas()
    try:
        chosen = [PIPELINES[pipeline]] if pipeline else list(PIPELINES)
        begin, end = (Bound.parse(text) if text else None for text in (first, last))
    except (DeclarationError, MomentError) as error:
        raise typer.BadParameter(str(error)) from None
    settings = Settings.load()
    reports: list[Report] = []
    for one in chosen:
        rows = importlib.import_module(f"sinks.{one.name}").ROWS
        try:
            reports.append(run(settings, one, rows, begin, end, _tell))
        except psycopg.errors.SerializationFailure as error:
            _fail(f"the tables were exchanged meanwhile ({error}); run it again")
        except psycopg.Error as error:
            _fail(f"the database does not answer as it should ({error}); see `millrace status`")
        except (LogUnreadable, RegistryUnavailable) as error:
            _fail(str(error))
    if as_json:
        typer.echo(json.dumps([r.document() for r in reports], indent=2))
    else:
        for report in reports:
            _show(report)
    late = [r for r in reports if settled and r.waiting]
    for report in late:
        typer.echo(f"millrace: {report.pipeline}: {report.waiting:,} records are on their way", err=True)
    if late or not all(r.clean for r in reports):
        raise typer.Exit(1)


@app.command()
def trace(
    row: Annotated[
        str | None, typer.Option(help="TABLE:KEY, as card_ledger:e1 or truck_positions:event_id=e1.")
    ] = None,
    record: Annotated[str | None, typer.Option(help="TOPIC/PARTITION/OFFSET, to go the other way.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Trace a row back to its record, input and versions; or a record on to its rows and dead letters."""
    from contextlib import closing

    import psycopg

    from infra.codec import Codec, RegistryUnavailable
    from infra.postgres import connect
    from infra.topic_log import LogUnreadable
    from infra.trace import TraceError, Tracer
    from schemas.pipelines import PIPELINES

    if (row is None) == (record is None):
        raise typer.BadParameter("give either --row TABLE:KEY or --record TOPIC/PARTITION/OFFSET")
    settings = Settings.load()
    try:
        with (
            connect(settings.database_url, "millrace-trace") as connection,
            closing(Codec(settings.schema_registry_url)) as codec,
        ):
            tracer = Tracer(connection, codec, settings.kafka, PIPELINES)
            if row is not None:
                rows = tracer.row(row)
                typer.echo(_json(rows) if as_json else "\n\n".join(map(_traced, rows)))
            elif record is not None:
                followed = tracer.record(record)
                typer.echo(_json(followed) if as_json else _followed(followed))
    except psycopg.Error as error:
        _fail(f"the database does not answer as it should ({error}); see `millrace status`")
    except (TraceError, LogUnreadable, RegistryUnavailable) as error:
        _fail(str(error))


def _audit(as_json: bool) -> None:
    import psycopg

    from infra.audit.log import open_heads
    from infra.audit.verify import verify as run
    from infra.postgres import connect

    settings = Settings.load()
    heads = open_heads(settings)
    try:
        with connect(settings.database_url, "millrace-verify") as connection:
            account = run(connection, heads)
    except psycopg.Error as error:
        _fail(f"the audit log cannot be read ({' '.join(str(error).split())}); see `millrace status`")
    if as_json:
        typer.echo(json.dumps(account.document(), indent=2))
    else:
        for finding in account.findings:
            typer.echo(f" ✗ {finding.sentence}")
        verdict = "is what was written" if account.clean else "is not what was written"
        uncovered = f"; {account.uncovered:,} of them after the last signed head" if account.uncovered else ""
        typer.echo(
            f" audit: {account.entries:,} entries, {account.chains:,} chains, {account.heads:,} signed heads"
            f"{uncovered}: the log {verdict} ({account.seconds:.1f} s)"
        )
    if not account.clean:
        raise typer.Exit(1)


def _ledger(as_json: bool) -> None:
    import psycopg

    from infra.ledger.heads import open_heads
    from infra.ledger.verify import verify as run
    from infra.postgres import connect
    from schemas.pipelines import PIPELINES

    settings = Settings.load()
    heads = open_heads(settings)
    tables = [table for one in PIPELINES for table in one.tables if table.chained]
    try:
        with connect(settings.database_url, "millrace-verify") as connection:
            accounts = [run(connection, heads, table) for table in tables]
    except (psycopg.Error, LookupError) as error:
        _fail(f"the ledger cannot be read ({' '.join(str(error).split())}); see `millrace status`")
    if as_json:
        typer.echo(json.dumps([account.document() for account in accounts], indent=2))
    else:
        for account in accounts:
            for finding in account.findings:
                typer.echo(f" ✗ {finding.sentence}")
            verdict = "is what was written" if account.clean else "is not what was written"
            counted = [
                f"{account.rows:,} rows, {account.chains:,} chains, {account.heads:,} signed heads",
                *([f"{account.uncovered:,} rows after the last signed head"] if account.uncovered else []),
                *([f"{account.before:,} rows of before the chains"] if account.before else []),
                *([f"{account.erased:,} rows erased"] if account.erased else []),
            ]
            typer.echo(f" {account.table}: {'; '.join(counted)}: it {verdict} ({account.seconds:.1f} s)")
    if not all(account.clean for account in accounts):
        raise typer.Exit(1)


def _traced(found: Traced) -> str:
    lines = [f"{found.table}: {_values(found.row)}"]
    if found.place.offset < 0:
        lines.append(
            f"  record     {-1 - found.place.offset} of a replay's own topic: `millrace replay list`"
        )
    elif found.record is None:
        lines.append(f"  record     {found.place} (has left the log)")
    else:
        lines += _origin("record", found.record)
    versions = [
        f"{kind} {version}{f' ({found.published[kind]})' if kind in found.published else ''}"
        for kind, version in found.versions.items()
    ]
    lines.append(
        f"  decided    by {found.processor or 'no processor'}; versions: {', '.join(versions) or 'none'}"
    )
    if found.committed:
        c = found.committed
        lines.append(
            f"  committed  {c['committed_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ} by {c['consumer']}, epoch"
            f" {c['epoch']}, with offsets {c['from_offset']} to {c['to_offset'] - 1}"
        )
    for origin in found.inputs:
        lines += _origin("input", origin)
    if not found.inputs:
        lines.append("  input      not found on the input topics (or the row is the input's own)")
    return "\n".join(lines)


def _followed(found: Followed) -> str:
    lines = _origin("record", found.record)
    lines += [f"  row        {table}: {_values(row)}" for table, row in found.rows]
    lines += [
        f"  dead       by {letter['consumer']}: {letter['error_class']}, {letter['error']}"
        for letter in found.dead_letters
    ]
    if not found.rows and not found.dead_letters:
        lines.append("  no row names it, and no dead letter: on its way, a duplicate, or superseded")
    return "\n".join(lines)


def _origin(word: str, origin: Origin) -> list[str]:
    schema = f"{origin.subject} version {origin.schema_version or 'unknown'} (schema id {origin.schema_id})"
    identity = f"tenant {origin.tenant}, id {origin.event_id}" if origin.event_id else origin.undecodable
    return [
        f"  {word:<10} {origin.place}, appended {origin.append_time:%Y-%m-%d %H:%M:%S.%f}Z; {identity}",
        f"  {'':<10} {schema}",
    ]


def _values(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())


def _json(found: Any) -> str:
    """As JSON; what JSON does not know (times, bytes) as text."""
    from dataclasses import asdict

    documents = [asdict(f) for f in found] if isinstance(found, list) else asdict(found)
    return json.dumps(documents, indent=2, default=str)


COLUMNS = ("in_sink", "duplicates", "dead_letters", "skipped", "decided", "waiting", "wrong", "expired")


def _show(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Unlike a terminal, a file or pipe has no width to which a table should be cut.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    shown = [c for c in COLUMNS if any(getattr(o, c) for o in report.offsets) or c in ("in_sink", "wrong")]
    table = Table(title=f"{report.pipeline}: every offset, once", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("topic")
    table.add_column("read by")
    for column in ("offsets", *shown):
        table.add_column(column.replace("_", " "), justify="right")
    for o in report.offsets:
        table.add_row(o.topic, o.reader, f"{o.total:,}", *(f"{getattr(o, c):,}" for c in shown))
    console.print(table)
    for check in report.checks:
        sign = "[red]✗[/red]" if check.wrong else "[dim]–[/dim]" if not check.compared else "[green]✓[/green]"
        note = f" ({check.note})" if check.note else ""
        console.print(f" {sign} {check.name}: {check.compared:,} {check.unit}{note}", soft_wrap=True)
        if check.wrong:
            console.print(f"   {check.wrong:,} wrong; the first: {check.first}", soft_wrap=True, markup=False)
    verdict = "topics and tables agree" if report.clean else "topics and tables do not agree"
    waiting = f"; {report.waiting:,} records are on their way" if report.waiting else ""
    console.print(f" {report.pipeline}: {verdict}{waiting} ({report.seconds:.1f} s)\n", soft_wrap=True)


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        typer.echo(line, err=True)


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"millrace: {sentence}", err=True)
    raise typer.Exit(1)
