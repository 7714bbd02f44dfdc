"""DICOM files over HTTP: DICOMweb's Store transaction (STOW-RS, PS3.18 10.5) and plain form upload.

A file's bytes are durable in the object store before its event is published, and the request is answered
once the broker has all of its events. A file whose identity cannot be read is refused at the door.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from connectors.imaging.multipart import Part, boundary_of, parts, single
from connectors.imaging.uploads import Event, upload_event
from connectors.ownership import require_object
from connectors.publish import Publisher, Receipt, publisher
from infra.dicom import MAX_FILE_BYTES, Identity, Unacceptable, identify
from infra.identity import secured
from infra.identity.principal import Principal
from infra.object_store import FolderStore, ObjectStore
from infra.problems import Problem
from schemas.imaging import DICOM_UPLOADS

DICOM_JSON = "application/dicom+json"

# Failure reasons of PS3.18 annex I.2 and PS3.4 annex GG.4.
CANNOT_UNDERSTAND = 0xC000
OUT_OF_RESOURCES = 0xA700
CLASS_NOT_SUPPORTED = 0x0122
PROCESSING_FAILURE = 0x0110

router = secured.SecuredRouter(tags=["imaging"])


async def object_store(connection: HTTPConnection) -> ObjectStore:
    """The object store that the processor reads."""
    return FolderStore(connection.app.state.settings.object_store)


@dataclass(slots=True)
class _Stored:
    """A file that is durable, and its event."""

    identity: Identity
    event: Event


@dataclass(slots=True)
class _Refused:
    """A file that was refused, with DICOM's failure reason and ours."""

    filename: str | None
    failure: int
    field: str
    reason: str
    identity: Identity | None = None


@dataclass(slots=True)
class _Door:
    """One request's files: takes each part, keeps what is acceptable, publishes it all at the end."""

    store: ObjectStore
    tenant: str
    source: str
    client_id: str
    study_uid: str | None = None
    stored: list[_Stored] = field(default_factory=list)
    refused: list[_Refused] = field(default_factory=list)

    async def take(self, incoming: AsyncGenerator[Part]) -> None:
        # Closed here, whatever happens: an abandoned upload must not leave its drafts to the collector.
        async with aclosing(incoming) as each:
            async for part in each:
                answer = await asyncio.to_thread(self._take_one, part)
                if isinstance(answer, _Stored):
                    self.stored.append(answer)
                else:
                    self.refused.append(answer)
        if not self.stored and not self.refused:
            raise Problem(400, "No files", "The body has no parts; send at least one DICOM file.")

    def _take_one(self, part: Part) -> _Stored | _Refused:
        if part.too_large:
            reason = f"it has {part.size_bytes} bytes; the limit is {MAX_FILE_BYTES}"
            return _Refused(part.filename, OUT_OF_RESOURCES, "file", reason)
        if part.media_type not in ("", "application/dicom", "application/octet-stream"):
            reason = f"its media type is {part.media_type}; send application/dicom"
            return _Refused(part.filename, CANNOT_UNDERSTAND, "content-type", reason)
        try:
            identity = identify(part.draft.file)
        except Unacceptable as error:
            failure = CLASS_NOT_SUPPORTED if error.field == "sop_class_uid" else CANNOT_UNDERSTAND
            return _Refused(part.filename, failure, error.field, error.reason)
        if self.study_uid is not None and identity.study_uid != self.study_uid:
            reason = f"it belongs to study {identity.study_uid}, not to {self.study_uid}"
            return _Refused(part.filename, PROCESSING_FAILURE, "study_uid", reason, identity)
        event = upload_event(
            part.draft.commit(),
            identity,
            tenant=self.tenant,
            source=self.source,
            filename=part.filename,
            client_id=self.client_id,
        )
        return _Stored(identity, event)

    async def publish(self, out: Publisher) -> list[Receipt]:
        return await out.publish_many(DICOM_UPLOADS, [s.event for s in self.stored])


async def owner(sender: Annotated[Principal, Depends(secured.principal)]) -> str:
    """The tenant that files are taken for: their sender's. For senders who may speak for all patients: whose
    a file is, is read after it was taken."""
    require_object(sender, "imaging", None)
    return sender.tenant


Tenant = Annotated[str, Depends(owner)]
ClientId = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=128,
        description="The client's own id of this upload. Without one, the same file again is a duplicate.",
    ),
]
Out = Annotated[Publisher, Depends(publisher)]
Store = Annotated[ObjectStore, Depends(object_store)]

_STOW_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            'multipart/related; type="application/dicom"': {"schema": {"type": "string", "format": "binary"}},
            "application/dicom": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_STORED: dict[int | str, dict[str, Any]] = {
    200: {"description": "All are stored.", "content": {DICOM_JSON: {"schema": {"type": "object"}}}},
    202: {"description": "Some are stored.", "content": {DICOM_JSON: {"schema": {"type": "object"}}}},
    409: {"description": "None is stored.", "content": {DICOM_JSON: {"schema": {"type": "object"}}}},
}


@router.post(
    "/dicomweb/studies",
    scope="imaging:write",
    openapi_extra=_STOW_BODY,
    response_class=Response,
    responses=_STORED,
)
async def store_instances(
    request: Request, out: Out, store: Store, tenant: Tenant, client_id: ClientId = ""
) -> Response:
    """Store instances (STOW-RS).

    200: all stored; 202: some, see the Failed SOP and Other Failures sequences; 409: none. Text Value
    (0040,A160) of each failure says the reason in words.
    """
    return await _stow(request, _Door(store, tenant, "stow", client_id), out)


@router.post(
    "/dicomweb/studies/{study_uid}",
    scope="imaging:write",
    openapi_extra=_STOW_BODY,
    response_class=Response,
    responses=_STORED,
)
async def store_instances_of_study(
    request: Request,
    study_uid: Annotated[str, Path(pattern=r"^[0-9.]{1,64}$", description="Study Instance UID.")],
    out: Out,
    store: Store,
    tenant: Tenant,
    client_id: ClientId = "",
) -> Response:
    """Store instances of one study (STOW-RS); those of another are refused."""
    return await _stow(request, _Door(store, tenant, "stow", client_id, study_uid), out)


async def _stow(request: Request, door: _Door, out: Publisher) -> Response:
    accepted = request.headers.get("accept", "*/*")
    if not any(t in accepted for t in ("*/*", "application/*", DICOM_JSON, "application/json")):
        raise Problem(406, "Not acceptable", f"The answer is {DICOM_JSON}; accept it.", field="accept")
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() == "application/dicom":
        incoming = single(request.stream(), door.store, MAX_FILE_BYTES)
    elif content_type.lower().startswith("multipart/related") and "dicom+" not in content_type.lower():
        incoming = parts(request.stream(), boundary_of(content_type), door.store, MAX_FILE_BYTES)
    else:
        raise Problem(
            415,
            "Unsupported media type",
            'Send multipart/related; type="application/dicom", or one file as application/dicom.',
            field="content-type",
        )
    await door.take(incoming)
    await door.publish(out)
    status = 200 if not door.refused else 202 if door.stored else 409
    return Response(orjson.dumps(_store_response(door)), status, media_type=DICOM_JSON)


def _store_response(door: _Door) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 annex I) in the DICOM JSON model."""
    failed = [r for r in door.refused if r.identity is not None]
    other = [r for r in door.refused if r.identity is None]
    sequences = {
        "00081199": [_reference(s.identity) for s in door.stored],
        "00081198": [{**_reference(r.identity), **_failure(r)} for r in failed if r.identity],
        "0008119A": [_failure(r) for r in other],
    }
    return {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}


def _reference(identity: Identity) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [identity.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [identity.sop_instance_uid]},
    }


def _failure(refused: _Refused) -> dict[str, Any]:
    name = f"{refused.filename}: " if refused.filename else ""
    return {
        "00081197": {"vr": "US", "Value": [refused.failure]},
        "0040A160": {"vr": "UT", "Value": [f"{name}{refused.field}: {refused.reason}"]},
    }


class AcceptedFile(BaseModel):
    """A file that is stored and whose event the broker has."""

    filename: str | None = Field(examples=["IM000001.dcm"])
    event_id: str
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    digest: str = Field(description="SHA-256 of the file, lower-case hex.")
    topic: str
    partition: int
    offset: int


class RefusedFile(BaseModel):
    """A file that was not taken."""

    filename: str | None
    field: str = Field(examples=["study_uid"])
    reason: str = Field(examples=["the file has no StudyInstanceUID, without which it cannot be indexed"])


class Uploaded(BaseModel):
    """What became of each file of a form upload."""

    accepted: list[AcceptedFile]
    refused: list[RefusedFile]


_FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            }
        },
    }
}


@router.post("/v1/dicom", scope="imaging:write", status_code=202, openapi_extra=_FORM_BODY)
async def upload(
    request: Request, out: Out, store: Store, tenant: Tenant, client_id: ClientId = ""
) -> Uploaded:
    """Upload DICOM files from a form. 422 where not one of them could be taken."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise Problem(415, "Unsupported media type", "Send multipart/form-data.", field="content-type")
    door = _Door(store, tenant, "form", client_id)
    await door.take(parts(request.stream(), boundary_of(content_type), store, MAX_FILE_BYTES))
    if not door.stored:
        raise Problem(
            422,
            "No DICOM file",
            "None of the files can be taken; see errors for each reason.",
            errors=[(r.filename or r.field, f"{r.field}: {r.reason}") for r in door.refused],
        )
    receipts = await door.publish(out)
    return Uploaded(
        accepted=[
            AcceptedFile(
                **{k: s.event[k] for k in AcceptedFile.model_fields if k in s.event},
                topic=receipt.topic,
                partition=receipt.partition,
                offset=receipt.offset,
            )
            for s, receipt in zip(door.stored, receipts, strict=True)
        ],
        refused=[RefusedFile(filename=r.filename, field=r.field, reason=r.reason) for r in door.refused],
    )
