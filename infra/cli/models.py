"""`millrace models`: train what scores, and put it in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from infra.audit.shell import audited
from infra.settings import Settings

app = typer.Typer()
models = typer.Typer(help="Train models and put them in force.", no_args_is_help=True)
app.add_typer(models, name="models")
train = typer.Typer(help="Train a domain's model.", no_args_is_help=True)
models.add_typer(train, name="train")
evaluate = typer.Typer(help="Say how good a domain's models are.", no_args_is_help=True)
models.add_typer(evaluate, name="evaluate")

LEDGER_ROWS_MIN = 10_000
"""With fewer decisions in the ledger the model learns from simulated traffic."""
SIMULATED_ROWS = 20_000
SIMULATED_NOW_MS = 1_767_225_600_000  # 2026-01-01: the same simulated traffic gives the same model
BATCH = 2_048
ENTITY_KIND = "entity-model"
PARITY_ROWS = 10_000
"""On so many of the rows that it was taught an ONNX form is compared with its model."""


@train.command("fraud")
@audited("models.train")
def train_fraud(
    source: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="A Parquet or CSV file of transactions."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1_000, help="Most rows to train on.")] = 100_000,
) -> None:
    """Train the model and put it in force: from a file, the ledger, or simulated traffic.

    Where it is known which transactions were frauds (a file with a column `is_fraud`, simulated traffic),
    the model gets a forest beside its anomaly score.
    """
    settings = Settings.load()
    from infra import versions
    from infra.postgres import connect
    from models.artifacts import store_artifact
    from models.fraud import train as fit

    with connect(settings.database_url, "millrace-models") as connection:
        if source is not None:
            learned_from, decisions = source.name, _of_file(source, rows)
        else:
            found = _of_ledger(connection, rows)
            if len(found) >= LEDGER_ROWS_MIN:
                learned_from, decisions = "card_ledger", iter(found)
            else:
                learned_from, decisions = "simulated traffic", _simulated(min(rows, SIMULATED_ROWS))
        typer.echo(f"training on {learned_from}", err=True)
        artifact = fit(decisions)
        card = {
            "domain": "fraud",
            "kind": "isolation forest" + (" and random forest" if artifact["forest"] else ""),
            "features": list(artifact["features"]),
            "rows": artifact["rows"],
            "frauds": artifact["frauds"],
            "learned_from": learned_from,
        }
        sha256 = store_artifact(settings.object_store, artifact, card)
        version = versions.latest(connection, "fraud", ["model"])["model"]
        if version and versions.body(connection, "fraud", "model", version)["sha256"] == sha256:
            typer.echo(f"fraud model {version} is the same already ({sha256[:12]})")
            return
        version = versions.publish(connection, "fraud", "model", {"sha256": sha256, **card})
    taught = (
        f"{artifact['frauds']} frauds among them"
        if artifact["forest"]
        else "too few known frauds for a forest"
    )
    typer.echo(f"fraud model {version} is in force: {artifact['rows']} rows, {taught}, {sha256[:12]}")


@evaluate.command("fraud")
def evaluate_fraud(
    paths: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="Parquet or CSV files in the handbook's format."),
    ],
    weeks: Annotated[
        int, typer.Option(min=1, max=52, help="Test this many weeks, the last of the files.")
    ] = 4,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day to test on; that of the files."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(file_okay=False, help="A folder for report.html and report.json.")
    ] = None,
) -> None:
    """Measure fraud models on labelled transactions, by windows that the stream's own code finds.

    Prints the table of the Fraud Detection Handbook's chapter 3 beside what is published, and our model week
    by week: each is trained on what was known before it, and calibrated on the weeks before.
    """
    from connectors.fraud.labelled import LabelledError, read
    from infra.cli._labelled_rows import rows_of
    from models.handbook.evaluate import evaluate as measure
    from models.handbook.evaluate import folds_of, whole_days
    from models.handbook.report import as_json, calibration_words, drift_words, page, tables
    from models.handbook.weekly import kept_from
    from models.too_little import TooLittleError

    try:
        labelled = read(paths)
        first, last = whole_days(labelled.occurred_at)
        if until is not None:
            last = min(last, (until - datetime(1970, 1, 1)).days)  # noqa: DTZ001 - days alone
        folds, table_fold = folds_of(first, last, weeks)
        rows = rows_of(labelled, kept_from([*folds, table_fold]), last, _say)
        totals = (len(labelled), int(labelled.is_fraud.sum()))
        found = measure(labelled.name, rows, totals, folds, table_fold, _say)
    except (LabelledError, TooLittleError) as error:
        raise typer.BadParameter(str(error), param_hint="PATHS") from None
    _print_tables(tables(found))
    typer.echo(calibration_words(found))
    typer.echo(drift_words(found))
    if len(folds) < weeks:
        typer.echo(f"the files reach back far enough for {len(folds)} of {weeks} weeks", err=True)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / "report.html").write_text(page(found))
        (report / "report.json").write_text(as_json(found))
        typer.echo(f"{report / 'report.html'} is written")


def _say(what: str) -> None:
    typer.echo(what, err=True)


def _print_tables(found: Iterable[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]) -> None:
    for title, headings, rows in found:
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        typer.echo(title)
        for row in (headings, *rows):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            typer.echo("  " + "  ".join(cells))
        typer.echo()


@train.command("fraud-entities")
@audited("models.train")
def train_fraud_entities(
    paths: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="Parquet or CSV files in the handbook's format."),
    ],
) -> None:
    """Train the model that knows customers and terminals, and register it with its ONNX form.

    It learns from what is known when the files end; its card says what it would have reached in their last
    week. It decides nothing: no processor keeps the windows of terminals yet.
    """
    from connectors.fraud.labelled import LabelledError, read
    from infra import versions
    from infra.cli._labelled_rows import rows_of
    from infra.postgres import connect
    from models.artifacts import store_artifact, store_form
    from models.entities import TRAINED_DAYS
    from models.handbook.evaluate import whole_days
    from models.handbook.metrics import Metrics
    from models.handbook.protocol import TEST_DAYS, Fold, day_name
    from models.handbook.weekly import Weekly, kept_from
    from models.onnx_form import check_parity, onnx_form
    from models.too_little import TooLittleError

    settings = Settings.load()
    try:
        labelled = read(paths)
        _, last = whole_days(labelled.occurred_at)
        next_week, last_week = Fold(last + 1), Fold(last + 1 - TEST_DAYS)
        rows = rows_of(labelled, kept_from([last_week]), last, _say)
        weekly = Weekly(rows, _say)
        model = weekly.model(next_week)
        reached = Metrics.of(weekly.chances(last_week))
    except (LabelledError, TooLittleError) as error:
        raise typer.BadParameter(str(error), param_hint="PATHS") from None
    form = onnx_form(model.trees, model.calibration, model.features)
    distance = check_parity(form, model.trees, model.calibration, rows.ours[-PARITY_ROWS:])
    card = {
        "domain": "fraud",
        "kind": "boosted trees, calibrated",
        "features": list(model.features),
        "learned_from": labelled.name,
        "trained_from": day_name(max(int(rows.days[0]), next_week.trained_until - TRAINED_DAYS)),
        "trained_until": day_name(next_week.trained_until),
        "tested_from": day_name(last_week.tested_from),
        "auc_roc": round(reached.auc_roc, 4),
        "average_precision": round(reached.average_precision, 4),
        "card_precision_100": round(reached.card_precision, 4),
        "onnx_sha256": store_form(settings.object_store, form),
        "onnx_distance": distance,
    }
    sha256 = store_artifact(settings.object_store, model.artifact(), card)
    with connect(settings.database_url, "millrace-models") as connection:
        version = versions.publish(connection, "fraud", ENTITY_KIND, {"sha256": sha256, **card})
    typer.echo(
        f"fraud {ENTITY_KIND} {version} is registered: {sha256[:12]}, average precision"
        f" {reached.average_precision:.3f} and CP@100 {reached.card_precision:.3f} in the week from"
        f" {card['tested_from']}; its ONNX form differs by at most {distance:.1g}"
    )


@models.command("list")
def list_() -> None:
    """Every registered model of fraud, the newest first."""
    from psycopg.rows import dict_row

    from infra.postgres import connect

    with (
        connect(Settings.load().database_url, "millrace-models") as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        cursor.execute(
            "SELECT kind, version, created_at, author, body FROM versions"
            " WHERE pipeline = 'fraud' AND kind = ANY(%s) ORDER BY kind, version DESC",
            (["model", ENTITY_KIND],),
        )
        for row in cursor:
            body = row["body"]
            precision = body.get("average_precision")
            reached = "" if precision is None else f", average precision {precision:.3f}"
            typer.echo(
                f"{row['kind']} {row['version']}  {row['created_at']:%Y-%m-%dT%H:%M:%SZ}  {row['author']}"
                f"  {body['sha256'][:12]}  {body['kind']}, learned from {body['learned_from']}{reached}"
            )


@models.command()
def ensure() -> None:
    """Train what a domain needs and nobody has trained yet; `millrace up` does this."""
    from infra.postgres import connect
    from infra.versions import NONE_PUBLISHED, latest

    with connect(Settings.load().database_url, "millrace-models") as connection:
        missing = latest(connection, "fraud", ["model"])["model"] == NONE_PUBLISHED
    if missing:
        train_fraud(source=None, rows=SIMULATED_ROWS)


def _of_ledger(connection: Any, rows: int) -> list[dict[str, Any]]:
    """The newest decisions of the ledger, as the events they came from."""
    from psycopg.rows import dict_row

    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT (extract(epoch FROM occurred_at) * 1000)::bigint AS occurred_at, amount_minor, channel,"
            " country, home_country, count_10m, sum_10m_minor, count_1h, sum_1h_minor, count_24h,"
            " sum_24h_minor, max_24h_minor, merchants_24h, count_7d, sum_7d_minor, max_7d_minor,"
            " since_previous_ms FROM card_ledger WHERE count_10m IS NOT NULL"
            " ORDER BY card_ledger.occurred_at DESC LIMIT %s",
            (rows,),
        )
        found: list[dict[str, Any]] = cursor.fetchall()
        return found


def _of_file(path: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Decisions on the first rows of a file that `millrace ingest fraud` knows."""
    import pyarrow.csv
    import pyarrow.parquet

    from connectors.fraud.files import FILES, LABEL

    if path.suffix == ".csv":
        batches: Iterable[Any] = pyarrow.csv.open_csv(path)
        names = pyarrow.csv.open_csv(path).schema.names
    else:
        file = pyarrow.parquet.ParquetFile(path)
        batches, names = file.iter_batches(), file.schema_arrow.names
    source = next((f for f in FILES if f.columns <= set(names)), None)
    if source is None:
        known = " or ".join(f"{f.name} ({', '.join(sorted(f.columns))})" for f in FILES)
        raise typer.BadParameter(
            f"{path.name} has other columns than {known}; rename them", param_hint="--from"
        )

    def events() -> Iterator[dict[str, Any]]:
        for batch in batches:
            labels = batch[LABEL].to_pylist() if LABEL in names else [None] * len(batch)
            for (_, event), label in zip(source.events(batch, 0), labels, strict=True):
                yield {**event, LABEL: None if label is None else bool(label)}

    return _decided(islice(events(), rows))


def _simulated(rows: int) -> Iterator[dict[str, Any]]:
    """Decisions on simulated traffic."""
    from connectors.fraud.files import LABEL
    from connectors.fraud.http import Transaction
    from connectors.fraud.traffic import steps
    from connectors.traffic import Http
    from schemas.roles import HOME_TENANT

    def events() -> Iterator[dict[str, Any]]:
        stolen: set[str] = set()
        for step in steps(Random(0), lambda: SIMULATED_NOW_MS, stolen):  # noqa: S311 -- simulation
            if isinstance(step, Http):
                for body in step.json if isinstance(step.json, list) else [step.json]:
                    event = Transaction.model_validate(body).event(HOME_TENANT)
                    if event["occurred_at"] <= SIMULATED_NOW_MS:  # the rest is poison
                        yield {**event, LABEL: event["event_id"] in stolen}

    return _decided(islice(events(), rows))


def _decided(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Events with the windows that the processor's own code finds for them, as if from one partition."""
    import numpy as np
    import pyarrow as pa

    from infra.columns import arrow_schema
    from schemas.fraud import CARD_TRANSACTIONS
    from streams.decide import ColumnRecords, Stretch
    from streams.fraud.histories import WINDOWS, Histories
    from streams.fraud.scoring import place

    schema = arrow_schema(CARD_TRANSACTIONS)
    state = Histories()
    remaining = iter(events)
    while batch := list(islice(remaining, BATCH)):
        # Appended all at once: no card is idle.
        places = np.zeros(len(batch), dtype=np.int64)
        columns = pa.RecordBatch.from_pylist(batch, schema=schema)
        records = ColumnRecords(CARD_TRANSACTIONS.name, places, places, places, columns)
        found = place([Stretch(state, 0, len(batch))], records)
        state.keep([b""] * len(batch))
        state.delta()
        for row, event in enumerate(batch):
            if found.first[row] == row:
                windows = dict(zip(WINDOWS, found.windows[row].tolist(), strict=True))
                yield {**event, **windows}
