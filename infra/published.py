"""The descriptions of the APIs that clients are made from, as they are published: files of docs/.

A new description takes the place of the published one where no client breaks by it. `millrace docs --check`,
in `make check`, refuses what would break one; whoever means it says so, with `millrace docs --breaking`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from graphql import build_schema, find_breaking_changes

from infra.documents import Document
from infra.openapi_changes import breaking


@dataclass(frozen=True)
class Published(Document):
    """A description as it should be. `changes`: what of the second text breaks clients of the first."""

    changes: Callable[[str, str], list[str]]

    @property
    def breaking(self) -> list[str]:
        """What would break clients that were made from the published one. Nothing where there is none yet."""
        return self.changes(self.path.read_text(), self.text) if self.path.exists() else []


def openapi(path: Path, app: FastAPI) -> Published:
    """The description of an application's routes."""
    text = json.dumps(app.openapi(), indent=1, sort_keys=True, ensure_ascii=False)
    return Published(path, text + "\n", lambda was, now: breaking(json.loads(was), json.loads(now)))


def graphql(path: Path, schema: str) -> Published:
    """A schema of GraphQL, as its own language has it."""
    return Published(path, schema + "\n", _breaking_schema)


def _breaking_schema(was: str, now: str) -> list[str]:
    return [change.description for change in find_breaking_changes(build_schema(was), build_schema(now))]
