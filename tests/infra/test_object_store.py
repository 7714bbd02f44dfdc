"""The content-addressed store keeps exactly what it was given, or says what is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from infra.object_store import FolderStore, ObjectDamaged, ObjectMissing, ObjectTooLarge


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects")


def test_what_is_put_is_read_again_by_its_digest(store: FolderStore) -> None:
    """Bytes come back unchanged under their SHA-256, and putting them again changes nothing."""
    data = b"scan" * 1000
    first, again = store.put(data), store.put(data)
    assert first == again
    assert first.digest == hashlib.sha256(data).hexdigest()
    assert first.size_bytes == len(data)
    assert store.read(first.digest) == data
    assert store.path(first.digest).parts[-3:-1] == (first.digest[:2], first.digest[2:4])


def test_a_draft_in_pieces_is_the_same_object(store: FolderStore) -> None:
    """An object written in pieces, and looked at in between, is the object put at once."""
    with store.draft(100) as draft:
        draft.write(b"abc")
        draft.file.seek(1)
        assert draft.file.read() == b"bc"
        draft.file.seek(0)
        draft.write(b"def")
        stored = draft.commit()
    assert store.read(stored.digest) == b"abcdef"


def test_a_draft_that_is_not_committed_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    """Too many bytes, or leaving without a commit, leaves no file behind."""
    with pytest.raises(ObjectTooLarge, match="more than 5 bytes"), store.draft(5) as draft:
        draft.write(b"abcde")
        draft.write(b"f")
    with store.draft(5) as draft:
        draft.write(b"x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_damage_is_found_at_reading_and_repaired_by_storing_again(store: FolderStore) -> None:
    """A flipped byte is never returned; storing the object again makes it whole."""
    stored = store.put(b"abcdef")
    store.path(stored.digest).write_bytes(b"abcdeg")
    with pytest.raises(ObjectDamaged, match="store it again"):
        store.read(stored.digest)
    store.put(b"abcdef")
    assert store.read(stored.digest) == b"abcdef"


@pytest.mark.parametrize("digest", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 64 + "/../x"])
def test_what_is_no_stored_digest_is_missing(store: FolderStore, digest: str) -> None:
    """An unknown digest, or a text that is none, never reaches another file."""
    with pytest.raises(ObjectMissing):
        store.read(digest)
