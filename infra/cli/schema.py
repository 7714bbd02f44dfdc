"""`millrace schema`: may this schema be deployed, and in which order?"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.settings import Settings

app = typer.Typer()
schema = typer.Typer(
    help="Schemas: check changes before they are deployed, release versions.", no_args_is_help=True
)
app.add_typer(schema, name="schema")

Names = Annotated[list[str] | None, typer.Argument(help="Schemas by name; default all.")]


@schema.command()
def check(
    names: Names = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the registry out.")] = False,
    level: Annotated[
        str, typer.Option(help="What a change owes the released versions, in Confluent's words.")
    ] = "FULL_TRANSITIVE",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare the working tree's schemas with the released ones and the registry; exit 1 if one breaks them.

    For each change it tells the difference, whom it concerns, and in which order to deploy.
    """
    from infra.codec import RegistryUnavailable
    from infra.schema_versions import example_problems, registered
    from schemas.avro import SchemaError
    from schemas.compatibility import Level
    from schemas.pipelines import PIPELINES
    from schemas.released import affected, judge, roll_out

    try:
        owed = Level(level)
    except ValueError:
        raise typer.BadParameter(f"{level} is none of {', '.join(Level)}", param_hint="--level") from None
    chosen = _chosen(names)
    told: list[dict[str, Any]] = []
    try:
        subjects = [] if offline else registered(Settings.load().schema_registry_url, chosen)
    except RegistryUnavailable as error:
        typer.echo(f"millrace: {error}; start it, or leave it out with --offline", err=True)
        raise typer.Exit(1) from None
    for one in chosen:
        try:
            verdict = judge(one, owed)
        except SchemaError as error:
            typer.echo(f"millrace: {one.path.name}: {error}", err=True)
            raise typer.Exit(1) from None
        who = affected(PIPELINES, one.topics)
        found = [s for s in subjects if s.subject in {t.subject for t in one.topics}]
        told.append(
            {
                "schema": one.name,
                "topics": [t.name for t in one.topics],
                "released": [r.version for r in one.releases],
                "unreleased": verdict.unreleased,
                "changes": [str(c) for c in verdict.changes],
                "breaking": [*verdict.breaking, *example_problems(one)],
                "producers": who.producers,
                "consumers": who.consumers,
                "roll_out": roll_out(verdict, who),
                "registry": [
                    {
                        "subject": s.subject,
                        "level": s.level,
                        "versions": s.versions,
                        "version": s.version,
                        "foreign": s.foreign,
                        "breaking": s.breaking,
                    }
                    for s in found
                ],
            }
        )
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        for entry in told:
            _say(entry)
    broken = [e for e in told if e["breaking"] or any(s["breaking"] for s in e["registry"])]
    if not as_json:
        released = sum(not e["unreleased"] for e in told)
        where = "released versions" if offline else "released versions and the registry"
        typer.echo(
            f"{len(told)} schemas against {where}: {released} as released,"
            f" {len(told) - released - len([e for e in broken if e['unreleased']])} may be released,"
            f" {len(broken)} break"
        )
    if broken:
        raise typer.Exit(1)


@schema.command()
def release(names: Names = None) -> None:
    """Write schemas that changed down as released versions, with the bytes of their examples; commit them."""
    from infra.schema_versions import ReleaseRefused
    from infra.schema_versions import release as write

    released = 0
    for one in _chosen(names):
        try:
            version = write(one)
        except ReleaseRefused as error:
            typer.echo(f"millrace: {error}", err=True)
            raise typer.Exit(1) from None
        if version is not None:
            released += 1
            typer.echo(f"{one.name}: version {version} is released")
    typer.echo(
        f"{released} released; commit the new files" if released else "every schema is released already"
    )


def _chosen(names: list[str] | None) -> list[Any]:
    from schemas.pipelines import PIPELINES
    from schemas.released import declared

    found = {d.name: d for d in declared(PIPELINES)}
    if unknown := [n for n in names or () if n not in found]:
        raise typer.BadParameter(f"there is no schema {unknown[0]!r}; there are: {', '.join(found)}")
    return [found[n] for n in names or found]


def _say(entry: dict[str, Any]) -> None:
    """One schema for people; nothing where there is nothing to say."""
    say = typer.echo
    notes = [
        f"registry: {s['subject']} version {n} was never released from this tree; its records are read,"
        " but find out who registered it"
        for s in entry["registry"]
        for n in s["foreign"]
    ]
    broken = [*entry["breaking"], *(f"{s['subject']}: {r}" for s in entry["registry"] for r in s["breaking"])]
    if not (entry["changes"] or entry["unreleased"] or broken or notes):
        return
    state = "breaks what was released" if broken else "changed" if entry["changes"] else "as released"
    if entry["unreleased"] and not entry["released"]:
        state = "never released; `millrace schema release` does it"
    say(f"{entry['schema']}: {state}")
    for change in entry["changes"]:
        say(f"    {change}")
    for reason in broken:
        say(f"  ✗ {reason}")
    if entry["changes"] or broken:
        say(f"  producers: {', '.join(entry['producers']) or 'none'}")
        say(f"  consumers: {', '.join(entry['consumers']) or 'none'}")
    for n, step in enumerate(entry["roll_out"], 1):
        say(f"  {n}. {step}")
    for note in notes:
        say(f"  {note}")
