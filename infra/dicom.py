"""Reading DICOM files of unknown origin: bounded, without surprises, and with readable refusals.

Connectors read who a file is (`identify`), the processor reads it whole (`read`); both refuse the same
files for the same reasons.
"""

from __future__ import annotations

import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom import config
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest file that is accepted, also after inflating a deflated one."""

_SERIES_UID_TAG = 0x0020000E
_IDENTITY_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_PREAMBLE_BYTES = 132
_MOST_NOTES = 8
_NOTE_CHARACTERS = 200
_INFLATE_BYTES = 1024 * 1024

# pydicom keeps its reading mode, and Python its warning filters, in globals of the process.
_PYDICOM = threading.Lock()


class Unacceptable(ValueError):
    """A file that cannot be indexed: `field` is at fault, `reason` says why and what helps."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a file is. All four are well-formed UIDs, the class one of the standard's storage classes."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str


@contextmanager
def quietly(notes: list[str]) -> Iterator[None]:
    """Run pydicom with its warnings turned into `notes` (each once, clipped) and without validation.

    Holds a lock of the process, as pydicom's settings are global; keep the body short.
    """
    with _PYDICOM, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mode = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = mode
            for warning in caught:
                note = one_line(str(warning.message))
                if note not in notes and len(notes) < _MOST_NOTES:
                    notes.append(note)


def one_line(text: str) -> str:
    """A library's message in one printable line of bounded length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _NOTE_CHARACTERS else line[: _NOTE_CHARACTERS - 1] + "…"


def identify(file: BinaryIO) -> Identity:
    """Read who a file is from its head, without its pixels. Raises `Unacceptable`."""

    def beyond_identity(tag: int, vr: str | None, length: int) -> bool:
        return tag > _SERIES_UID_TAG

    file.seek(0)
    head = file.read(_PREAMBLE_BYTES + 8)
    file.seek(0)
    with quietly([]):
        return _identity(_parsed(head, file, _IDENTITY_TAGS, beyond_identity))


def read(data: bytes, tags: list[int | str], notes: list[str]) -> tuple[Identity, FileDataset]:
    """Read the elements `tags` of a whole file. Raises `Unacceptable`.

    The dataset's file meta information always names a transfer syntax. What was unusual but acceptable
    is added to `notes`.
    """
    if len(data) > MAX_FILE_BYTES:
        raise Unacceptable("file", f"it has {len(data)} bytes; the limit is {MAX_FILE_BYTES}")
    with quietly(notes):
        dataset = _parsed(data[: _PREAMBLE_BYTES + 8], BytesIO(data), [*_IDENTITY_TAGS, *tags], None)
        identity = _identity(dataset)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            syntax = (
                ImplicitVRLittleEndian
                if implicit
                else ExplicitVRLittleEndian
                if little
                else ExplicitVRBigEndian
            )
            dataset.file_meta.TransferSyntaxUID = syntax
            notes.append(f"the file names no transfer syntax; read as {syntax.name}")
    return identity, dataset


def _parsed(
    head: bytes,
    file: BinaryIO,
    tags: list[int | str],
    stop_when: Callable[[int, str | None, int], bool] | None,
) -> FileDataset:
    force = not _has_prefix(head)
    if force and not _begins_like_a_dataset(head):
        raise Unacceptable(
            "file",
            "it is empty" if not head else "it is not DICOM: no DICM prefix at byte 128, and no dataset at byte 0",
        )
    try:
        _refuse_inflating_too_far(file, force)
        file.seek(0)
        return read_partial(file, stop_when=stop_when, force=force, specific_tags=[Tag(t) for t in tags])
    except Unacceptable:
        raise
    # pydicom answers damaged files with exceptions of many kinds (also RecursionError, struct.error,
    # KeyError, zlib.error); each of them says the same to the sender.
    except Exception as error:
        raise Unacceptable(
            "file", f"it is damaged DICOM ({one_line(f'{type(error).__name__}: {error}')}); send it again"
        ) from error


def _has_prefix(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _begins_like_a_dataset(head: bytes) -> bool:
    """Whether byte 0 begins an element of group 2 or 8: files from before 1993, and those that a network
    service wrote without a header, are whole datasets and well worth indexing."""
    if len(head) < 8:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))  # type: ignore[arg-type]
        if group in (0x0002, 0x0008) and element <= 0x2000:
            return True
    return False


def _refuse_inflating_too_far(file: BinaryIO, force: bool) -> None:
    """Measure what a deflated file inflates to, as pydicom would inflate it without bound."""
    file.seek(0)
    read_preamble(file, force)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated_bytes = 0
    piece = file.read(_INFLATE_BYTES)
    while piece and not inflater.eof:
        inflated_bytes += len(inflater.decompress(piece, _INFLATE_BYTES))
        if inflated_bytes > MAX_FILE_BYTES:
            raise Unacceptable("file", f"it inflates to more than {MAX_FILE_BYTES} bytes, which is the limit")
        piece = inflater.unconsumed_tail or file.read(_INFLATE_BYTES)


def _identity(dataset: FileDataset) -> Identity:
    def uid(keyword: str, name: str) -> str:
        value = dataset.get(keyword)
        if not value:
            raise Unacceptable(name, f"the file has no {keyword}, so it belongs to no study's index")
        text = str(value)
        if len(text) > 64 or not _UID.fullmatch(text):
            raise Unacceptable(
                name, f"{keyword} {one_line(text)!r} is not a UID: digits and dots, at most 64 characters"
            )
        return text

    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    if sop_class == MediaStorageDirectoryStorage:
        raise Unacceptable(
            "sop_class_uid", "it is a DICOMDIR, an index of other files; send the files that it lists"
        )
    class_uid = uid("SOPClassUID", "sop_class_uid")
    name = UID(class_uid).name
    if name == class_uid or "Storage" not in name or "Storage Commitment" in name:
        raise Unacceptable("sop_class_uid", f"{class_uid} is not a storage class of the DICOM standard")
    return Identity(
        study_uid=uid("StudyInstanceUID", "study_uid"),
        series_uid=uid("SeriesInstanceUID", "series_uid"),
        sop_instance_uid=uid("SOPInstanceUID", "sop_instance_uid"),
        sop_class_uid=class_uid,
    )
