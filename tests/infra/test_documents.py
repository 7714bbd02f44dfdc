"""Rendered documentation: complete, without anything of this machine, and stale when it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.documents import END, ROOT, DocumentError, documents
from infra.settings import SETTINGS
from schemas.pipelines import PIPELINES

BEGIN = "<!-- generated: pipelines (make docs) -->"


def test_the_committed_pages_are_what_the_code_renders() -> None:
    """A change of a declaration, a setting or a metric without `millrace docs` fails here."""
    assert [page.path.name for page in documents(PIPELINES) if page.stale] == []


def test_every_setting_topic_and_table_is_on_a_page_and_no_path_of_this_machine() -> None:
    """What is declared is documented; pages are the same wherever they are rendered."""
    pages = {page.path.name: page.text for page in documents(PIPELINES)}
    assert all(f"`{s.variable}`" in pages["settings.md"] for s in SETTINGS.values())
    for pipeline in PIPELINES:
        assert all(f"`{t.name}`" in pages["README.md"] for t in (*pipeline.topics, *pipeline.tables))
    assert not any(str(place) in text for text in pages.values() for place in (ROOT, Path.home()))


def test_only_the_marked_part_of_the_readme_is_replaced(tmp_path: Path) -> None:
    """What people wrote around the marks stays; a README without them is refused with the remedy."""
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    page = documents(PIPELINES, tmp_path)[0]
    assert page.stale
    assert page.text.startswith(f"above\n{BEGIN}\n| pipeline |")
    assert page.text.endswith(f"```\n{END}\nbelow\n")
    readme.write_text(page.text)
    assert not documents(PIPELINES, tmp_path)[0].stale
    readme.write_text("no marks")
    with pytest.raises(DocumentError, match="add the lines"):
        documents(PIPELINES, tmp_path)
