"""Multipart bodies as they stream in: each part straight into a draft of the object store."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from infra.object_store import Draft, ObjectStore, ObjectTooLarge
from infra.problems import Problem

MAX_PARTS = 1_000
MAX_HEADER_BYTES = 8 * 1024


@dataclass(slots=True)
class Part:
    """One part of a body; `draft` is whole. Whoever is given it commits it or leaves it."""

    headers: dict[str, str]
    draft: Draft
    too_large: bool = False
    size_bytes: int = 0

    @property
    def media_type(self) -> str:
        """Lower-case, without parameters; empty where the part does not say."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    @property
    def filename(self) -> str | None:
        """The file name of its Content-Disposition."""
        _, options = parse_options_header(self.headers.get("content-disposition", ""))
        name = options.get(b"filename")
        return name.decode("utf-8", "replace") if name else None


def boundary_of(content_type: str) -> bytes:
    """The boundary that a multipart Content-Type names. Raises `Problem` 400 where it names none."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("Content-Type names no boundary")
    return boundary


async def parts(
    body: AsyncIterator[bytes], boundary: bytes, store: ObjectStore, limit_bytes: int
) -> AsyncGenerator[Part]:
    """The parts of a body, each once it is complete. Raises `Problem` 400 where the body is malformed.

    A part beyond `limit_bytes` comes with `too_large` set and nothing in its draft to commit. A part's
    draft is discarded when the next part is asked for.
    """
    with _Collector(store, limit_bytes) as collector:
        try:
            parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
            async for chunk in body:
                parser.write(chunk)
                while collector.complete:
                    part = collector.complete.popleft()
                    with part.draft:
                        yield part
            parser.finalize()
        except FormParserError as error:
            raise _malformed(str(error)) from error
        if not collector.ended:
            raise _malformed("it ends before its last boundary")


async def single(body: AsyncIterator[bytes], store: ObjectStore, limit_bytes: int) -> AsyncGenerator[Part]:
    """A body that is one file, as `parts` gives it."""
    with store.draft(limit_bytes) as draft:
        part = Part({"content-type": "application/dicom"}, draft)
        async for chunk in body:
            _append(part, chunk)
        yield part


def _append(part: Part, chunk: bytes) -> None:
    part.size_bytes += len(chunk)
    if not part.too_large:
        try:
            part.draft.write(chunk)
        except ObjectTooLarge:
            part.too_large = True


def _malformed(reason: str) -> Problem:
    return Problem(400, "Malformed body", f"The multipart body cannot be read: {reason}; send it again.")


@dataclass(slots=True)
class _Collector:
    """Gathers what the parser calls out into parts."""

    store: ObjectStore
    limit_bytes: int
    complete: deque[Part] = field(default_factory=deque)
    ended: bool = False
    _count: int = 0
    _current: Part | None = None
    _name: bytes = b""
    _value: bytes = b""
    _header_bytes: int = 0

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as discarding:
            for part in (*self.complete, *([self._current] if self._current else [])):
                discarding.enter_context(part.draft)

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise Problem(413, "Too many parts", f"The body has more than {MAX_PARTS} parts; send fewer.")
        self._current = Part({}, self.store.draft(self.limit_bytes))
        self._header_bytes = 0

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += self._header(data, start, end)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._header(data, start, end)

    def _header(self, data: bytes, start: int, end: int) -> bytes:
        self._header_bytes += end - start
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _malformed(f"a part's headers exceed {MAX_HEADER_BYTES} bytes")
        return data[start:end]

    def _header_end(self) -> None:
        assert self._current is not None
        self._current.headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._current is not None
        _append(self._current, data[start:end])

    def _end(self) -> None:
        assert self._current is not None
        self.complete.append(self._current)
        self._current = None

    def _finish(self) -> None:
        self.ended = True
