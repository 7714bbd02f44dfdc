"""`millrace fleet fences`: the fences that trucks are watched by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from infra.postgres import Connection

app = typer.Typer()
fleet = typer.Typer(help="Trucks and their fences.", no_args_is_help=True)
fences = typer.Typer(help="Versions of the fences.", no_args_is_help=True)
app.add_typer(fleet, name="fleet")
fleet.add_typer(fences, name="fences")

STOP_RADIUS_M = 30.0


@fences.command()
def load(
    path: Annotated[
        Path, typer.Argument(help="GeoJSON FeatureCollection, or stops as .csv or .parquet.", exists=True)
    ],
    radius_m: Annotated[
        float, typer.Option(help="Radius of stops whose file has no column radius_m.")
    ] = STOP_RADIUS_M,
) -> None:
    """Publish a file's fences as the next version; they replace the version in force.

    Trucks are watched by it from the next batch on. Stops have columns latitude, longitude, a name
    (stop_name or name), and maybe an id (stop_id or id), radius_m and buffer_m.
    """
    from infra.postgres import connect
    from infra.versions import publish
    from streams.fleet.fences import FenceError, written_fences

    with connect(Settings.load().database_url) as connection:
        number, before = _in_force(connection)
        try:
            body = written_fences(number + 1, read(path, radius_m), before)
        except (FenceError, ValueError) as error:
            typer.echo(f"millrace: {path.name}: {error}", err=True)
            raise typer.Exit(1) from None
        version = publish(connection, "fleet", "fences", body)
    typer.echo(f"version {version}: {len(body['features'])} fences")


@fences.command("show")
def show() -> None:
    """Print the fences in force as GeoJSON."""
    import json

    from infra.postgres import connect

    with connect(Settings.load().database_url) as connection:
        _, body = _in_force(connection)
    typer.echo(json.dumps(body or {"type": "FeatureCollection", "features": []}, ensure_ascii=False))


def read(path: Path, radius_m: float = STOP_RADIUS_M) -> Any:
    """The GeoJSON in a file, or that of the stops in it. Raises ValueError with the reason and remedy."""
    import json

    import pandas as pd

    if path.suffix not in (".csv", ".parquet"):
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"is not GeoJSON ({error}); give .geojson, .csv or .parquet") from None
    stops = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    missing = {"latitude", "longitude"} - set(stops.columns)
    if missing:
        raise ValueError(f"has no column {min(missing)}; give latitude and longitude in degrees")
    return {"type": "FeatureCollection", "features": [_stop(n, row, radius_m) for n, row in _rows(stops)]}


def _rows(stops: Any) -> Any:
    return enumerate(stops.to_dict("records"), start=1)


def _stop(number: int, row: dict[str, Any], radius_m: float) -> dict[str, Any]:
    identity = str(row.get("stop_id", row.get("id", f"stop-{number}")))
    properties = {
        "name": str(row.get("stop_name", row.get("name", identity))),
        "radius_m": float(row.get("radius_m", radius_m)),
    }
    if "buffer_m" in row:
        properties["buffer_m"] = float(row["buffer_m"])
    return {
        "type": "Feature",
        "id": identity,
        "properties": properties,
        "geometry": {"type": "Point", "coordinates": [float(row["longitude"]), float(row["latitude"])]},
    }


def _in_force(connection: Connection) -> tuple[int, Any]:
    """The highest version's number and body; 0 and None where there is none."""
    from infra.versions import NONE_PUBLISHED, body, latest

    number = latest(connection, "fleet", ["fences"])["fences"]
    return number, None if number == NONE_PUBLISHED else body(connection, "fleet", "fences", number)
