"""`millrace ingest`: the rows of a file, or the files of a folder, into a domain's first topic."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from connectors.files import Ingested

app = typer.Typer()

LINE_S = 5.0


@app.command()
def ingest(
    domain: Annotated[str, typer.Argument(help="fraud, fleet, orders or imaging.")],
    path: Annotated[Path, typer.Argument(exists=True, help="Parquet or CSV; for imaging DICOM or a folder.")],
    rate: Annotated[float | None, typer.Option(min=0.1, help="Most events a second.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Send a file's rows. Run again after whatever happened, it sends what is missing and nothing twice."""
    from infra.arrow import without_pandas
    from infra.services.probe import ProbeError, kafka, registry
    from schemas.declare import DeclarationError
    from schemas.pipelines import PIPELINES

    without_pandas()
    settings = Settings.load()
    try:
        pipeline = PIPELINES[domain]
        kafka(settings.kafka)
        registry(settings.schema_registry_url)
    except DeclarationError as error:
        raise typer.BadParameter(str(error), param_hint="DOMAIN") from None
    except ProbeError as error:
        _fail(f"{error}; start it with `millrace up`")
    module = importlib.import_module(f"connectors.{domain}.files")
    if hasattr(module, "ingest_folder"):
        _ingest_folder(settings, module, path, as_json=as_json)
        return

    from connectors.files import IngestError
    from connectors.files import ingest as send

    try:
        with _progress(path.name) as show:
            done = send(settings, pipeline, path, events_per_second=rate, progress=show)
    except IngestError as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
    elif done.finished_before:
        typer.echo(
            f"{path.name}: all {done.rows:,} rows were sent before, {done.finished_before}; nothing to do"
        )
    else:
        before = f", {done.already:,} were there before" if done.already else ""
        typer.echo(
            f"{path.name} ({done.source}): {done.rows:,} rows, {done.sent:,} events sent{before};"
            f" {done.seconds:.1f} s, {done.rows / max(done.seconds, 1e-9):,.0f} rows/s"
        )
    for reason in done.refused:
        typer.echo(f"refused: {reason}", err=True)
    if done.refused_total:
        _fail(
            f"{done.refused_total} rows are no events and were left out; correct them in a file of their own"
        )


def _ingest_folder(settings: Settings, module: Any, path: Path, *, as_json: bool) -> None:
    """Documents instead of rows: each file is an event, stored by its content."""
    import asyncio
    from contextlib import closing

    from connectors.publish import Publisher
    from infra.codec import Codec
    from infra.object_store import FolderStore
    from infra.problems import Problem

    files = module.files_of(path)
    refused: list[str] = []
    sent = 0

    async def run() -> None:
        nonlocal sent
        with closing(Codec(settings.schema_registry_url)) as codec:
            publisher = Publisher(settings.kafka, codec, name="ingest")
            try:
                shown = time.monotonic()
                async for one in module.ingest_folder(files, publisher, FolderStore(settings.object_store)):
                    sent += one.event_id is not None
                    if one.event_id is None:
                        refused.append(f"{one.path}: {one.reason}")
                    if time.monotonic() > shown + LINE_S:
                        shown = time.monotonic()
                        typer.echo(f"{sent + len(refused):,} of {len(files):,} files", err=True)
            finally:
                await publisher.close()

    began = time.monotonic()
    try:
        asyncio.run(run())
    except Problem as problem:
        _fail(f"{problem}; run the same command again, what was sent takes effect once")
    seconds = time.monotonic() - began
    if as_json:
        result = {"files": len(files), "sent": sent, "refused": refused, "seconds": seconds}
        typer.echo(json.dumps(result, indent=2))
    else:
        rate = len(files) / max(seconds, 1e-9)
        typer.echo(f"{path.name}: {len(files):,} files, {sent:,} sent; {seconds:.1f} s, {rate:,.0f} files/s")
    for reason in refused:
        typer.echo(f"refused: {reason}", err=True)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Ingested], None]]:
    """Shows how far an ingest is: a bar on a terminal, otherwise a line every few seconds."""
    if not sys.stderr.isatty():
        began = shown = time.monotonic()

        def line(done: Ingested) -> None:
            nonlocal shown
            now = time.monotonic()
            if now > shown + LINE_S:
                shown = now
                total = f" of {done.rows_total:,}" if done.rows_total else ""
                rate = f"{done.events / (now - began):,.0f} events/s"
                typer.echo(f"{name}: {done.rows:,}{total} rows, {done.sent:,} sent, {rate}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,} rows"),
        TextColumn("{task.fields[sent]:,} sent"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None, sent=0)

        def bar(done: Ingested) -> None:
            progress.update(task, completed=done.rows, total=done.rows_total, sent=done.sent)

        yield bar


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"millrace: {sentence}", err=True)
    raise typer.Exit(1)
