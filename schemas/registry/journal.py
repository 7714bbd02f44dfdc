"""The registry's memory on disk: an append-only file of checksummed JSON lines.

A line is `CRC32 of the JSON, 8 hex digits` + space + JSON + newline. `append` returns only after
fsync, so whatever was acknowledged is read again after any crash. One process may hold a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

JOURNAL_NAME = "journal.log"
LOCK_NAME = "registry.lock"

Event = dict[str, Any]


class JournalError(RuntimeError):
    """The journal cannot be opened or written; the message names the file, the reason and the remedy."""


class Journal:
    """Opens (or creates) the journal in `folder` and locks the folder until `close`.

    `events` are those read at opening, in order. Raises JournalError if another process holds the
    folder or if any complete line is damaged. An incomplete last line, which only a crash before
    its acknowledgement can leave, is removed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(
                f"state folder {folder} cannot be used: {error.strerror}; choose another --state-dir"
            ) from error
        try:
            self._hold(folder)
            self.path = folder / JOURNAL_NAME
            created = not self.path.exists()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if created:
                _sync_folder(folder)
                _sync_folder(folder.parent)
            self.events = self._read()
            self._lines = len(self.events)
        except BaseException:
            os.close(self._lock)
            raise
        self._failed: str | None = None
        self._closed = False

    def _hold(self, folder: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise JournalError(
                f"state folder {folder} is in use by process {holder};"
                " stop that registry or choose another --state-dir"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _read(self) -> list[Event]:
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            os.ftruncate(self._file, len(content) - len(torn))
            os.fsync(self._file)
        lines = whole.split(b"\n") if whole else []
        self._size = len(content) - len(torn)
        return [self._event(number, line) for number, line in enumerate(lines, start=1)]

    def _event(self, number: int, line: bytes) -> Event:
        checksum, _, body = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(body):
            event = json.loads(body)
            if isinstance(event, dict) and event.get("line") == number:
                return event
            reason = "is out of place: a line before it is missing or doubled"
        else:
            reason = "does not match its checksum"
        raise JournalError(
            f"line {number} of {self.path} {reason}, so schema ids could change their meaning;"
            " restore the file from a backup, or choose another --state-dir and register the schemas anew"
        )

    def append(self, event: Event) -> None:
        """Store one event durably. Raises JournalError if it is not certain to be stored.

        After a failed fsync the disk's content is unknown, so every later append is refused until a
        restart has read the file again.
        """
        if self._failed:
            raise JournalError(self._failed)
        event = {"line": self._lines + 1, **event}
        body = json.dumps(event, separators=(",", ":")).encode()
        line = b"%08x %b\n" % (zlib.crc32(body), body)
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(0, f"only {written} of {len(line)} bytes fitted")
        except OSError as error:
            self._undo()
            raise JournalError(
                f"{self.path} cannot be written: {error.strerror}; free disk space and retry"
            ) from error
        try:
            os.fsync(self._file)
        except OSError as error:
            self._failed = f"{self.path} could not be synced: {error.strerror}; check the disk and restart"
            raise JournalError(self._failed) from error
        self._size += len(line)
        self._lines += 1

    def _undo(self) -> None:
        try:
            os.ftruncate(self._file, self._size)
        except OSError as error:
            # A half line in the middle would make the next start refuse the whole file.
            self._failed = f"{self.path} has a half line: {error.strerror}; check the disk and restart"

    def close(self) -> None:
        """Release file and folder; a second call does nothing. Appending afterwards is refused."""
        if not self._closed:
            self._closed = True
            self._failed = "the registry is shutting down; retry when it is up again"
            os.close(self._file)
            os.close(self._lock)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
