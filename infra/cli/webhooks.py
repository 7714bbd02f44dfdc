"""`millrace webhooks`: who is told of decisions, by webhook or by mail, and what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.audit.shell import audited
from infra.cli._explained import explained
from infra.settings import Settings

if TYPE_CHECKING:
    from connectors.outward.signing import Vault

app = typer.Typer()
webhooks = typer.Typer(
    help="Who is told of decisions: receivers of webhooks (https://…), and mailboxes (mailto:…).",
    no_args_is_help=True,
)
app.add_typer(webhooks, name="webhooks")

Endpoint = Annotated[str, typer.Argument(help="The endpoint's id, as `webhooks list` gives it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


@webhooks.command()
@audited("webhooks.add")
def add(
    target: Annotated[str, typer.Argument(help="https://host/path, or mailto:somebody@example.com.")],
    tenant: Annotated[str, typer.Option(help="Whose decisions.")] = "default",
    merchant: Annotated[
        str | None, typer.Option(help="Only this merchant's; else all of the tenant.")
    ] = None,
    decision: Annotated[
        list[str] | None, typer.Option(help="APPROVE, REVIEW or DECLINE; may be repeated. Default: all.")
    ] = None,
    risk_min: Annotated[float, typer.Option(min=0, max=1, help="Only from this risk on.")] = 0.0,
    about: Annotated[str, typer.Option(help="A note for people.")] = "",
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="Sign by a key pair, too (v1a): the receiver holds no secret.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell somebody of what is decided from now on. Shows the receiver's keys, this once."""
    from connectors.outward import endpoints

    with _explained(), _database() as connection:
        added = endpoints.add(
            Settings.load(),
            connection,
            _vault(),
            target,
            tenant=tenant,
            merchant=merchant,
            decisions=[d.upper() for d in decision] if decision else endpoints.DECISIONS,
            risk_min=risk_min,
            about=about,
            asymmetric=ed25519,
        )
    if as_json:
        told = {"endpoint_id": added.endpoint_id, "keys": added.keys, "token": added.token}
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"endpoint  {added.endpoint_id}")
    for key in added.keys:
        typer.echo(f"{'public' if key.startswith('whpk_') else 'secret'}    {key}")
    if added.token:
        typer.echo(f"token     {added.token}")
        typer.echo("secret and token are not shown again; give them to the receiver", err=True)


@webhooks.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List endpoints with what waits for each."""
    from infra import deliveries as queue

    with _explained(), _database() as connection:
        found = queue.listed(connection)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    _table(
        ("endpoint", "target", "of", "decisions", "risk", "status", "waiting", "failures", "last success"),
        [
            (
                e["endpoint_id"],
                e["target"],
                e["tenant"] + (f"/{e['merchant_id']}" if e["merchant_id"] else ""),
                ",".join(e["decisions"]),
                f"≥ {e['risk_min']:g}" if e["risk_min"] else "",
                e["status"] + (f": {e['reason']}" if e["reason"] else ""),
                str(e["pending"]),
                str(e["failures"]),
                f"{e['last_success_at']:%m-%d %H:%M:%S}" if e["last_success_at"] else "never",
            )
            for e in found
        ],
    )


@webhooks.command()
@audited("webhooks.rotate")
def rotate(
    endpoint: Endpoint,
    overlap: Annotated[float, typer.Option(min=0, help="Hours for which the old secret signs along.")] = 24.0,
) -> None:
    """Give an endpoint new secrets; the old ones sign along until the overlap ends."""
    from connectors.outward import endpoints

    with _explained(), _database() as connection:
        for key in endpoints.rotate(connection, _vault(), endpoint, overlap * 3600):
            typer.echo(key)


@webhooks.command()
@audited("webhooks.disable")
def disable(
    endpoint: Endpoint,
    reason: Annotated[str, typer.Option(help="Why.")] = "by an operator",
) -> None:
    """Send nothing to an endpoint; what is decided meanwhile waits for it."""
    from infra import deliveries as queue

    with _explained(), _database() as connection:
        queue.disable(connection, endpoint, reason)


@webhooks.command()
@audited("webhooks.enable")
def enable(endpoint: Endpoint) -> None:
    """Go on with an endpoint where it stopped."""
    from infra import deliveries as queue

    with _explained(), _database() as connection:
        queue.enable(connection, endpoint)


@webhooks.command()
@audited("webhooks.remove")
def remove(endpoint: Endpoint) -> None:
    """Forget an endpoint, with all that waits for it."""
    from connectors.outward import endpoints

    with _explained(), _database() as connection:
        endpoints.remove(connection, endpoint)


@webhooks.command()
@audited("webhooks.replay")
def replay(
    endpoint: Endpoint,
    first: Annotated[str, typer.Option("--from", help="A cursor, or a time (ISO 8601, or 2h ago as 2h).")],
    last: Annotated[str | None, typer.Option("--to", help="Likewise, inclusive; else up to now.")] = None,
) -> None:
    """Send what was told in a range once more, under the same ids, behind what waits already."""
    from infra import deliveries as queue

    start, end = _bound(first, "--from"), _bound(last, "--to") if last else None
    with _explained(), _database() as connection:
        queued = queue.replay(connection, endpoint, start, end)
    typer.echo(f"queued: {queued}; `millrace webhooks deliveries {endpoint}` shows what becomes of them")


@webhooks.command()
def deliveries(
    endpoint: Endpoint,
    status: Annotated[str | None, typer.Option(help="Only pending, delivered or dropped.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most listed.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List an endpoint's deliveries, newest first."""
    from infra import deliveries as queue

    with _explained(), _database() as connection:
        found = queue.deliveries(connection, endpoint, limit, status)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    _table(
        ("cursor", "webhook-id", "event", "origin", "status", "attempts", "last", "answer"),
        [
            (
                str(d["sequence"] or ""),
                d["message_id"],
                f"{d['event_id']} {d['decision']}" if d["event_id"] else "",
                d["origin"],
                d["status"],
                str(d["attempts"]),
                f"{d['last_attempt_at']:%m-%d %H:%M:%S}" if d["last_attempt_at"] else "",
                d["last_error"] or (f"{d['last_status']}, {d['last_ms']} ms" if d["last_status"] else ""),
            )
            for d in found
        ],
    )


@webhooks.command()
@audited("webhooks.test")
def test(
    endpoint: Endpoint,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for what becomes of it.")] = 20.0,
) -> None:
    """Send a test message, and say what the receiver answered. Exit code 1 where it was not taken."""
    from infra import deliveries as queue

    with _explained(), _database() as connection:
        delivery = queue.send_test(connection, endpoint)
        end = time.monotonic() + wait
        row: Any = None
        while time.monotonic() < end and (row is None or not row[1]):
            time.sleep(0.1)
            row = connection.execute(
                "SELECT status, attempts, last_status, last_ms, last_error FROM outward_deliveries"
                " WHERE delivery_id = %s",
                (delivery,),
            ).fetchone()
    if row and row[0] == "delivered":
        typer.echo(f"delivered: {row[2]} after {row[3]} ms")
        return
    reason = row[4] if row and row[1] else "not tried yet; see `millrace ps` for connector-webhooks"
    typer.echo(f"millrace: {reason}", err=True)
    raise typer.Exit(1)


def _bound(text: str, option: str) -> int | datetime:
    from infra.moments import MomentError, moment_or_offset

    try:
        return moment_or_offset(text)
    except MomentError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _vault() -> Vault:
    from connectors.outward.deliverer import open_vault

    return open_vault(Settings.load())


@contextmanager
def _database() -> Iterator[Any]:
    from infra.postgres import connect

    with connect(Settings.load().database_url, "millrace-webhooks-cli") as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        yield connection


def _explained() -> AbstractContextManager[None]:
    from connectors.outward.guard import AllowError
    from infra.deliveries import EndpointError

    return explained(EndpointError, AllowError)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        # What a receiver answered is shown as text, whatever it contains.
        table.add_row(*(Text("".join(c if c.isprintable() else " " for c in cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 220).print(table)
