"""`millrace docs`: the documentation that is rendered from code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infra.published import Published

app = typer.Typer()


@app.command()
def docs(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a page is stale.")] = False,
    breaking: Annotated[
        bool, typer.Option("--breaking", help="Publish descriptions of the APIs that break clients, too.")
    ] = False,
) -> None:
    """Render README's pipelines, docs/metrics.md, docs/settings.md and the words of docs/rules.md anew.

    And publish the descriptions of the APIs: openapi.json, openapi-gateway.json and schema.graphql in docs/.
    """
    from infra.documents import ROOT, DocumentError, between_marks, documents
    from models.rules.vocabulary import words
    from schemas.pipelines import PIPELINES

    try:
        rules = between_marks(ROOT / "docs" / "rules.md", "words", "\n".join(_table(words())))
        published = _published(ROOT / "docs")
        stale = [page for page in (*documents(PIPELINES), rules, *published) if page.stale]
    except DocumentError as error:
        typer.echo(f"millrace: {error}", err=True)
        raise typer.Exit(1) from None
    broken = [(p.path.relative_to(ROOT), reason) for p in published for reason in p.breaking]
    if broken and not breaking:
        for name, reason in broken:
            typer.echo(f"millrace: {name}: {reason}", err=True)
        typer.echo(
            "millrace: clients of the published API would break; keep what they use beside what is new, or"
            " publish it all the same with `millrace docs --breaking`",
            err=True,
        )
        raise typer.Exit(1)
    for page in stale:
        name = page.path.relative_to(ROOT)
        if check:
            typer.echo(f"millrace: {name} is stale; run `millrace docs` and commit it", err=True)
        else:
            page.path.parent.mkdir(parents=True, exist_ok=True)
            page.path.write_text(page.text)
            typer.echo(f"{name} is written")
    if check and stale:
        raise typer.Exit(1)


def _published(folder: Path) -> list[Published]:
    """The descriptions of all that clients are made for, whatever the settings of this instance are."""
    from api.app import create_app as create_api
    from api.graphql.routes import SCHEMA
    from connectors.gateway import create_app as create_gateway
    from infra.published import graphql, openapi
    from infra.settings import Settings

    settings = Settings({})
    return [
        openapi(folder / "openapi.json", create_api(settings)),
        openapi(folder / "openapi-gateway.json", create_gateway(settings)),
        graphql(folder / "schema.graphql", SCHEMA.as_str()),
    ]


def _table(words: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield "| word | is | meaning |"
    yield "|---|---|---|"
    for word, kind, about in words:
        yield f"| `{word}` | {kind} | {about} |"
