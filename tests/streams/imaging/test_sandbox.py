"""No file can take the processor with it: the child that reads it has limits, and is replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless, SecondaryCaptureImageStorage

from streams.imaging.examine import Examined, Refused, examine
from streams.imaging.sandbox import Sandbox, SandboxFailed

CT = (Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm").read_bytes()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(seconds=2.5)
    yield box
    box.close()


def endless() -> bytes:
    """A well-formed file whose run-length coding takes our decoder many seconds: runs of one byte."""
    side = 8000
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = side, side, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    dataset.PixelData = encapsulate([header + b"\x00\x07" * (side * side)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_the_sandbox_answers_as_the_function_does(sandbox: Sandbox) -> None:
    """In the child and out of it, a file and a refusal come to the same answer."""
    assert sandbox.examine(CT) == examine(CT)
    assert sandbox.examine(b"no dicom") == examine(b"no dicom")
    assert sandbox.examine(b"") == examine(b"")


def test_a_picture_that_never_ends_costs_its_thumbnail_only(sandbox: Sandbox) -> None:
    """A file whose pixels take longer than the limit is indexed without a thumbnail, and the next is read."""
    answer = sandbox.examine(endless())
    assert isinstance(answer, Examined)
    assert answer.thumbnail is None
    assert answer.thumbnail_reason is not None
    assert "2.5 s" in answer.thumbnail_reason
    assert sandbox.examine(CT) == examine(CT)


def test_a_file_that_cannot_even_be_parsed_in_time_is_refused() -> None:
    """A sequence of millions of empty items is refused with the limits as the reason."""
    items = b"\x08\x00\x11\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 3_000_000
    meta = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    box = Sandbox(seconds=1)
    answer = box.examine(b"\0" * 128 + b"DICM" + meta + items)
    box.close()
    assert isinstance(answer, Refused)
    assert "4096 MiB of memory and 1 s of processor time" in answer.reason


def test_a_child_killed_from_outside_changes_no_answer(sandbox: Sandbox) -> None:
    """kill -9 of the child between two files is not held against the second."""
    sandbox.examine(CT)
    assert sandbox._child is not None
    os.kill(sandbox._child.pid, signal.SIGKILL)
    time.sleep(0.05)
    assert sandbox.examine(CT) == examine(CT)


def test_a_child_that_cannot_start_is_no_files_fault() -> None:
    """Where the child does not even start, the sandbox fails, and refuses nothing."""
    with pytest.raises(SandboxFailed, match="does not start"):
        Sandbox(memory_bytes=2**70).examine(CT)
