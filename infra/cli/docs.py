"""`millrace docs`: the documentation that is rendered from code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def docs(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a page is stale.")] = False,
) -> None:
    """Render README's pipelines, docs/metrics.md, docs/settings.md and the words of docs/rules.md anew."""
    from infra.documents import ROOT, DocumentError, between_marks, documents
    from models.rules.vocabulary import words
    from schemas.pipelines import PIPELINES

    try:
        rules = between_marks(ROOT / "docs" / "rules.md", "words", "\n".join(_table(words())))
        stale = [page for page in (*documents(PIPELINES), rules) if page.stale]
    except DocumentError as error:
        typer.echo(f"millrace: {error}", err=True)
        raise typer.Exit(1) from None
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


def _table(words: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield "| word | is | meaning |"
    yield "|---|---|---|"
    for word, kind, about in words:
        yield f"| `{word}` | {kind} | {about} |"
