"""`millrace ps`: the platform's own processes, and what `up`, `down` and `status` need to know of them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from typing import Annotated, Any

import typer

from infra import supervisor, tls
from infra.settings import Settings
from infra.supervisor import ProcessState, State, SupervisorError

app = typer.Typer()

READY_S = 120.0


def start_processes(settings: Settings, *, native: bool, progress: Callable[[str], None]) -> None:
    """Start the supervisor and return when every process says that it is ready.

    Raises `SupervisorError` naming those that are not when nothing new has happened for two minutes.
    """
    began = last_news = time.monotonic()
    prepare_log = settings.home_path / "logs" / "prepare.log"
    read = prepare_log.stat().st_size if prepare_log.exists() else 0
    supervisor.start(settings, native=native)
    told: set[str] = set()
    while True:
        if prepare_log.exists():
            with prepare_log.open() as lines:
                lines.seek(read)
                for line in lines:
                    last_news = time.monotonic()
                    progress(line.rstrip())
                read = lines.tell()
        found = processes(settings)
        for one in found:
            if one["ready"] and _name(one) not in told:
                told.add(_name(one))
                last_news = time.monotonic()
                progress(f"{_name(one)} is ready")
        if found and len(told) == len(found):
            progress(f"{len(found)} processes are ready ({time.monotonic() - began:.1f} s)")
            return
        if time.monotonic() > last_news + READY_S:
            late = [f"{_name(o)} ({o['state']}: {o['not_ready']})" for o in found if not o["ready"]]
            raise SupervisorError(
                f"not ready after {READY_S:.0f} s: {'; '.join(late) or 'the supervisor'}; "
                f"look into {settings.home_path / 'logs'}"
            )
        time.sleep(0.3)


def processes(settings: Settings) -> list[dict[str, Any]]:
    """Every process of ours as `ps --json` prints it; empty where none runs and no supervisor lives."""
    home = settings.home_path
    report = supervisor.read_report(home)
    alive = {p.pid for p in supervisor.living(home).values()}
    if report is None or (supervisor.supervisor_pid(home) is None and not alive):
        return []
    found = [p if p.pid is None or p.pid in alive else _ended(p) for p in report.processes]
    with ThreadPoolExecutor(len(found) or 1) as pool:
        reasons = list(pool.map(lambda p: _not_ready(settings, p), found))
    return [
        {
            "role": p.role,
            "pipeline": p.pipeline,
            "instance": p.instance,
            "pid": p.pid,
            "state": p.state,
            "restarts": p.restarts,
            "since": p.since,
            "port": p.port,
            "last_exit": p.last_exit,
            "ready": reason is None,
            "not_ready": reason,
        }
        for p, reason in zip(found, reasons, strict=True)
    ]


def line(one: dict[str, Any]) -> str:
    """One process for people."""
    pid = f"pid {one['pid']}" if one["pid"] else ""
    restarts = f"{one['restarts']} restarts" if one["restarts"] else ""
    sign = "●" if one["ready"] else "▲" if one["state"] == State.RUNNING else "○"
    return (
        f"{sign} {_name(one):<20}{one['state']:<9}127.0.0.1:{one['port']:<8}{pid:<13}"
        f"{restarts:<12}{one['not_ready'] or ''}"
    ).rstrip()


@app.command()
def ps(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List every process of ours: role, pipeline, pid, state, restarts, port of /metrics and /health."""
    settings = Settings.load()
    found = processes(settings)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for one in found:
        typer.echo(line(one))
    if not found:
        typer.echo("no process runs; start them with `millrace up`", err=True)
    elif supervisor.supervisor_pid(settings.home_path) is None:
        typer.echo("the supervisor does not run; start it with `millrace up`", err=True)


def _name(one: dict[str, Any]) -> str:
    return f"{one['role']} {one['pipeline']} {one['instance'] or ''}".rstrip()


def _ended(process: ProcessState) -> ProcessState:
    # Between its end and the supervisor's next look, or for good where the supervisor is dead as well.
    return replace(process, state=State.BACKOFF, pid=None, started=None)


def _not_ready(settings: Settings, process: ProcessState) -> str | None:
    """Why a process is not ready, in its own words; None if it is."""
    if process.state is not State.RUNNING:
        return f"exit code {process.last_exit}" if process.last_exit is not None else "not running"
    path = "subjects" if process.role == "registry" else "health/ready"
    try:
        url, context = tls.of_our_own(settings, process.port)
        with urllib.request.urlopen(f"{url}/{path}", timeout=2, context=context):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        try:
            conditions = json.loads(error.read())["conditions"]
        except (ValueError, KeyError, TypeError):
            return f"answers {error.code}"
        return "; ".join(f"{name}: {reason}" for name, reason in conditions.items() if reason != "ok")
    except (OSError, HTTPException):
        return "does not answer yet"
