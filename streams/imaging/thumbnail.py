"""A thumbnail of a DICOM instance: the middle frame as an 8-bit PNG. Pure, and bounded in memory."""

from __future__ import annotations

import math
import struct
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from infra.dicom import one_line, quietly

SIDE_PIXELS = 256
"""Longest side of a thumbnail."""
MAX_FRAME_SAMPLES = 64 * 1024 * 1024
"""Largest frame that is decoded: rows times columns times samples (a mammogram has about 20 million)."""
_COARSE_PIXELS = 4 * SIDE_PIXELS
# One codec each, so that an answer does not depend on what else is installed; pydicom itself decodes the
# rest. GDCM only where nothing else can: damaged JPEGs crash it.
_JPEG_CODECS = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "gdcm",
    JPEGLSNearLossless: "gdcm",
}
_JPEG2000_CODECS = dict.fromkeys(
    (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "pylibjpeg"
)
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG, and JPEG-LS

KEYWORDS: tuple[str, ...] = (
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "AlphaPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SegmentedAlphaPaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
"""The elements that `render` reads, beside those of `attributes.KEYWORDS`."""


class NoThumbnail(Exception):
    """The instance has no picture that we can show; the message says why."""


def render(dataset: FileDataset, frames: int | None, notes: list[str]) -> bytes:
    """The PNG of the middle one of `frames` frames. Raises `NoThumbnail`."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise NoThumbnail("the instance has floating-point pixels, which are not shown")
    if "PixelData" not in dataset:
        raise NoThumbnail("the instance has no pixel data")
    try:
        with quietly(notes):
            return _png(_picture(dataset, max(frames or 1, 1)))
    except NoThumbnail:
        raise
    # Decoders answer damaged pixels with exceptions of many kinds, MemoryError among them.
    except Exception as error:
        raise NoThumbnail(one_line(f"the pixel data could not be decoded: {error}")) from error


def _picture(dataset: FileDataset, frames: int) -> NDArray[np.uint8]:
    """The middle frame, thinned to about four times a thumbnail's size: (rows, columns) grey or
    (rows, columns, 3) RGB."""
    rows, columns, samples = (
        int(dataset.get(k, d)) for k, d in (("Rows", 0), ("Columns", 0), ("SamplesPerPixel", 1))
    )
    if rows <= 0 or columns <= 0:
        raise NoThumbnail("the instance has no Rows and Columns")
    if rows * columns * samples > MAX_FRAME_SAMPLES:
        raise NoThumbnail(
            f"a frame of {rows} x {columns} x {samples} samples is beyond the limit of {MAX_FRAME_SAMPLES}"
        )
    index = frames // 2
    _refuse_other_size(dataset, index, frames, rows, columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    codec = _JPEG_CODECS.get(syntax) or _JPEG2000_CODECS.get(syntax, "")
    frame = pixel_array(dataset, index=index, decoding_plugin=codec)
    step = max(1, math.ceil(max(rows, columns) / _COARSE_PIXELS))
    frame = frame[::step, ::step]
    interpretation = str(dataset.get("PhotometricInterpretation", "")).strip()
    if interpretation in ("MONOCHROME1", "MONOCHROME2") and frame.ndim == 2:
        grey = _grey(frame, dataset)
        return 255 - grey if interpretation == "MONOCHROME1" else grey
    if interpretation == "PALETTE COLOR" and frame.ndim == 2:
        colors = apply_color_lut(frame, dataset)
        return _eight_bits(colors[..., :3], 8 * colors.dtype.itemsize)
    if interpretation in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT") and frame.ndim == 3:
        # pixel_array has converted the luminance forms to RGB.
        return _eight_bits(frame[..., :3], int(dataset.get("BitsStored", 8)))
    raise NoThumbnail(f"photometric interpretation {interpretation!r} is not supported")


def _refuse_other_size(dataset: FileDataset, index: int, frames: int, rows: int, columns: int) -> None:
    """Compare the size that a compressed frame itself declares with the dataset's.

    A codec allocates what the frame declares: a few bytes may ask for 4 billion pixels.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    jpeg = syntax in _JPEG_CODECS
    if not jpeg and syntax not in _JPEG2000_CODECS:
        return
    stream = get_frame(
        dataset.PixelData, index, number_of_frames=frames, extended_offsets=_extended_offsets(dataset)
    )
    declared = _jpeg_size(stream) if jpeg else _jpeg2000_size(stream)
    if declared is None:
        raise NoThumbnail("the compressed frame has no header that says its size")
    if declared != (rows, columns):
        raise NoThumbnail(
            f"the compressed frame has {declared[0]} x {declared[1]} pixels, not {rows} x {columns}"
        )


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        return dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    return None


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) from the first start-of-frame segment (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", stream, at + 5)
            return rows, columns
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) from the SIZ segment (ITU-T T.800 A.5.1), which follows SOC; also within a JP2 box."""
    at = stream.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(stream):
        return None
    width, height, left, top = struct.unpack_from(">IIII", stream, at + 8)
    return height - top, width - left


def _grey(frame: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Grey values after the modality and value-of-interest transformations (PS3.3 C.11.1, C.11.2)."""
    values = np.asarray(apply_modality_lut(frame, dataset), dtype=np.float64)
    if dataset.get("VOILUTSequence"):
        shown = apply_voi(np.asarray(apply_modality_lut(frame, dataset)), dataset)
        return _eight_bits(shown, int(dataset.VOILUTSequence[0].LUTDescriptor[2]))
    window = _window(dataset)
    if window is None:
        keep = np.ones(frame.shape, dtype=bool)
        if isinstance(dataset.get("PixelPaddingValue"), int):
            keep = frame != dataset.PixelPaddingValue
        if not keep.any():
            return np.zeros(frame.shape, dtype=np.uint8)
        low, high = float(values[keep].min()), float(values[keep].max())
        return _scaled((values - low) / (high - low) if high > low else np.zeros_like(values))
    center, width = window
    match str(dataset.get("VOILUTFunction") or "LINEAR").strip():
        case "SIGMOID":
            return _scaled(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
        case "LINEAR_EXACT":
            return _scaled((values - center) / width + 0.5)
        case _:
            return _scaled((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5)


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """The first window's center and width, or None where there is no usable one."""
    pair = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = dataset.get(keyword)
        if value is None or value == "":
            return None
        first = value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value
        try:
            pair.append(float(first))
        except ValueError:
            return None
    center, width = pair
    return (center, width) if math.isfinite(center) and math.isfinite(width) and width > 0 else None


def _scaled(fractions: NDArray[np.float64]) -> NDArray[np.uint8]:
    return (np.clip(np.nan_to_num(fractions), 0, 1) * 255 + 0.5).astype(np.uint8)


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The 8 high bits of unsigned values of `bits` bits."""
    unsigned = np.clip(values, 0, 2**bits - 1).astype(np.uint64)
    eight: NDArray[np.uint64] = (
        unsigned << np.uint64(8 - bits) if bits <= 8 else unsigned >> np.uint64(bits - 8)
    )
    return eight.astype(np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.LANCZOS)
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
