"""A folder of DICOM files (or one file) into the pipeline: each is indexed, or refused with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from connectors.imaging.uploads import Event, upload_event
from connectors.publish import Publisher
from infra.dicom import MAX_FILE_BYTES, Unacceptable, identify, one_line
from infra.object_store import ObjectStore, ObjectTooLarge
from schemas.imaging import DICOM_UPLOADS

PUBLISHED_TOGETHER = 64
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of one file: its event's id, or the reason for which none could be made."""

    path: Path
    event_id: str | None
    reason: str | None = None


def files_of(path: Path) -> list[Path]:
    """Every file below a folder, in a fixed order; a file alone is itself."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file())


async def ingest_folder(
    files: list[Path], publisher: Publisher, store: ObjectStore, tenant: str = "default"
) -> AsyncIterator[Ingested]:
    """Store and publish files; each is given back once the broker has its event.

    A file without a readable identity is published too: the processor refuses it into the dead letters,
    where its reason outlives this command. Only what cannot be read or is too large has no event. Event ids
    are made from the content, so an ingest that was interrupted is simply run again.
    """
    remaining = iter(files)
    while together := list(islice(remaining, PUBLISHED_TOGETHER)):
        made = [(path, await asyncio.to_thread(_stored_event, path, store, tenant)) for path in together]
        await publisher.publish_many(DICOM_UPLOADS, [e for _, e in made if not isinstance(e, str)])
        for path, event in made:
            if isinstance(event, str):
                yield Ingested(path, None, event)
            else:
                yield Ingested(path, event["event_id"])


def _stored_event(path: Path, store: ObjectStore, tenant: str) -> Event | str:
    """The event of a file whose bytes are durable, or the reason why there is none."""
    try:
        file = path.open("rb")
    except PermissionError as error:
        return one_line(f"it cannot be read: {error.strerror}; make it readable")
    with file, store.draft(MAX_FILE_BYTES) as draft:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                draft.write(chunk)
        except ObjectTooLarge:
            return f"it has more than {MAX_FILE_BYTES} bytes, which is the limit"
        try:
            identity = identify(draft.file)
        except Unacceptable:
            identity = None
        return upload_event(draft.commit(), identity, tenant=tenant, source="folder", filename=path.name)
