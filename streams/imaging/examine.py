"""What a DICOM file's bytes say: its attributes and its thumbnail, or a refusal. A pure function."""

from __future__ import annotations

from typing import Any

import msgspec

from infra.dicom import Identity, Unacceptable, read
from streams.imaging.attributes import KEYWORDS as ATTRIBUTE_KEYWORDS
from streams.imaging.attributes import attributes
from streams.imaging.thumbnail import KEYWORDS as PIXEL_KEYWORDS
from streams.imaging.thumbnail import NoThumbnail, render


class Examined(msgspec.Struct, frozen=True, tag=True):
    """An acceptable file. `attributes` are fields of a `dicom-instances` event; exactly one of
    `thumbnail` (PNG bytes) and `thumbnail_reason` is given."""

    identity: Identity
    transfer_syntax_uid: str
    attributes: dict[str, Any]
    thumbnail: bytes | None
    thumbnail_reason: str | None
    notes: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A file that cannot be indexed: the field at fault, and why."""

    field: str
    reason: str


def examine(data: bytes, no_picture: str | None = None) -> Examined | Refused:
    """Read a file's bytes. Never raises for what they hold.

    Where `no_picture` gives a reason, the pixels are left alone and the reason stands in the answer.
    """
    notes: list[str] = []
    try:
        identity, dataset = read(data, [*ATTRIBUTE_KEYWORDS, *PIXEL_KEYWORDS], notes)
    except Unacceptable as error:
        return Refused(error.field, error.reason)
    fields = attributes(dataset, notes)
    thumbnail, reason = None, no_picture
    if no_picture is None:
        try:
            thumbnail = render(dataset, fields["number_of_frames"], notes)
        except NoThumbnail as error:
            reason = str(error)
    return Examined(
        identity=identity,
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        attributes=fields,
        thumbnail=thumbnail,
        thumbnail_reason=reason,
        notes=tuple(notes),
    )
