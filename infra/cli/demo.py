"""`millrace demo`: everything at once, with simulated traffic, and an account of it at the end."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import supervisor
from infra.cli import services
from infra.services import choose
from infra.settings import Settings

if TYPE_CHECKING:
    from connectors.traffic import Traffic
    from infra.reconcile import Account
    from infra.watch import Figures, Watch
    from schemas.declare import Pipeline

app = typer.Typer()

LOOK_S = 1.0
LINES_S = 5.0
LONGER_S = 60.0
"""How long the demo goes on beyond its time while some kind of record has not come up yet."""
ANSWERS_S = 60.0
DRAIN_S = 180.0

COUNTED = ("acknowledged", "decided", "in_sink", "duplicates", "dead_letters")
"""What may not be zero in the report."""


class DemoError(RuntimeError):
    """The demo did not come to a good end; the message says at which place."""


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(envvar="DEMO_SECONDS", min=1, help="Stop after this long, drain, and reconcile."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Steps a second for each domain, instead of its own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report to stdout.")] = False,
) -> None:
    """Start everything, feed all domains with simulated traffic, and watch. Ctrl-C stops it all.

    With --seconds, exits 0 only if every acknowledged event is in the sink or among the dead letters; the
    report is written to demo-report.json in the state folder.
    """
    # A plain `kill` shall stop everything as well as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = Settings.load()
    balanced = True
    with _stopped_afterwards(settings):
        try:
            services.start_all(settings)
            report = _Demo(settings, rate).run(seconds)
        except KeyboardInterrupt:
            report = None
        except DemoError as error:
            typer.echo(f"millrace: {error}", err=True)
            raise typer.Exit(1) from None
        if report is not None:
            path = settings.home_path / "demo-report.json"
            path.write_text(json.dumps(report, indent=2) + "\n")
            if as_json:
                typer.echo(json.dumps(report, indent=2))
            _tell(report)
            typer.echo(f"the report is {path}", err=True)
            balanced = bool(report["balanced"])
    if not balanced:
        raise typer.Exit(1)


@contextmanager
def _stopped_afterwards(settings: Settings) -> Iterator[None]:
    """Stop what was not running before: processes, then services."""
    native = choose(settings)
    services_ran = all(one.state == "running" for one in native.status())
    supervisor_ran = supervisor.supervisor_pid(settings.home_path) is not None
    try:
        yield
    finally:
        # An impatient second Ctrl-C must not leave half of it running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not supervisor_ran:
            typer.echo("stopping the processes", err=True)
            supervisor.stop(settings)
        if not services_ran:
            services.stop_services(settings, purge=False)


class _Demo:
    """One run over an instance that is up."""

    def __init__(self, settings: Settings, rate: float | None) -> None:
        from connectors.traffic import Traffic, find_steps
        from infra.watch import Watch
        from schemas.pipelines import PIPELINES

        self.settings = settings
        self.native = choose(settings).kind == "native"
        self.pipelines = PIPELINES
        self.watch: Watch = Watch(settings, PIPELINES)
        self.traffic: Traffic = Traffic(settings, find_steps(PIPELINES), steps_per_second=rate)
        self.figures: dict[str, Figures] = {}
        self.trouble = ""
        self.unseen: list[Pipeline] = list(PIPELINES)
        self.seen_again_s = 0.0
        self.began = time.monotonic()

    def run(self, seconds: float | None) -> dict[str, Any] | None:
        """Run traffic until the time is over (or for ever), then account for it. Raises `DemoError`."""
        self.traffic.start()
        try:
            with _screen(self) as show:
                while not self._time_is_over(seconds):
                    self._look()
                    self.traffic.check()
                    show()
                    time.sleep(LOOK_S)
        except KeyboardInterrupt:
            typer.echo("waiting for the answers to what was sent", err=True)
            self._end_traffic()
            raise
        self._end_traffic()
        typer.echo("traffic has ended; waiting until everything is read", err=True)
        self._drain()
        typer.echo("reconciling topics and database", err=True)
        return self._account(seconds or 0.0)

    def notes(self) -> list[str]:
        """Where to look, and what is wrong at the moment."""
        s = self.settings
        found = [
            f"queries {s.api_url}/docs    ingestion {s.gateway_url}/docs",
            'credentials: eval "$(millrace env)"    tables: psql "$DATABASE_READER_URL"',
            "processes: millrace ps    Ctrl-C stops everything",
        ]
        return [*found, *(f"{n}: {t.trouble}" for n, t in self.traffic.tallies.items() if t.waiting > 20)] + (
            [self.trouble] if self.trouble else []
        )

    def _time_is_over(self, seconds: float | None) -> bool:
        if seconds is None:
            return False
        elapsed_s = time.monotonic() - self.began
        if elapsed_s < seconds:
            return False
        # Each kind of record shall have come up. Counted as at the end, but only every few seconds.
        if elapsed_s > seconds + LONGER_S:
            return True
        if time.monotonic() < self.seen_again_s:
            return False
        self.unseen = [p for p in self.unseen if self._lacks(p)]
        self.seen_again_s = time.monotonic() + LINES_S
        return not self.unseen

    def _lacks(self, pipeline: Pipeline) -> bool:
        from infra.reconcile import reconcile

        counted = reconcile(self.settings, pipeline)
        return not all(getattr(counted, name) for name in COUNTED)

    def _look(self) -> bool:
        """See how far everything is, and that somebody supervises; False where it could not be seen."""
        import psycopg

        from infra.topic_log import LogUnreadable

        if supervisor.supervisor_pid(self.settings.home_path) is None:
            typer.echo("the supervisor was gone; it is started again", err=True)
            supervisor.start(self.settings, native=self.native)
        try:
            self.figures = self.watch.look()
        except (psycopg.Error, LogUnreadable) as error:
            self.trouble = " ".join(str(error).split())
            return False
        self.trouble = ""
        return True

    def _end_traffic(self) -> None:
        from connectors.traffic import TrafficError

        try:
            self.traffic.stop(ANSWERS_S)
        except TrafficError as error:
            raise DemoError(str(error)) from error

    def _drain(self) -> None:
        """Wait until every processor and sink has read everything. Raises `DemoError` naming who has not."""
        end = time.monotonic() + DRAIN_S
        while True:
            lags = None
            if self._look():
                lags = [lag for p in self.pipelines for lag in self.watch.lags(p)]
                if not lags:
                    return
            if time.monotonic() > end:
                told = "; ".join(map(str, lags[:5])) if lags else self.trouble
                raise DemoError(
                    f"not everything was read within {DRAIN_S:.0f} s: {told}; look at `millrace ps` and"
                    f" {self.settings.home_path / 'logs'}"
                )
            time.sleep(LOOK_S / 2)

    def _account(self, seconds: float) -> dict[str, Any]:
        from infra.reconcile import reconcile

        accounts = {p.name: reconcile(self.settings, p) for p in self.pipelines}
        tallies = self.traffic.tallies
        return {
            "pipelines": {
                name: {k: v for k, v in asdict(account).items() if k != "problems"}
                | {"sent": tallies[name].acknowledged if name in tallies else 0}
                for name, account in accounts.items()
            },
            "seconds": seconds,
            "problems": [sentence for name, a in accounts.items() for sentence in _problems(name, a)],
            "balanced": not any(_problems(name, a) for name, a in accounts.items()),
        }


def _problems(name: str, account: Account) -> list[str]:
    zero = [what for what in COUNTED if getattr(account, what) == 0]
    found = [*account.problems, *(f"{name}: nothing was counted as {what}" for what in zero)]
    if not account.balanced and not account.problems:
        found.append(
            f"{name}: {account.acknowledged} acknowledged are not"
            f" {account.in_sink} in the sink + {account.dead_letters} dead letters"
        )
    return found


def _tell(report: dict[str, Any]) -> None:
    for name, counted in report["pipelines"].items():
        typer.echo(
            f"{name:<8} acknowledged {counted['acknowledged']:<7} = in the sink {counted['in_sink']:<7}"
            f" + dead letters {counted['dead_letters']:<5} ({counted['records']} records,"
            f" {counted['duplicates']} duplicates)",
            err=True,
        )
    for sentence in report["problems"]:
        typer.echo(f"millrace: {sentence}", err=True)
    typer.echo(
        "every acknowledged event is accounted for" if report["balanced"] else "NOT balanced", err=True
    )


@contextmanager
def _screen(demo: _Demo) -> Iterator[Callable[[], None]]:
    """Shows the figures at each call: a live table on a terminal, else lines every few seconds."""
    from infra import live_table

    if not sys.stderr.isatty():
        for note in demo.notes():
            typer.echo(note, err=True)
        shown = time.monotonic()

        def lines() -> None:
            nonlocal shown
            if time.monotonic() < shown + LINES_S:
                return
            shown = time.monotonic()
            typer.echo(f"after {shown - demo.began:.0f} s {demo.trouble}".rstrip(), err=True)
            for name, figures in demo.figures.items():
                typer.echo("  " + live_table.line(name, figures), err=True)

        yield lines
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def table() -> None:
            title = f"millrace, {time.monotonic() - demo.began:.0f} s"
            live.update(live_table.render(demo.figures, title, demo.notes()), refresh=True)

        yield table
