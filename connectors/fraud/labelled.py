"""Transactions of which it is known whether they were fraud: files in the handbook's format, as the stream
sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from connectors.fraud.files import FILES, LABEL

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HANDBOOK = next(file for file in FILES if file.name == "fraud-detection-handbook")
COLUMNS = ("transaction_id", "occurred_at", "customer_id", "terminal_id", "amount", LABEL)
ROWS_MAX = 20_000_000
"""Of all files together; reading them takes about 60 bytes a row."""
BATCH = 8_192


class LabelledError(ValueError):
    """A file that cannot be learned from; the message names the column, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled transactions in the order of their event time. All arrays are by row.

    `occurred_at` is in ms since 1970, UTC; `amount_minor` in minor units; `table` has `COLUMNS`.
    """

    name: str
    table: pa.Table
    occurred_at: Ints
    customers: Ints
    amount_minor: Ints
    is_fraud: Bools

    def __len__(self) -> int:
        return len(self.occurred_at)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, Bools]]:
        """Columns of `card-transactions`, as `millrace ingest fraud` makes them, and their labels."""
        assert HANDBOOK.event_columns is not None
        start = 0
        for batch in self.table.to_batches(max_chunksize=BATCH):
            columns = HANDBOOK.event_columns(batch, start)
            assert columns is not None, "what `read` lets through can be ingested by column"
            yield columns, self.is_fraud[start : start + batch.num_rows]
            start += batch.num_rows


def read(paths: Sequence[Path]) -> Labelled:
    """The transactions of Parquet or CSV files in the handbook's format, sorted by time, ties by their id.

    Raises `LabelledError` where a column is missing, empty somewhere or of another type, an id comes twice or
    an amount is no amount, and for more than `ROWS_MAX` rows.
    """
    table = pa.concat_tables([_read(path) for path in paths])
    if table.num_rows > ROWS_MAX:
        raise LabelledError(f"there are {table.num_rows} rows; give at most {ROWS_MAX}, such as a year less")
    number, at_ms = (table[n].to_numpy() for n in ("transaction_id", "occurred_at"))
    if not ((np.diff(at_ms) > 0) | ((np.diff(at_ms) == 0) & (np.diff(number) > 0))).all():
        order = np.lexsort((number, at_ms))
        table, number, at_ms = table.take(pa.array(order)), number[order], at_ms[order]
    in_order = np.sort(number)
    again = np.flatnonzero(np.diff(in_order) == 0)
    if len(again):
        raise LabelledError(
            f"transaction_id {in_order[again[0]]} comes more than once; give each transaction once"
        )
    amount = table["amount"].to_numpy()
    if not (np.isfinite(amount) & (amount >= 0)).all():
        raise LabelledError("amount is negative or no number in some row; leave such rows out")
    label = table[LABEL].to_numpy()
    if not np.isin(label, (0, 1)).all():
        raise LabelledError(f"{LABEL} is neither 0 nor 1 in some row; give one of them for every row")
    return Labelled(
        ", ".join(path.name for path in paths),
        # The handbook's events are made of a time stamp.
        table.set_column(1, "occurred_at", table["occurred_at"].cast(pa.timestamp("ms"))).combine_chunks(),
        at_ms,
        table["customer_id"].to_numpy(),
        np.rint(amount * 100.0).astype(np.int64),
        label == 1,
    )


def _read(path: Path) -> pa.Table:
    """The file's columns, each of one type whatever the file has; its time as int64 in ms."""
    try:
        if path.suffix == ".csv":
            table = pyarrow.csv.read_csv(path)
        else:
            names = set(pyarrow.parquet.read_schema(path).names)
            table = pyarrow.parquet.read_table(path, columns=[n for n in COLUMNS if n in names])
    except (pa.ArrowException, OSError) as error:
        raise LabelledError(f"{path.name} is no Parquet or CSV file ({error}); give one") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise LabelledError(
            f"{path.name} has no column {missing[0]}; give a file with {', '.join(COLUMNS[:-1])} and {LABEL}"
        )
    if not table.num_rows:
        raise LabelledError(f"{path.name} has no row; give a file of transactions")
    columns = []
    for name in COLUMNS:
        column = table[name]
        if column.null_count:
            raise LabelledError(
                f"{name} is empty in {column.null_count} rows of {path.name}; fill or leave out"
            )
        kind = pa.float64() if name == "amount" else pa.int64()
        try:
            if name == "occurred_at":
                column = (
                    column
                    if pa.types.is_timestamp(column.type)
                    else pc.strptime(column, "%Y-%m-%d %H:%M:%S", "ms")
                    if pa.types.is_string(column.type)
                    else column.cast(pa.timestamp("ms"))
                ).cast(pa.timestamp("ms"))
            columns.append(column.cast(kind))
        except pa.ArrowException as error:
            raise LabelledError(
                f"{name} of {path.name} is {column.type} and no {kind}; write it so ({error})"
            ) from error
    return pa.table(columns, names=list(COLUMNS))
