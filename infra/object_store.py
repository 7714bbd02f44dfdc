"""A content-addressed store: bytes under their own SHA-256, written once, checked at every read."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ObjectMissing(LookupError):
    """The store has no object of this digest."""


class ObjectDamaged(Exception):
    """An object's bytes no longer have its digest; restore it from a backup or store it again."""


class ObjectTooLarge(ValueError):
    """More bytes were written to a draft than its limit allows."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A durable object: `digest` is the lower-case hex SHA-256 of its `size_bytes` bytes."""

    digest: str
    size_bytes: int


class Draft(Protocol):
    """An object being written. Leaving its `with` block without `commit` leaves nothing behind."""

    file: BinaryIO
    """The bytes written so far, seekable, for a look before `commit`."""

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises `ObjectTooLarge` beyond the limit."""
        ...

    def commit(self) -> StoredObject:
        """Make it durable under its digest. May block on the disk; doing it again for the same bytes is
        harmless."""
        ...

    def __enter__(self) -> Draft: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectStore(Protocol):
    """Where bytes too large for a topic live. Objects never change: reading is a function of the digest."""

    def draft(self, limit_bytes: int) -> Draft:
        """Begin an object of at most `limit_bytes`."""
        ...

    def put(self, data: bytes) -> StoredObject:
        """Store bytes durably; harmless where they are stored already."""
        ...

    def read(self, digest: str) -> bytes:
        """The bytes of an object; raises `ObjectMissing` or `ObjectDamaged`."""
        ...


class FolderStore:
    """The store on a local folder: `ab/cd/<digest>`, so that no folder grows beyond use.

    An object is written under `incoming/`, synced, renamed, and its folder synced: a crash leaves a whole
    object or none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path(self, digest: str) -> Path:
        """Where the object of this digest lies; raises `ObjectMissing` for what is no digest."""
        # Also keeps a digest out of a forged event from naming a path outside the folder.
        if not _DIGEST.fullmatch(digest):
            raise ObjectMissing(f"{digest!r} is not a SHA-256 digest in lower-case hex")
        return self._folder / digest[:2] / digest[2:4] / digest

    def draft(self, limit_bytes: int) -> FolderDraft:
        self._incoming.mkdir(parents=True, exist_ok=True)
        return FolderDraft(self, self._incoming, limit_bytes)

    def put(self, data: bytes) -> StoredObject:
        with self.draft(len(data)) as draft:
            draft.write(data)
            return draft.commit()

    def read(self, digest: str) -> bytes:
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(f"no object {digest} in the store") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ObjectDamaged(f"the bytes of object {digest} have changed; restore it or store it again")
        return data


class FolderDraft:
    """A draft in a `FolderStore`."""

    def __init__(self, store: FolderStore, incoming: Path, limit_bytes: int) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        descriptor, name = tempfile.mkstemp(dir=incoming)
        os.close(descriptor)
        self._path = Path(name)
        self.file: BinaryIO = self._path.open("w+b")

    def write(self, chunk: bytes) -> None:
        if self._size_bytes + len(chunk) > self._limit_bytes:
            raise ObjectTooLarge(f"the object has more than {self._limit_bytes} bytes")
        self.file.seek(0, os.SEEK_END)
        self.file.write(chunk)
        self._hash.update(chunk)
        self._size_bytes += len(chunk)

    def commit(self) -> StoredObject:
        digest = self._hash.hexdigest()
        path = self._store.path(digest)
        self.file.flush()
        os.fsync(self.file.fileno())
        folders = (path.parent, path.parent.parent, path.parent.parent.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Replacing an equal object is harmless, and repairs a damaged one.
        self._path.replace(path)
        # The parents too: they may be new, and a folder's name is durable only in its parent.
        for folder in folders:
            _sync_folder(folder)
        return StoredObject(digest, self._size_bytes)

    def __enter__(self) -> FolderDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self._path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
