"""What was acknowledged survives any end of the process, and damage is noticed."""

from __future__ import annotations

import json
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.registry.__main__ import main
from schemas.registry.catalog import Catalog, Submission
from schemas.registry.errors import RegistryError
from schemas.registry.journal import JOURNAL_NAME, Journal, JournalError
from tests.schemas.registry.process import RegistryProcess, record


def numbered(number: int) -> dict[str, object]:
    return record(("id", "string"), name=f"Sale{number}")


def everything(registry: RegistryProcess) -> object:
    """All that clients can see."""
    schemas = registry.call("GET", "/schemas?deleted=true")[1]
    return [
        schemas,
        registry.call("GET", "/config"),
        registry.call("GET", "/config/b"),
        registry.call("GET", "/mode/b"),
    ]


def test_restart_keeps_everything(own_registry: RegistryProcess) -> None:
    """Ids, versions, texts, deletions, levels and modes are the same after a clean stop and start."""
    for number, name in enumerate(("a", "b", "c", "a2")):
        own_registry.register(name, numbered(number))
    own_registry.register("a", record(("id", "string"), ("n", "int", 1), name="Sale0"))
    own_registry.call("DELETE", "/subjects/a/versions/1")
    own_registry.call("DELETE", "/subjects/c")
    own_registry.call("DELETE", "/subjects/c?permanent=true")
    own_registry.call("PUT", "/config", {"compatibility": "BACKWARD"})
    own_registry.call("PUT", "/config/b", {"compatibility": "NONE"})
    own_registry.call("PUT", "/mode/b", {"mode": "READONLY"})
    before = everything(own_registry)
    assert own_registry.stop() == (0, "")
    own_registry.start()
    assert everything(own_registry) == before
    assert own_registry.register("again", numbered(2))[1]["id"] == 3, "the same text has its id for ever"
    fresh = own_registry.register("c", numbered(9))[1]
    assert (fresh["id"], fresh["version"]) == (6, 2), "ids and versions are never given out again"


def test_kill_during_registrations_loses_nothing_acknowledged(own_registry: RegistryProcess) -> None:
    """kill -9 amid a burst: every acknowledged schema is there afterwards, under the id that was answered."""
    acknowledged: dict[int, int] = {}
    stop = threading.Event()

    def burst(first: int) -> None:
        for number in range(first, first + 10_000):
            if stop.is_set():
                return
            try:
                status, answer = own_registry.register(f"s{number}", numbered(number))
            except OSError:
                return
            if status == 200:
                acknowledged[number] = answer["id"]

    threads = [threading.Thread(target=burst, args=(lane * 10_000,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(acknowledged) < 150 and time.monotonic() < deadline:
        time.sleep(0.01)
    own_registry.kill()
    stop.set()
    for thread in threads:
        thread.join()
    assert len(acknowledged) >= 150
    own_registry.start()
    for number, schema_id in acknowledged.items():
        stored = own_registry.call("GET", f"/subjects/s{number}/versions/1")[1]
        assert (stored["id"], json.loads(stored["schema"])) == (schema_id, numbered(number))
    ids = [schema["id"] for schema in own_registry.call("GET", "/schemas")[1]]
    assert len(ids) == len(set(ids))


def test_concurrent_registration_gives_one_id(own_registry: RegistryProcess) -> None:
    """Many clients that register the same schema at once get the same id and version."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: own_registry.register("sales", numbered(1))[1], range(64)))
    assert {(answer["id"], answer["version"]) for answer in answers} == {(1, 1)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: own_registry.register(f"s{n}", numbered(n % 8))[1], range(64)))
    assert len({answer["id"] for answer in answers}) == 8


def test_second_registry_on_the_same_folder_is_refused(own_registry: RegistryProcess) -> None:
    """A state folder has one owner; a second registry says who holds it and ends with 1."""
    with pytest.raises(RuntimeError, match=f"in use by process {own_registry.process.pid}"):
        RegistryProcess(own_registry.state)


def catalog_at(folder: Path) -> Catalog:
    return Catalog(Journal(folder))


def filled(folder: Path, schemas: int = 3) -> bytes:
    """A journal with that many schemas; its bytes."""
    catalog = catalog_at(folder)
    for number in range(schemas):
        catalog.register(f"s{number}", Submission(json.dumps(numbered(number))))
    catalog.close()
    return (folder / JOURNAL_NAME).read_bytes()


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    """A last line cut anywhere is removed, the lines before it stay, and the next change follows them."""
    content = filled(tmp_path)
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(ends[1] + 1, ends[2], 7):
        (tmp_path / JOURNAL_NAME).write_bytes(content[:cut])
        catalog = catalog_at(tmp_path)
        assert catalog.subjects() == ["s0", "s1"]
        catalog.close()
        assert (tmp_path / JOURNAL_NAME).read_bytes() == content[: ends[1]]
    assert filled(tmp_path) == content


def test_damage_in_a_complete_line_refuses_to_start(tmp_path: Path) -> None:
    """A flipped bit, a missing line or a doubled line is named with its number, and nothing is served."""
    content = filled(tmp_path)
    lines = content.splitlines(keepends=True)
    flipped = bytearray(content)
    flipped[len(lines[0]) + 40] ^= 1
    for damaged, line in (
        (bytes(flipped), 2),
        (lines[0] + lines[2], 2),
        (lines[0] + lines[1] + lines[1] + lines[2], 3),
        (b"\n" + content, 1),
    ):
        (tmp_path / JOURNAL_NAME).write_bytes(damaged)
        with pytest.raises(
            JournalError, match=rf"line {line} of .*{JOURNAL_NAME} .*restore the file from a backup"
        ):
            Journal(tmp_path)
        assert (tmp_path / JOURNAL_NAME).read_bytes() == damaged
    with pytest.raises(RuntimeError, match="line 1 of"):
        RegistryProcess(tmp_path)


def test_change_that_cannot_be_stored_is_not_made(tmp_path: Path) -> None:
    """When the disk takes no more the change is answered with 50001, is not visible, and a retry succeeds."""
    catalog = catalog_at(tmp_path)
    catalog.register("a", Submission(json.dumps(numbered(1))))
    size = (tmp_path / JOURNAL_NAME).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(RegistryError) as failed:
            catalog.register("b", Submission(json.dumps(numbered(2))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (failed.value.status, failed.value.code) == (500, 50001)
    assert catalog.subjects() == ["a"]
    assert (tmp_path / JOURNAL_NAME).stat().st_size == size
    assert catalog.register("b", Submission(json.dumps(numbered(2)))).content.id == 2
    catalog.close()
    with pytest.raises(RegistryError, match="shutting down"):
        catalog.register("c", Submission(json.dumps(numbered(3))))
    reopened = catalog_at(tmp_path)
    assert reopened.subjects() == ["a", "b"]
    reopened.close()


def test_change_of_a_newer_version_refuses_to_start(tmp_path: Path) -> None:
    """A kind of change that this version does not know is not skipped."""
    journal = Journal(tmp_path)
    journal.append({"op": "rename", "subject": "a"})
    journal.close()
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match=r"'rename'.*start the newer version"):
        Catalog(journal)
    journal.close()


def test_unusable_folder_and_port(own_registry: RegistryProcess, tmp_path: Path) -> None:
    """A folder that cannot be made and a port that is taken are each one sentence with the remedy."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="choose another --state-dir"):
        Journal(tmp_path / "file" / "below")
    port = own_registry.url.rpartition(":")[2]
    assert main(["--port", port, "--state-dir", str(tmp_path / "second")]) == 1
    Journal(tmp_path / "second").close()


def test_start_is_fast(own_registry: RegistryProcess) -> None:
    """Starting with a hundred schemas takes well under a second, interpreter included."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: own_registry.register(f"s{n}", numbered(n)), range(100)))
    own_registry.stop()
    begun = time.monotonic()
    own_registry.start()
    assert own_registry.call("GET", "/health")[1]["subjects"] == 100
    assert time.monotonic() - begun < 2.0, "0.2 s when the machine is idle; the limit allows for a busy one"
