"""`millrace replay`: history through the current code, beside live traffic; compare it, put it in force."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.audit.shell import audited
from infra.cli._explained import explained
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.codec import Codec
    from infra.postgres import Connection
    from infra.replay.comparison import Difference, Refusals
    from infra.replay.engine import Engine
    from infra.replay.live import Live
    from infra.replay.places import Places
    from infra.replay.plan import Plan
    from infra.replay.runs import Run
    from schemas.declare import Pipeline

app = typer.Typer()
replay = typer.Typer(
    help="Read history again through the current code: plan, run, diff, swap, abort, list.",
    no_args_is_help=True,
)
app.add_typer(replay, name="replay")

Name = Annotated[str, typer.Argument(metavar="PIPELINE", help="As `fraud`.")]
RunId = Annotated[int, typer.Argument(metavar="RUN", help="Number of the run; see `millrace replay list`.")]
Since = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME|OFFSET", help="First record; otherwise all that the topics hold."),
]
Until = Annotated[
    str | None,
    typer.Option("--to", metavar="TIME|OFFSET", help="Without these and later ones; otherwise follow live."),
]
EventTime = Annotated[
    bool, typer.Option("--event-time", help="--from and --to are event times, not append times.")
]
InPlace = Annotated[
    bool,
    typer.Option("--in-place", help="Only store the results there are once more, into the live tables."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@replay.command("plan")
def plan_(
    pipeline: Name,
    since: Since = None,
    until: Until = None,
    event_time: EventTime = False,
    in_place: InPlace = False,
    as_json: Json = False,
) -> None:
    """Show what a replay would read, which rows it can change, and what it holds back. Changes nothing."""
    with _explained(), _tools() as (settings, connection, codec):
        from infra.replay.plan import plan

        declared, places = _resolved(settings, codec, pipeline, since, until, event_time, in_place)
        found = plan(settings, connection, codec, declared, places, in_place=in_place)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else "\n".join(_plan_lines(found)))


@replay.command("run")
@audited("replay.run")
def run_(
    pipeline: Annotated[str | None, typer.Argument(metavar="PIPELINE", help="As `fraud`.")] = None,
    since: Since = None,
    until: Until = None,
    event_time: EventTime = False,
    in_place: InPlace = False,
    versions: Annotated[
        str,
        typer.Option(
            help="Rules, fences and models: `current` ones, or `as-decided` by live at each place of the log."
        ),
    ] = "current",
    rate: Annotated[
        float | None, typer.Option(min=1, metavar="RECORDS/S", help="Read no faster than this.")
    ] = None,
    resume: Annotated[
        int | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was ended or killed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay into tables of the run's own, or with --in-place into the live ones. Live traffic goes on.

    The command can be killed at any moment; --resume goes on where it was.
    """
    with _explained(), _tools() as (settings, connection, codec):
        from infra.replay import runs
        from infra.replay.work import work

        if (resume is None) == (pipeline is None):
            raise typer.BadParameter("name a pipeline, or the run to --resume")
        if versions not in (runs.CURRENT, runs.AS_DECIDED):
            raise typer.BadParameter(
                f"{versions!r} is neither current nor as-decided", param_hint="--versions"
            )
        if resume is not None:
            run = runs.find(connection, resume)
            declared = _declared(run.pipeline)
            if run.status not in ("running", "ready"):
                raise runs.RunRefused(f"replay {run.run_id} is {run.status}; begin a new one")
        else:
            assert pipeline is not None
            declared, places = _resolved(settings, codec, pipeline, since, until, event_time, in_place)
            options = {
                "from": since,
                "to": until,
                "event_time": event_time,
                "versions": versions,
                "rate": rate,
            }
            run = runs.create(settings, connection, declared, places, options, in_place=in_place)
            _say(f"replay {run.run_id} of {declared.name}, in {run.schema}; resume it with"
                 f" `millrace replay run --resume {run.run_id}`")  # fmt: skip
        with runs.alone(connection, run.run_id):
            rate = rate or run.options.get("rate")
            with _engine(settings, connection, codec, run, declared, rate) as (engine, live, look):
                began = time.monotonic()
                work(settings, connection, run, declared, engine, live, look, _say)
            runs.became(connection, run.run_id, "ready")
            run = runs.find(connection, run.run_id)
    if as_json:
        typer.echo(json.dumps({"run": run.run_id, "status": run.status, "records": run.records_done}))
        return
    typer.echo(
        f"replay {run.run_id} is ready: {run.records_done:,} records in {time.monotonic() - began:.1f} s;"
        f" next: `millrace replay {'abort' if run.in_place else 'diff'} {run.run_id}`"
    )


@replay.command()
def diff(
    run: RunId,
    samples: Annotated[int, typer.Option(min=0, help="Rows to show of each kind.")] = 5,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A column whose differences do not count; may be repeated.")
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with code 1 where anything differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a run's tables with the live ones: rows added, changed and gone, with samples."""
    with _explained(), _tools() as (settings, connection, _):
        from infra.replay import runs
        from infra.replay.comparison import compare, refusals

        found = runs.find(connection, run)
        declared = _declared(found.pipeline)
        if found.in_place:
            raise runs.RunRefused(f"replay {run} wrote in place: it has no tables to compare")
        if found.status not in ("running", "ready"):
            raise runs.RunRefused(f"replay {run} is {found.status}: there is nothing left to compare")
        tables = compare(settings, connection, found, declared, samples=samples, ignored=ignore or ())
        refused = refusals(connection, found, declared)
    if as_json:
        rows = [{**asdict(d), "empty": d.empty} for d in tables]
        letters = [asdict(r) for r in refused]
        answer = {"run": run, "status": found.status, "tables": rows, "dead_letters": letters}
        typer.echo(json.dumps(answer, indent=2, default=str))
    else:
        typer.echo("\n".join(_diff_lines(found, tables, refused)))
    if exit_code and not (all(d.empty for d in tables) and not refused):
        raise typer.Exit(1)


@replay.command()
@audited("replay.swap")
def swap(
    run: RunId,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="The live processors do not run: do not wait for them.")
    ] = False,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="Also where topics no longer hold all that the state depends on."),
    ] = False,
) -> None:
    """Put a ready run in force: views, API and processors go on with its tables and state."""
    with _explained(), _tools() as (settings, connection, codec):
        from infra.replay import runs
        from infra.replay.swap import refuse_unswappable
        from infra.replay.swap import swap as exchange

        with runs.alone(connection, run):
            found = runs.find(connection, run)
            declared = _declared(found.pipeline)
            refuse_unswappable(settings, connection, found, declared, incomplete=incomplete)
            with _engine(settings, connection, codec, found, declared, None) as (engine, live, look):
                done = exchange(
                    settings, connection, found, declared, engine, live, look,
                    stopped=stopped, incomplete=incomplete, say=_say,
                )  # fmt: skip
    typer.echo(
        f"{', '.join(done.tables)} stand for replay {run} now; the processors were held for"
        f" {done.held_s:.1f} s. `millrace replay abort {run}` deletes the tables of before"
    )


@replay.command()
@audited("replay.abort")
def abort(run: RunId) -> None:
    """Delete all that belongs to a run; after a swap, the tables that it took out of force."""
    with _explained(), _tools() as (settings, connection, _):
        from infra.replay import runs

        with runs.alone(connection, run):
            found = runs.find(connection, run)
            gone = runs.abort(settings, connection, found, _declared(found.pipeline))
    typer.echo(f"replay {run}: {', '.join(gone) + ' deleted' if gone else 'nothing was left'}")


@replay.command("list")
def list_(as_json: Json = False) -> None:
    """List the runs, the newest first."""
    with _explained(), _tools() as (_, connection, _codec):
        from infra.replay import runs

        found = [(r, runs.worked_on(connection, r.run_id)) for r in runs.listed(connection)]
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "run": r.run_id,
                        "pipeline": r.pipeline,
                        "in_place": r.in_place,
                        "status": r.status,
                        "working": working,
                        "records_done": r.records_done,
                        "records_all": r.records_all,
                        "options": r.options,
                        "started_by": r.started_by,
                        "started_at": r.started_at,
                        "updated_at": r.updated_at,
                        **r.places.to_json(),
                    }
                    for r, working in found
                ],
                indent=2,
                default=str,
            )
        )
        return
    for r, working in found:
        state = "running" if working else "ended early" if r.status == "running" else r.status
        kind = "in place" if r.in_place else r.schema
        typer.echo(
            f"{r.run_id:>4}  {r.pipeline:<10} {state:<12} {kind:<12} {r.records_done:>12,}"
            f" of {r.records_all:,}"
            f"  from {r.options['from'] or 'the beginning'} to {r.options['to'] or 'live'}"
            f"  {r.started_at:%Y-%m-%d %H:%M} {r.started_by}"
        )
    if not found:
        typer.echo("there is no replay; `millrace replay plan PIPELINE` shows what one would do", err=True)


# Joining the layers


def _explained() -> AbstractContextManager[None]:
    from infra.checkpoints import Fenced, PositionRefused
    from infra.replay.places import RangeRefused
    from infra.replay.runs import RunRefused
    from infra.topic_log import LogUnreadable
    from schemas.declare import DeclarationError

    return explained(RangeRefused, RunRefused, DeclarationError, LogUnreadable, PositionRefused, Fenced)


@contextmanager
def _tools() -> Iterator[tuple[Settings, Connection, Codec]]:
    from contextlib import closing

    from infra.codec import Codec
    from infra.postgres import connect

    settings = Settings.load()
    with (
        connect(settings.database_url, "millrace-replay") as connection,
        closing(Codec(settings.schema_registry_url)) as codec,
    ):
        yield settings, connection, codec


def _declared(name: str) -> Pipeline:
    from schemas.pipelines import PIPELINES

    return PIPELINES[name]


def _resolved(
    settings: Settings,
    codec: Codec,
    name: str,
    since: str | None,
    until: str | None,
    event_time: bool,
    in_place: bool,
) -> tuple[Pipeline, Places]:
    from infra.replay.places import bound, resolve

    declared = _declared(name)
    places = resolve(
        settings,
        codec,
        declared,
        bound(since, "--from"),
        bound(until, "--to"),
        event_time=event_time,
        in_place=in_place,
    )
    return declared, places


@contextmanager
def _engine(
    settings: Settings,
    connection: Connection,
    codec: Codec,
    run: Run,
    declared: Pipeline,
    rate: float | None,
) -> Iterator[tuple[Engine, Live, Callable[[], float]]]:
    """The run's stages, opened at their positions, and a look at live traffic that reports progress."""
    import importlib

    logics = importlib.import_module(f"streams.{declared.name}").PROCESSORS
    rows = importlib.import_module(f"sinks.{declared.name}").ROWS
    with opened(settings, connection, codec, run, declared, logics, rows, rate, _say) as tools:
        yield tools


@contextmanager
def opened(
    settings: Settings,
    connection: Connection,
    codec: Codec,
    run: Run,
    declared: Pipeline,
    logics: Mapping[str, Callable[[], Any]],
    rows: Any,
    rate: float | None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Engine, Live, Callable[[], float]]]:
    """As `_engine`, for a pipeline whose logics and rows are given."""
    from infra.generations import run_url
    from infra.replay import runs
    from infra.replay.engine import Engine, Stage
    from infra.replay.live import Live
    from infra.replay.places import source_topics
    from infra.replay.work import Reporter
    from schemas.replayed import held_back
    from sinks.replay import SinkStage
    from streams.replay import ProcessorStage

    runs.prepare_topics(settings, run, declared)
    pipeline = run.of(declared)
    url = run_url(settings.database_url, run.run_id, in_place=run.in_place)
    back = held_back(declared)
    stages: list[Stage] = [
        ProcessorStage(settings, pipeline, p, logics[p.name](), codec, url, back[p.name])
        for p in pipeline.processors
    ]
    stages.append(SinkStage(settings, pipeline, rows, codec, url, in_place=run.in_place))
    sources = source_topics(declared, in_place=run.in_place)
    live = Live(settings, declared, sources, in_place=run.in_place)
    engine = Engine(settings, stages, rate)
    reporter = Reporter(connection, run, engine, live, say)
    try:
        engine.open(sources)
        yield engine, live, reporter.look
    finally:
        engine.close()


# For people


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _time(ms: int | None) -> str:
    return "–" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"replay of {plan.pipeline}"
    for t in plan.topics:
        yield (
            f"  {t.topic}: {t.records:,} records in {t.partitions} partitions,"
            f" about {t.bytes_about / 1e6:,.1f} MB"
        )
        yield f"    appended {_time(t.append_from_ms)} to {_time(t.append_to_ms)} UTC"
        yield f"    event time {_time(t.event_from_ms)} to {_time(t.event_to_ms)} UTC (sampled)"
        longest = (
            "the whole topic"
            if t.memory_ms is None
            else f"the longest window, {t.memory_ms / 86_400_000:g} days"
        )
        if t.warm_up_records:
            yield f"    {t.warm_up_records:,} records before them warm the state up ({longest})"
        elif t.memory_ms != 0:
            yield f"    no warm-up: it begins where the topic does (state reaches back {longest})"
    for table in plan.tables:
        fate = "a ledger: compared, never swapped" if table.append_only else "may be swapped"
        yield f"  {table.table}: {table.rows:,} rows, {table.in_reach:,} of them may change; {fate}"
    for processor, outputs in plan.held_back.items():
        yield f"  {processor} decides {', '.join(outputs)} anew but writes none of it"
    for e in plan.effects:
        yield f"  held back: {e['effect']} ({e['about']}), {e['requests']:,} since the first record"
    if not plan.effects:
        yield "  outside effects held back: none is declared"
    for warning in plan.warnings:
        yield f"  warning: {warning}"


def _diff_lines(run: Run, tables: list[Difference], refused: list[Refusals]) -> Iterator[str]:
    yield f"replay {run.run_id} of {run.pipeline} ({run.status}), beside live"
    yield (
        "  "
        + f"{'table':<24}{'live':>12}{'replayed':>12}{'same':>12}"
        + "".join(f"{kind:>10}" for kind in ("added", "changed", "gone", "later"))
    )
    for d in tables:
        yield (
            f"  {d.table:<24}{d.live:>12,}{d.replayed:>12,}{d.same:>12,}"
            f"{d.added:>10,}{d.changed:>10,}{d.gone:>10,}{d.later:>10,}"
        )
    for d in tables:
        if d.columns:
            yield f"  {d.table} changed in " + ", ".join(f"{c} ({n:,})" for c, n in d.columns.items())
        for kind, rows in d.samples.items():
            for row in rows:
                yield f"  {d.table} {kind}: {json.dumps(row, default=str)}"
        if d.comparison_table and not d.empty:
            yield f"  {d.table} is append-only; what differs stands in {d.comparison_table}"
    for r in refused:
        where = f"{r.error_class}, {r.field}" if r.field else r.error_class
        counts = f"live {r.live:,}, replayed {r.replayed:,}"
        yield f"  dead letters of {r.consumer} ({where}): {counts}: {r.example}"
    if all(d.empty for d in tables) and not refused:
        yield "  nothing differs"
