"""What the registry knows, and the rules by which it changes: subjects, versions, ids, levels, modes.

Every change is an event: checked against the state, made durable in the journal, then applied. The
same `_apply` folds the journal at start, so a restart cannot come to another state. Ids and
versions only grow and are never given out again, not even after a permanent deletion.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from schemas import avro
from schemas.compatibility import Incompatibility, Level, check_evolution
from schemas.registry import errors
from schemas.registry.journal import Event, Journal, JournalError

LATEST = -1
DEFAULT_LEVEL = Level.FULL_TRANSITIVE


class Mode(StrEnum):
    """What may be changed (Confluent's names). READONLY_OVERRIDE, set globally, overrules subjects."""

    READWRITE = "READWRITE"
    READONLY = "READONLY"
    READONLY_OVERRIDE = "READONLY_OVERRIDE"
    IMPORT = "IMPORT"


class Reference(NamedTuple):
    """A type that a schema uses and that is registered elsewhere: its full name, subject and version."""

    name: str
    subject: str
    version: int


@dataclass(frozen=True)
class Submission:
    """A schema as a client sends it. `id` and `version` are only for IMPORT mode."""

    text: str
    references: tuple[Reference, ...] = ()
    metadata: Mapping[str, Any] | None = None
    rule_set: Mapping[str, Any] | None = None
    id: int | None = None
    version: int | None = None
    normalize: bool = False


@dataclass(frozen=True)
class Content:
    """One schema as stored: its text as first sent, and the digests by which it is recognised.

    `fingerprint` covers the normal form, references, metadata and rules: it decides the id.
    `resolved` covers the normal form with all references written out.
    """

    id: int
    text: str
    references: tuple[Reference, ...]
    metadata: Mapping[str, Any] | None
    rule_set: Mapping[str, Any] | None
    fingerprint: str
    resolved: str

    @property
    def guid(self) -> str:
        """A name of the content that is the same in every registry of this kind."""
        return str(uuid.UUID(self.fingerprint[:32]))


@dataclass
class Version:
    """One version of a subject."""

    subject: str
    number: int
    content: Content
    deleted: bool = False


@dataclass
class _Subject:
    versions: dict[int, Version] = field(default_factory=dict)
    last: int = 0

    def live(self) -> list[Version]:
        return [version for version in self.versions.values() if not version.deleted]


@dataclass(frozen=True)
class _Candidate:
    """A submission after parsing; its content has no id yet."""

    schema: avro.Schema
    text: str
    references: tuple[Reference, ...]
    fingerprint: str
    resolved: str


@dataclass(frozen=True)
class Settings:
    """The settings of a subject, or of all of them. None: not set here."""

    level: Level | None = None
    normalize: bool | None = None


class Catalog:
    """The registry's state. Methods are thread-safe and raise RegistryError where they refuse.

    A method that changes something returns only after the change is durable.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.RLock()
        self._subjects: dict[str, _Subject] = {}
        self._contents: dict[int, Content] = {}
        self._ids: dict[str, int] = {}
        self._settings: dict[str | None, Settings] = {}
        self._modes: dict[str | None, Mode] = {}
        self._parsed: dict[int, avro.Schema] = {}
        for event in journal.events:
            self._apply(event)

    def close(self) -> None:
        """Wait for the change under way, then release the journal. Later changes are refused."""
        with self._lock:
            self._journal.close()

    # Reading

    def subjects(self, prefix: str = "", deleted: bool = False, deleted_only: bool = False) -> list[str]:
        """Names of the subjects that have a version, in order."""
        with self._lock:
            return sorted(
                name
                for name, subject in self._subjects.items()
                if name.startswith(prefix) and any(_listed(subject.versions.values(), deleted, deleted_only))
            )

    def versions(self, subject: str, deleted: bool = False, deleted_only: bool = False) -> list[Version]:
        """A subject's versions, oldest first. 40401 if it has none at all."""
        with self._lock:
            known = self._subjects.get(subject, _Subject()).versions.values()
            if not any(_listed(known, deleted or deleted_only, False)):
                raise errors.subject_not_found(subject)
            return list(_listed(known, deleted, deleted_only))

    def version(self, subject: str, number: int, deleted: bool = False) -> Version:
        """One version; LATEST is the highest. 40401, 40402."""
        with self._lock:
            found = self.versions(subject, deleted)
            if number == LATEST:
                return found[-1]
            for version in found:
                if version.number == number:
                    return version
            raise errors.version_not_found(number)

    def all_versions(self, prefix: str = "", deleted: bool = False, latest: bool = False) -> list[Version]:
        """The versions of all subjects whose name begins with `prefix`; only each one's latest on request."""
        with self._lock:
            return [
                version
                for name in self.subjects(prefix, deleted)
                for version in self.versions(name, deleted)[-1 if latest else 0 :]
            ]

    def content(self, schema_id: int) -> Content:
        """The schema of an id, as long as any version, deleted or not, holds it. 40403."""
        with self._lock:
            if not self.holders(schema_id, deleted=True):
                raise errors.schema_not_found(schema_id)
            return self._contents[schema_id]

    def content_of_guid(self, guid: str) -> Content:
        """The schema of a guid. 40403."""
        with self._lock:
            for content in self._contents.values():
                if content.guid == guid:
                    return self.content(content.id)
            raise errors.schema_not_found(guid)

    def holders(self, schema_id: int, deleted: bool = False) -> list[Version]:
        """The versions that hold an id."""
        with self._lock:
            return [
                version
                for name in sorted(self._subjects)
                for version in _listed(self._subjects[name].versions.values(), deleted, False)
                if version.content.id == schema_id
            ]

    def referrers(self, subject: str, number: int, deleted: bool = False) -> list[Version]:
        """The versions whose schemas refer to this one."""
        with self._lock:
            return [
                version
                for held in self._subjects.values()
                for version in _listed(held.versions.values(), deleted, False)
                if any((ref.subject, ref.version) == (subject, number) for ref in version.content.references)
            ]

    def resolved_text(self, content: Content) -> str:
        """The normal form with every reference written out."""
        with self._lock:
            return avro.normalized(self._schema(content))

    def find(self, subject: str, submission: Submission, deleted: bool = False) -> Version:
        """The version under which a subject holds this schema. 40401, 40403, 42201."""
        with self._lock:
            known = self.versions(subject, deleted)
            for attempt in (submission, _inheriting(submission, known)):
                found = _same(known, self._candidate(subject, attempt))
                if found:
                    return found
            raise errors.schema_not_found()

    def judge(self, subject: str, submission: Submission, number: int | None = None) -> list[str]:
        """Why a schema may not follow the subject's versions, or only `number`; empty if it may.

        40401 and 40402 for an unknown number, 42201.
        """
        with self._lock:
            candidate = self._candidate(subject, submission)
            earlier = self._subjects.get(subject, _Subject()).live()
            if number == LATEST:
                earlier = earlier[-1:]
            elif number is not None:
                earlier = [self.version(subject, number)]
            return self._reasons(subject, candidate, earlier)

    def settings(self, subject: str | None) -> Settings:
        """What is set at exactly this place (None: for all subjects)."""
        with self._lock:
            return self._settings.get(subject, Settings())

    def settings_in_scope(self, subject: str | None) -> Settings:
        """What holds for a subject: its own settings, else the common ones, else the defaults."""
        with self._lock:
            own, common = self.settings(subject), self.settings(None)
            normalize = own.normalize if own.normalize is not None else common.normalize
            return Settings(own.level or common.level or DEFAULT_LEVEL, normalize)

    def mode(self, subject: str | None) -> Mode | None:
        """The mode set at exactly this place."""
        with self._lock:
            return self._modes.get(subject)

    def mode_in_scope(self, subject: str | None) -> Mode:
        """The mode that holds for a subject."""
        with self._lock:
            common = self._modes.get(None, Mode.READWRITE)
            if common is Mode.READONLY_OVERRIDE:
                return common
            return self._modes.get(subject, common)

    # Changing

    def register(self, subject: str, submission: Submission) -> Version:
        """Store a schema as the subject's next version, or find it. 409, 42201, 42205, 42207, 42208."""
        if not subject or any(ord(character) < 32 for character in subject):
            raise errors.invalid_subject(subject)
        with self._lock:
            mode = self._require_writable(subject)
            importing = mode is Mode.IMPORT
            if importing != (submission.id is not None):
                raise errors.not_permitted(
                    f"Subject {subject} is in import mode; send the schema's id and version"
                    if importing
                    else f"Subject {subject} is not in import mode; leave the id out"
                )
            state = self._subjects.get(subject, _Subject())
            if not importing:
                submission = _inheriting(submission, state.live())
            candidate = self._candidate(subject, submission)
            schema_id = self._ids.get(candidate.fingerprint)
            if importing:
                schema_id = self._imported_id(submission, schema_id)
            else:
                found = _same(state.live(), candidate)
                if found:
                    return found
                reasons = self._reasons(subject, candidate, state.live())
                if reasons:
                    raise errors.incompatible(subject, reasons)
            number = state.last + 1
            if submission.version is not None and submission.version != number:
                if not importing or submission.version < number:
                    raise errors.invalid_schema(
                        f"version {submission.version} cannot follow version {state.last} of {subject};"
                        f" leave it out, or send {number}"
                    )
                number = submission.version
            event: Event = {"op": "register", "subject": subject, "version": number}
            if schema_id is None or schema_id not in self._contents:
                event["id"] = schema_id or max(self._contents, default=0) + 1
                event["content"] = {
                    "text": candidate.text,
                    "references": [reference._asdict() for reference in candidate.references],
                    "metadata": submission.metadata,
                    "ruleSet": submission.rule_set,
                    "fingerprint": candidate.fingerprint,
                    "resolved": candidate.resolved,
                }
            else:
                event["id"] = schema_id
            self._change(event)
            return self._subjects[subject].versions[number]

    def delete_version(self, subject: str, number: int, permanent: bool = False) -> int:
        """Delete one version; permanently only after softly. 40401, 40402, 40406, 40407, 42205, 42206."""
        with self._lock:
            version = self.version(subject, number, deleted=number != LATEST or permanent)
            self._require_writable(subject)
            if permanent and not version.deleted:
                raise errors.version_not_soft_deleted(subject, version.number)
            if not permanent and version.deleted:
                raise errors.version_soft_deleted(subject, version.number)
            if self.referrers(subject, version.number, deleted=permanent):
                raise errors.reference_exists(subject, version.number)
            self._delete(subject, [version.number], permanent, whole=False)
            return version.number

    def delete_subject(self, subject: str, permanent: bool = False) -> list[int]:
        """Delete all versions, settings and mode. 40401, 40404, 40405, 42205, 42206."""
        with self._lock:
            known = self.versions(subject, deleted=True)
            self._require_writable(subject)
            live = [version for version in known if not version.deleted]
            if permanent and live:
                raise errors.subject_not_soft_deleted(subject)
            if not permanent and not live:
                raise errors.subject_soft_deleted(subject)
            doomed = known if permanent else live
            for version in doomed:
                if any(r.subject != subject for r in self.referrers(subject, version.number, permanent)):
                    raise errors.reference_exists(subject, version.number)
            numbers = [version.number for version in doomed]
            self._delete(subject, numbers, permanent, whole=True)
            return numbers

    def set_settings(self, subject: str | None, settings: Settings | None) -> Settings:
        """Set or (None) remove settings; what is None within them stays as it was. 42205."""
        with self._lock:
            self._require_writable(subject)
            value: dict[str, Any] | None = None
            if settings is not None:
                old = self.settings(subject)
                normalize = settings.normalize if settings.normalize is not None else old.normalize
                value = {"level": settings.level or old.level, "normalize": normalize}
            self._change({"op": "settings", "subject": subject, "value": value})
            return self.settings(subject)

    def set_mode(self, subject: str | None, mode: Mode | None, force: bool = False) -> None:
        """Set or (None) remove a mode. IMPORT needs that no schema exists there, or `force`. 42205."""
        with self._lock:
            if mode is Mode.IMPORT and self.mode_in_scope(subject) is not Mode.IMPORT and not force:
                names = self.subjects() if subject is None else [s for s in self.subjects() if s == subject]
                if names:
                    raise errors.not_permitted(
                        f"Cannot import since subjects exist already: {', '.join(names[:5])}; use force=true"
                    )
            self._change({"op": "mode", "subject": subject, "value": mode})

    def _require_writable(self, subject: str | None) -> Mode:
        mode = self.mode_in_scope(subject)
        if mode in (Mode.READONLY, Mode.READONLY_OVERRIDE):
            raise errors.not_permitted(
                f"Subject {subject or '(all)'} is in read-only mode; set READWRITE first"
            )
        return mode

    def _delete(self, subject: str, numbers: list[int], permanent: bool, whole: bool) -> None:
        self._change(
            {"op": "delete", "subject": subject, "versions": numbers, "permanent": permanent, "whole": whole}
        )

    def _imported_id(self, submission: Submission, known: int | None) -> int:
        wanted = submission.id
        assert wanted is not None, "import mode was checked to come with an id"
        if wanted < 1:
            raise errors.not_permitted(f"Id {wanted} cannot be imported; send an id of 1 or more")
        if known != wanted and (known is not None or wanted in self._contents):
            raise errors.id_does_not_match(wanted)
        return wanted

    def _change(self, event: Event) -> None:
        try:
            self._journal.append(event)
        except JournalError as error:
            raise errors.store_failure(str(error)) from error
        self._apply(event)

    def _apply(self, event: Event) -> None:
        match event["op"]:
            case "register":
                content = event.get("content")
                if content:
                    self._learn(event["id"], content)
                state = self._subjects.setdefault(event["subject"], _Subject())
                number = event["version"]
                state.versions[number] = Version(event["subject"], number, self._contents[event["id"]])
                state.last = number
            case "delete":
                state = self._subjects[event["subject"]]
                for number in event["versions"]:
                    if event["permanent"]:
                        del state.versions[number]
                    else:
                        state.versions[number].deleted = True
                if event["whole"] or not state.versions:
                    self._settings.pop(event["subject"], None)
                    self._modes.pop(event["subject"], None)
            case "settings":
                value = event["value"]
                if value is None:
                    self._settings.pop(event["subject"], None)
                else:
                    level = Level(value["level"]) if value["level"] else None
                    self._settings[event["subject"]] = Settings(level, value["normalize"])
            case "mode":
                if event["value"] is None:
                    self._modes.pop(event["subject"], None)
                else:
                    self._modes[event["subject"]] = Mode(event["value"])
            case op:
                raise JournalError(
                    f"{self._journal.path} holds a change of kind {op!r}, which this version does not know;"
                    " start the newer version that wrote it"
                )

    def _learn(self, schema_id: int, content: Mapping[str, Any]) -> None:
        self._contents[schema_id] = Content(
            id=schema_id,
            text=content["text"],
            references=tuple(Reference(**reference) for reference in content["references"]),
            metadata=content["metadata"],
            rule_set=content["ruleSet"],
            fingerprint=content["fingerprint"],
            resolved=content["resolved"],
        )
        self._ids[content["fingerprint"]] = schema_id

    # Recognising and comparing schemas

    def _candidate(self, subject: str, submission: Submission) -> _Candidate:
        names: dict[str, avro.Schema] = {}
        visited: set[tuple[str, int]] = set()
        references = tuple(self._pinned(reference) for reference in submission.references)
        try:
            for reference in references:
                self._enter(reference, names, visited)
            external = frozenset(names)
            schema = avro.parse(avro.load(submission.text), names)
        except avro.SchemaError as error:
            raise errors.invalid_schema(str(error)) from error
        short = avro.normalized(schema, external)
        extras = [submission.metadata, submission.rule_set]
        normalize = submission.normalize or self.settings_in_scope(subject).normalize
        return _Candidate(
            schema=schema,
            text=short if normalize else submission.text,
            references=references,
            fingerprint=_digest([short, sorted(set(references)), *extras]),
            resolved=_digest([avro.normalized(schema), *extras]),
        )

    def _pinned(self, reference: Reference) -> Reference:
        """The reference with its version as a number, as `latest` would change its meaning."""
        try:
            number = self.version(reference.subject, reference.version).number
        except errors.RegistryError:
            raise errors.invalid_schema(
                f"no schema is registered as version {reference.version} of subject '{reference.subject}',"
                f" to which the reference `{reference.name}` points; register it first"
            ) from None
        return reference._replace(version=number)

    def _enter(
        self, reference: Reference, names: dict[str, avro.Schema], visited: set[tuple[str, int]]
    ) -> None:
        """Parse what a reference points at, its own references first, into `names`."""
        place = (reference.subject, reference.version)
        if place in visited:
            return
        visited.add(place)
        content = self._subjects[reference.subject].versions[reference.version].content
        for inner in content.references:
            self._enter(inner, names, visited)
        avro.parse(avro.load(content.text), names)

    def _schema(self, content: Content) -> avro.Schema:
        if content.id not in self._parsed:
            names: dict[str, avro.Schema] = {}
            visited: set[tuple[str, int]] = set()
            for reference in content.references:
                self._enter(reference, names, visited)
            self._parsed[content.id] = avro.parse(avro.load(content.text), names)
        return self._parsed[content.id]

    def _reasons(self, subject: str, candidate: _Candidate, earlier: list[Version]) -> list[str]:
        level = self.settings_in_scope(subject).level or DEFAULT_LEVEL
        try:
            found = check_evolution(candidate.schema, [self._schema(v.content) for v in earlier], level)
        except avro.SchemaError as error:
            raise errors.invalid_schema(str(error)) from error
        reasons = [_sentence(reason, earlier[reason.earlier].number) for reason in found]
        return [*reasons, f"compatibility level: {level}"] if reasons else []


def _listed(versions: Iterable[Version], deleted: bool, deleted_only: bool) -> Iterator[Version]:
    return (v for v in versions if (v.deleted if deleted_only else deleted or not v.deleted))


def _sentence(reason: Incompatibility, number: int) -> str:
    return f"{reason} (version {number}, {reason.direction})"


def _same(versions: list[Version], candidate: _Candidate) -> Version | None:
    """The newest version with the candidate's content, else with the same types, references written out."""
    for attribute in ("fingerprint", "resolved"):
        for version in reversed(versions):
            if getattr(version.content, attribute) == getattr(candidate, attribute):
                return version
    return None


def _inheriting(submission: Submission, versions: list[Version]) -> Submission:
    """The submission with the latest version's metadata and rules, where it brings none of its own."""
    if submission.metadata is not None or submission.rule_set is not None or not versions:
        return submission
    latest = versions[-1].content
    return Submission(
        text=submission.text,
        references=submission.references,
        metadata=latest.metadata,
        rule_set=latest.rule_set,
        id=submission.id,
        version=submission.version,
        normalize=submission.normalize,
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
