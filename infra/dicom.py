"""Reading DICOM files of unknown origin: bounded, without surprises, and with readable refusals.

Connectors read who a file is (`identify`), the processor reads it whole (`read`); both refuse the same
files for the same reasons.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
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

MAX_ELEMENTS = 50_000
"""Most elements at a dataset's top level; real files have a few hundred."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SERIES_UID_TAG = 0x0020000E
_IDENTITY_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_PREAMBLE_BYTES = 132
_MOST_NOTES = 8
_NOTE_CHARACTERS = 200
_INFLATE_BYTES = 1024 * 1024

# It logs what it also warns of or raises: a line for each odd file would be noise.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

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
    """A library's message in one printable line of bounded length, the same whenever it is given."""
    # Without the address of an object, which another run would not have.
    text = _ADDRESS.sub("", text)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _NOTE_CHARACTERS else line[: _NOTE_CHARACTERS - 1] + "…"


def identify(file: BinaryIO) -> Identity:
    """Read who a file is, most often from its head alone. Raises `Unacceptable`, where `read` would."""

    def beyond_identity(tag: int, vr: str | None, length: int) -> bool:
        return tag > _SERIES_UID_TAG

    with quietly([]):
        try:
            with _damage_refused():
                return _identity(_parsed(file, _IDENTITY_TAGS, beyond_identity))
        except Unacceptable:
            # Some writers put elements out of order: only the whole file tells.
            with _damage_refused():
                return _identity(_parsed(file, _IDENTITY_TAGS, None))


def read(data: bytes, tags: Sequence[str], notes: list[str]) -> tuple[Identity, FileDataset]:
    """Read the elements `tags` (keywords) of a whole file. Raises `Unacceptable`.

    The dataset's file meta information always names a transfer syntax. What was unusual but acceptable
    is added to `notes`.
    """
    if len(data) > MAX_FILE_BYTES:
        raise Unacceptable("file", f"it has {len(data)} bytes; the limit is {MAX_FILE_BYTES}")
    with quietly(notes), _damage_refused():
        dataset = _parsed(BytesIO(data), [*_IDENTITY_TAGS, *tags], None)
        identity = _identity(dataset)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            syntax = ImplicitVRLittleEndian if implicit else explicit
            dataset.file_meta.TransferSyntaxUID = syntax
            notes.append(f"the file names no transfer syntax; read as {syntax.name}")
        _well_formed("transfer_syntax_uid", "TransferSyntaxUID", dataset.file_meta.TransferSyntaxUID)
    return identity, dataset


@contextmanager
def _damage_refused() -> Iterator[None]:
    """pydicom answers damaged files with exceptions of many kinds (struct.error, KeyError, zlib.error,
    RecursionError, ...) and at every access; each of them says the same to the sender."""
    try:
        yield
    except Unacceptable:
        raise
    except Exception as error:
        raise Unacceptable(
            "file", f"it is damaged DICOM ({one_line(f'{type(error).__name__}: {error}')}); send it again"
        ) from error


def _parsed(
    file: BinaryIO, tags: Sequence[str], stop_when: Callable[[int, str | None, int], bool] | None
) -> FileDataset:
    file.seek(0)
    head = file.read(_PREAMBLE_BYTES)
    force = head[128:132] != b"DICM"
    if not head:
        raise Unacceptable("file", "it is empty")
    if force and not _begins_like_a_dataset(head):
        raise Unacceptable(
            "file", "it is not DICOM: there is no DICM prefix at byte 128, and no dataset at byte 0"
        )
    _refuse_inflating_too_far(file, force)
    file.seek(0)
    count = 0

    def stop(tag: int, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS:
            raise Unacceptable("file", f"it has more than {MAX_ELEMENTS} elements, which is the limit")
        return stop_when is not None and stop_when(tag, vr, length)

    with warnings.catch_warnings():
        # pydicom would return such a file as an empty dataset.
        warnings.filterwarnings("error", message="End of file reached")
        try:
            return read_partial(file, stop_when=stop, force=force, specific_tags=[Tag(t) for t in tags])
        except UserWarning:
            raise Unacceptable(
                "file", "it ends within an element, so it was cut short; send it again"
            ) from None


def _begins_like_a_dataset(head: bytes) -> bool:
    """Whether byte 0 begins an element of group 2 or 8: files from before 1993, and those that a network
    service wrote without a header, are whole datasets and well worth indexing."""
    if len(head) < 8:
        return False
    for order in ("<HH", ">HH"):
        group, element = struct.unpack_from(order, head)
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
    def uid(name: str, keyword: str) -> str:
        value = dataset.get(keyword)
        if not value:
            raise Unacceptable(name, f"the file has no {keyword}, without which it cannot be indexed")
        return _well_formed(name, keyword, value)

    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise Unacceptable(
            "sop_class_uid", "it is a DICOMDIR, an index of other files; send the files that it lists"
        )
    class_uid = uid("sop_class_uid", "SOPClassUID")
    name = UID(class_uid).name
    if name == class_uid or "Storage" not in name or "Storage Commitment" in name:
        raise Unacceptable("sop_class_uid", f"{class_uid} is not a storage class of the DICOM standard")
    return Identity(
        study_uid=uid("study_uid", "StudyInstanceUID"),
        series_uid=uid("series_uid", "SeriesInstanceUID"),
        sop_instance_uid=uid("sop_instance_uid", "SOPInstanceUID"),
        sop_class_uid=class_uid,
    )


def _well_formed(name: str, keyword: str, value: object) -> str:
    text = str(value)
    if len(text) > 64 or not _UID.fullmatch(text):
        raise Unacceptable(
            name, f"{keyword} {one_line(text)!r} is not a UID: digits and dots, at most 64 characters"
        )
    return text
