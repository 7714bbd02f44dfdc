"""Thumbnails show what a viewer would show, and nothing makes them unbounded."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from streams.imaging.examine import Examined, examine
from streams.imaging.thumbnail import MAX_FRAME_SAMPLES

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def image(pixels: bytes, rows: int, columns: int, syntax: UID = ExplicitVRLittleEndian, **more: Any) -> bytes:
    """A secondary capture image; 8-bit grey unless `more` says otherwise."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def shown(data: bytes) -> NDArray[np.uint8]:
    answer = examine(data)
    assert isinstance(answer, Examined), answer
    assert answer.thumbnail is not None, answer.thumbnail_reason
    with Image.open(BytesIO(answer.thumbnail)) as picture:
        return np.asarray(picture)


def reason(data: bytes) -> str:
    answer = examine(data)
    assert isinstance(answer, Examined), answer
    assert answer.thumbnail is None
    assert answer.thumbnail_reason is not None
    return answer.thumbnail_reason


RAMP = np.arange(0, 64, dtype=np.uint8).reshape(8, 8)


def test_monochrome_is_stretched_and_monochrome1_inverted() -> None:
    """Without a window the values fill the greys; MONOCHROME1 shows low values bright."""
    bright = shown(image(RAMP.tobytes(), 8, 8))
    assert (bright[0, 0], bright[7, 7]) == (0, 255)
    dark = shown(image(RAMP.tobytes(), 8, 8, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(dark, 255 - bright)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_decides_what_is_seen(function: str) -> None:
    """Values below, within and above the file's window are black, grey and white."""
    picture = shown(image(RAMP.tobytes(), 8, 8, WindowCenter="32", WindowWidth="8", VOILUTFunction=function))
    assert picture[0, 0] < 3
    assert 100 < picture[4, 0] < 160
    assert picture[7, 7] > 252


def test_signed_16_bit_values_are_rescaled() -> None:
    """CT values in Hounsfield units are windowed after slope and intercept, not before."""
    values = np.array([[-1000, -160], [40, 240]], dtype="<i2") + 1024
    picture = shown(
        image(
            values.tobytes(), 2, 2, BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1,
            RescaleIntercept="-1024", RescaleSlope="1", WindowCenter="40", WindowWidth="400",
        )
    )  # fmt: skip
    assert picture[0, 0] == 0
    assert picture[0, 1] < 3
    assert 120 < picture[1, 0] < 135
    assert picture[1, 1] > 252


def test_padding_does_not_flatten_the_picture() -> None:
    """The padding around an image does not count when its values are stretched."""
    values = np.array([[-32768, 0], [50, 100]], dtype="<i2")
    picture = shown(
        image(
            values.tobytes(), 2, 2, BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1,
            PixelPaddingValue=-32768,
        )
    )  # fmt: skip
    assert picture.tolist() == [[0, 0], [128, 255]]


@pytest.mark.parametrize(("bits", "kind"), [(8, "<u1"), (16, "<u2"), (32, "<u4")])
def test_color_is_shown_in_its_own_colors(bits: int, kind: str) -> None:
    """Red stays red at 8, 16 and 32 bits a sample."""
    red = np.zeros((2, 2, 3), dtype=kind)
    red[..., 0] = 2**bits - 1
    picture = shown(
        image(
            red.tobytes(), 2, 2, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB",
            BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1,
        )
    )  # fmt: skip
    assert picture[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "name", ["SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm"]
)
def test_luminance_forms_are_converted(name: str) -> None:
    """The first stripe of the test picture is red in every colour space and compression."""
    red, green, blue = (int(v) for v in shown((FILES / name).read_bytes())[5, 50])
    assert red > 230
    assert green < 25
    assert blue < 25


def test_a_palette_is_applied() -> None:
    """Indices become the palette's colours."""
    table = np.array([0, 0xFFFF], dtype="<u2").tobytes()
    black = np.array([0, 0], dtype="<u2").tobytes()
    descriptor = [2, 0, 16]
    picture = shown(
        image(
            b"\x00\x01\x01\x00", 2, 2, PhotometricInterpretation="PALETTE COLOR",
            RedPaletteColorLookupTableDescriptor=descriptor, RedPaletteColorLookupTableData=black,
            GreenPaletteColorLookupTableDescriptor=descriptor, GreenPaletteColorLookupTableData=table,
            BluePaletteColorLookupTableDescriptor=descriptor, BluePaletteColorLookupTableData=black,
        )
    )  # fmt: skip
    assert picture[0].tolist() == [[0, 0, 0], [0, 255, 0]]


def test_the_middle_frame_is_shown() -> None:
    """Of five frames the third is the picture."""
    frames = b"".join(bytes([0, n, 0, 4]) for n in range(5))
    picture = shown(image(frames, 2, 2, NumberOfFrames="5", WindowCenter="2.5", WindowWidth="5"))
    assert picture[0, 1] == round(255 * ((2 - 2) / 4 + 0.5) + 0.01)


def test_large_images_become_small() -> None:
    """The longest side is 256 pixels and the proportions stay."""
    assert shown(image(bytes(3000 * 1000), 3000, 1000)).shape == (256, 86)


def test_a_frame_beyond_the_limit_is_not_decoded() -> None:
    """A file of a few bytes that claims a huge frame is refused its thumbnail before any memory is taken."""
    side = int(MAX_FRAME_SAMPLES**0.5) + 1
    assert "beyond the limit" in reason(image(b"\x00\x00", side, side))


def test_a_compressed_frame_of_another_size_is_not_decoded() -> None:
    """A JPEG 2000 stream that declares more pixels than its dataset is refused before the codec sees it."""
    bomb = FILES / "JPEG2000-embedded-sequence-delimiter.dcm"
    assert "3722445056" in reason(bomb.read_bytes())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"PhotometricInterpretation": "CMYK"}, "CMYK"),
        ({"Rows": 9}, "less than expected"),
        ({"Rows": 0}, "no Rows and Columns"),
    ],
)
def test_what_cannot_be_shown_says_why(more: dict[str, Any], words: str) -> None:
    """An instance without a thumbnail is still indexed, and says why it has none."""
    assert words in reason(image(RAMP.tobytes(), 8, 8, **more))


def test_a_video_is_indexed_without_a_picture() -> None:
    """A transfer syntax that we cannot decode costs the thumbnail only."""
    dataset = pydicom.dcmread(BytesIO(image(b"", 8, 8)))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    dataset.PixelData = pydicom.encaps.encapsulate([b"\x00" * 10])
    out = BytesIO()
    dataset.save_as(out)
    assert "not supported" in reason(out.getvalue())
