"""The decision of `imaging-ingest`: what an upload says becomes an instance, or a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infra.dicom import one_line
from infra.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from schemas.imaging import DICOM_INSTANCES, IMAGING_INGEST
from streams.decide import NoState, Outcomes, Record, Versions
from streams.imaging.examine import Examined, Refused

Examine = Callable[[bytes], Examined | Refused]


class ImagingIngest:
    """Answers each upload from its bytes alone.

    Pure in spite of the store: an object never changes, so reading by digest is a function of the digest,
    and storing a thumbnail under its own digest is idempotent. It is stored before the event that names
    it is emitted. An upload that comes again gets the same answer again, which the tables drop by id.
    """

    version_kinds: Sequence[str] = ()

    def __init__(self, store: ObjectStore, examine: Examine) -> None:
        self._store = store
        self._examine = examine

    def new_state(self) -> NoState:
        return NoState()

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        raise ValueError(f"imaging-ingest takes no versions of {kind!r}")

    def decide(self, state: NoState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        for record in records:
            self._answer(record, out)

    def _answer(self, record: Record, out: Outcomes) -> None:
        upload = record.event
        try:
            data = self._store.read(upload["digest"])
        except (ObjectMissing, ObjectDamaged) as error:
            out.dead_letter(record, "digest", f"{error}; upload the file again")
            return
        if len(data) != upload["size_bytes"]:
            out.dead_letter(
                record,
                "size_bytes",
                f"the event says {upload['size_bytes']}, the object has {len(data)} bytes",
            )
            return
        answer = self._examine(data)
        if isinstance(answer, Refused):
            out.dead_letter(record, answer.field, answer.reason)
            return
        for field in ("study_uid", "series_uid", "sop_instance_uid"):
            said, found = one_line(upload[field]), getattr(answer.identity, field)
            if said != found:
                out.dead_letter(record, field, f"the event says {said!r}, the file {found!r}")
                return
        out.emit(
            DICOM_INSTANCES,
            {
                "event_id": upload["event_id"],
                "tenant": upload["tenant"],
                "occurred_at": upload["occurred_at"],
                "input_id": upload["event_id"],
                "code_version": IMAGING_INGEST.code_version,
                "study_uid": answer.identity.study_uid,
                "series_uid": answer.identity.series_uid,
                "sop_instance_uid": answer.identity.sop_instance_uid,
                "digest": upload["digest"],
                "size_bytes": upload["size_bytes"],
                "source": one_line(upload["source"]),
                "filename": upload["filename"] and one_line(upload["filename"]),
                "sop_class_uid": answer.identity.sop_class_uid,
                "transfer_syntax_uid": answer.transfer_syntax_uid,
                **answer.attributes,
                "thumbnail_digest": self._store.put(answer.thumbnail).digest if answer.thumbnail else None,
                "thumbnail_reason": answer.thumbnail_reason,
                "notes": list(answer.notes),
            },
        )
