"""Documentation that is rendered from code, so that it cannot be wrong: each page, or part of one, once.

`millrace docs` writes them, `millrace docs --check` (in `make check`) says which one is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.settings import SETTINGS, Settings
from infra.telemetry import metrics
from schemas.declare import Pipeline, Pipelines

ROOT = Path(__file__).parents[1]
END = "<!-- end generated -->"


class DocumentError(RuntimeError):
    """A page that cannot be rendered; the message says what to write into it."""


@dataclass(frozen=True)
class Document:
    """A page as it should be."""

    path: Path
    text: str

    @property
    def stale(self) -> bool:
        return not self.path.exists() or self.path.read_text() != self.text


def documents(pipelines: Pipelines, root: Path = ROOT) -> list[Document]:
    """Every rendered page. Raises `DocumentError` where README.md lacks the place for its part."""
    readme = root / "README.md"
    return [
        between_marks(readme, "pipelines", "\n".join(_pipelines(pipelines))),
        Document(root / "docs" / "metrics.md", metrics.render_docs()),
        Document(root / "docs" / "settings.md", "\n".join(_settings()) + "\n"),
    ]


def between_marks(path: Path, what: str, part: str) -> Document:
    """The page with its generated part made anew. Raises `DocumentError` where it has no place for it."""
    begin = f"<!-- generated: {what} (make docs) -->"
    text = path.read_text() if path.exists() else ""
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise DocumentError(f"{path.name} has no place for the {what}; add the lines {begin} and {END}")
    return Document(path, f"{before}{begin}\n{part}\n{END}{after}")


def _pipelines(pipelines: Pipelines) -> Iterator[str]:
    yield "| pipeline | what it does | inputs (key) | processors | results | tables |"
    yield "|---|---|---|---|---|---|"
    for p in pipelines:
        inputs = ", ".join(f"`{t.name}` ({t.key})" for t in p.inputs)
        processors = ", ".join(f"`{x.name}`" for x in p.processors)
        results = ", ".join(f"`{t.name}`" for t in p.topics if t not in p.inputs)
        tables = ", ".join(f"`{t.name}`" for t in p.tables)
        yield f"| **{p.name}** | {p.about} | {inputs} | {processors} | {results} | {tables} |"
    yield ""
    yield "```mermaid"
    yield "flowchart LR"
    for p in pipelines:
        yield from _diagram(p)
    yield "```"


def _diagram(p: Pipeline) -> Iterator[str]:
    """Connectors, topics, processors and tables of one pipeline, as Mermaid nodes and edges.

    Ids carry a prefix by kind: a pipeline, a table and a topic may all be called the same.
    """
    yield f"  subgraph pipeline-{p.name}[{p.name}]"
    yield "    direction LR"
    for topic in p.topics:
        yield f"    topic-{topic.name}[/{topic.name}/]"
    for processor in p.processors:
        yield f"    processor-{processor.name}({processor.name})"
        yield from (f"    topic-{t.name} --> processor-{processor.name}" for t in processor.sources)
        yield from (f"    processor-{processor.name} --> topic-{t.name}" for t in processor.outputs)
    for table in p.tables:
        yield f"    table-{table.name}[({table.name})]"
        yield f"    topic-{table.topic.name} --> table-{table.name}"
    yield "  end"
    for topic in p.inputs:
        yield f"  connectors --> topic-{topic.name}"


def _settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Rendered from `infra/settings.py` by `millrace docs`; do not edit. Each is an environment"
    yield "variable; a default that depends on others is shown for an instance that sets none."
    yield ""
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    # Neither this machine's paths nor the secrets of an instance on it may come into the page.
    unset = Settings({SETTINGS["home"].variable: "/<MILLRACE_HOME>"})
    for setting in SETTINGS.values():
        default = (
            setting.default(unset).replace(f"{ROOT}/", "").replace("/<MILLRACE_HOME>", "<MILLRACE_HOME>")
        )
        default = default.replace(":@", ":<secret>@")
        yield f"| `{setting.variable}` | {f'`{default}`' if default else ''} | {setting.help} |"
