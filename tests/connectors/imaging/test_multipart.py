"""A multipart body is read the same however the network cuts it, and leaves nothing behind when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.imaging.multipart import MAX_PARTS, boundary_of, parts
from infra.object_store import FolderStore
from infra.problems import Problem

Found = list[tuple[str, str | None, bytes | None]]


def read(body: bytes, folder: Path, cuts: list[int] | None = None, limit_bytes: int = 1000) -> Found:
    """Media type, file name and content of each part (None where too large)."""
    store = FolderStore(folder)

    async def chunks() -> AsyncIterator[bytes]:
        places = [0, *sorted(c % (len(body) + 1) for c in cuts or []), len(body)]
        for start, end in pairwise(places):
            yield body[start:end]

    async def collect() -> Found:
        found: Found = []
        async for part in parts(chunks(), b"edge", store, limit_bytes):
            content = None if part.too_large else store.read(part.draft.commit().digest)
            found.append((part.media_type, part.filename, content))
        return found

    return asyncio.run(collect())


def body_of(*contents: bytes) -> bytes:
    head = b"--edge\r\nContent-Type: Application/DICOM; x=y\r\n"
    head += b'Content-Disposition: form-data; filename="a.dcm"\r\n\r\n'
    return b"".join(head + c + b"\r\n" for c in contents) + b"--edge--\r\n"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.binary(max_size=60) | st.just(b"\r\n--edg\r\n--edgf"), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_parts_do_not_depend_on_the_chunks(contents: list[bytes], cuts: list[int], tmp_path: Path) -> None:
    """Whatever the parts hold and wherever the body is cut, each part comes out as it went in."""
    contents = [c for c in contents if b"--edge" not in c] or [b""]
    expected = [("application/dicom", "a.dcm", c) for c in contents]
    assert read(body_of(*contents), tmp_path, cuts) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"x", body_of(b"abc")[:-6], body_of(b"abc")[:-20], b"--edge\r\nno colon\r\n\r\n", b"--wrong--"],
)
def test_a_broken_body_is_400_and_leaves_no_draft(body: bytes, tmp_path: Path) -> None:
    """A body that is cut short or malformed is refused, and its drafts are gone."""
    with pytest.raises(Problem) as raised:
        read(body, tmp_path)
    assert raised.value.status == 400
    assert not list(tmp_path.glob("incoming/*"))


def test_one_part_too_large_does_not_spoil_its_neighbours(tmp_path: Path) -> None:
    """A part beyond the limit is marked, its bytes are not kept, and the next part is whole."""
    found = read(body_of(b"small", b"x" * 2000, b"after"), tmp_path)
    assert [c for _, _, c in found] == [b"small", None, b"after"]
    assert not list(tmp_path.glob("incoming/*"))


def test_too_many_parts_and_headers_are_refused(tmp_path: Path) -> None:
    """A body of countless parts, or with endless headers, cannot fill disk or memory."""
    with pytest.raises(Problem) as raised:
        read(body_of(*[b""] * (MAX_PARTS + 1)), tmp_path)
    assert raised.value.status == 413
    with pytest.raises(Problem) as raised:
        read(b"--edge\r\nX: " + b"y" * 20_000 + b"\r\n\r\n\r\n--edge--\r\n", tmp_path)
    assert raised.value.status == 400
    assert not list(tmp_path.glob("incoming/*"))


def test_a_content_type_without_boundary_is_refused() -> None:
    """The boundary may be quoted, and must be there."""
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    with pytest.raises(Problem, match="boundary"):
        boundary_of("multipart/related")
