"""From a stored file to its `dicom-uploads` event, the same for every way in."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from infra.dicom import Identity, one_line
from infra.object_store import StoredObject

Event = dict[str, Any]

MAX_NAME_CHARACTERS = 255


def upload_event(
    stored: StoredObject,
    identity: Identity | None,
    *,
    tenant: str,
    source: str,
    filename: str | None,
    client_id: str = "",
) -> Event:
    """The event of one file. Without an identity the digest serves as key, and the processor refuses it.

    The id is made from tenant, content and the client's own id: whoever sends the same file again, after a
    lost answer or by mistake, sends a duplicate. A client that means a second upload says another id.
    """
    return {
        "event_id": _event_id(tenant, stored.digest, client_id),
        "tenant": tenant,
        "occurred_at": time.time_ns() // 1_000_000,
        "study_uid": identity.study_uid if identity else f"sha256:{stored.digest}",
        "series_uid": identity.series_uid if identity else "",
        "sop_instance_uid": identity.sop_instance_uid if identity else "",
        "digest": stored.digest,
        "size_bytes": stored.size_bytes,
        "source": source,
        "filename": _base_name(filename),
    }


def _event_id(tenant: str, digest: str, client_id: str) -> str:
    name = "\0".join((tenant, digest, client_id))
    return str(uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=8))


def _base_name(filename: str | None) -> str | None:
    """The name without its folders (which may name a patient or a person's home), one line."""
    if not filename:
        return None
    return one_line(filename.replace("\\", "/").rsplit("/", 1)[-1])[:MAX_NAME_CHARACTERS] or None
