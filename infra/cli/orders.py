"""`millrace orders`: what only the orders pipeline needs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from infra.settings import Settings

app = typer.Typer()
orders = typer.Typer(help="Orders: opening stock.", no_args_is_help=True)
app.add_typer(orders, name="orders")

FLUSH_SECONDS = 60.0


@orders.callback()
def _group() -> None:
    """Keeps `opening-stock` a command of its own while it is the only one."""


@orders.command("opening-stock")
def opening_stock(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Parquet with sku and quantity.")],
    share: Annotated[
        str, typer.Option(help="Share of each SKU's total positive quantity, rounded down.")
    ] = "0.5",
) -> None:
    """Book opening stock: a share of what a file of orders asks for. Doing it again changes nothing."""
    import pyarrow.parquet as pq

    from connectors.orders.opening_stock import opening_stock as derive
    from connectors.orders.opening_stock import receipts
    from infra.broker import producer
    from infra.codec import Codec
    from schemas.orders import STOCK_RECEIPTS

    try:
        wanted = Fraction(share)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(
            f"{share!r} is no number; give one such as 0.5 or 1/3", param_hint="--share"
        ) from None
    if wanted < 0:
        raise typer.BadParameter(f"{share} is below zero; give a share from 0 upwards", param_hint="--share")
    with pq.ParquetFile(path) as file:
        missing = {"sku", "quantity"} - set(file.schema_arrow.names)
        if missing:
            raise typer.BadParameter(f"{path} has no column {min(missing)}; give a file of order lines")
        stock = derive(file.iter_batches(columns=["sku", "quantity"]), wanted)
    settings = Settings.load()
    codec = Codec(settings.schema_registry_url)
    sender = producer(settings.kafka)
    failed: list[str] = []
    sent = 0
    for event in receipts(stock):
        sender.produce(
            STOCK_RECEIPTS.name,
            codec.encode(STOCK_RECEIPTS, event),
            event[STOCK_RECEIPTS.key].encode(),
            on_delivery=lambda error, _: failed.append(error.str()) if error is not None else None,
        )
        sender.poll(0)
        sent += 1
    unacknowledged = sender.flush(FLUSH_SECONDS)
    if failed or unacknowledged:
        typer.echo(
            f"millrace: the broker has not acknowledged {len(failed) + unacknowledged} of {sent} receipts"
            f"{': ' + failed[0] if failed else ''}; do it again, what has arrived is not booked twice",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"opening stock: {len(stock)} SKUs, {sum(stock.values())} units, {sent} receipts")
