"""Confluent's HTTP interface as a table: method and path to a function of the catalog and the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from schemas.compatibility import Level
from schemas.registry import errors
from schemas.registry.catalog import (
    LATEST,
    Catalog,
    Content,
    Mode,
    Reference,
    Settings,
    Submission,
    Version,
)

DEFAULT_CONTEXT = ":.:"

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What a route sees of a request; `body` is its parsed JSON."""

    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None

    def flag(self, name: str) -> bool:
        """Whether a query parameter is true; Python clients write it with a capital."""
        return self.query.get(name, "").lower() == "true"

    @property
    def subject(self) -> str:
        """The subject in the path. 42208 for one in a context, which this registry does not have."""
        return _subject(self.parts["subject"])

    @property
    def version(self) -> int:
        """The version in the path, LATEST for `latest`. 42202."""
        return _version(self.parts["version"])

    @property
    def id(self) -> int:
        """The schema id in the path. 40403 for what cannot be one."""
        text = self.parts["id"]
        if not text.isdecimal():
            raise errors.schema_not_found(text)
        return int(text)

    def object(self) -> Mapping[str, Any]:
        """The body, which must be a JSON object."""
        if not isinstance(self.body, dict):
            raise errors.unprocessable("the body is no JSON object; send one, as the API reference shows")
        return self.body

    def page(self, entries: Sequence[T]) -> list[T]:
        """The part of a list that `offset` and `limit` ask for."""
        offset, limit = _whole(self.query.get("offset"), 0), _whole(self.query.get("limit"), -1)
        start = max(offset, 0)
        return list(entries[start : start + limit] if limit > 0 else entries[start:])


def _whole(text: str | None, default: int) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        raise errors.unprocessable(f"offset or limit is {text!r}; send a whole number") from None


def _subject(text: str) -> str:
    if text.startswith(DEFAULT_CONTEXT):
        text = text.removeprefix(DEFAULT_CONTEXT)
    if text.startswith(":."):
        raise errors.invalid_subject(text)
    return text


def _version(value: object) -> int:
    if value in ("latest", "-1", LATEST):
        return LATEST
    try:
        number = int(str(value))
    except ValueError:
        raise errors.invalid_version(value) from None
    if not 1 <= number < 2**31:
        raise errors.invalid_version(value)
    return number


def _optional_number(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or value in (0, -1):
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise errors.unprocessable(f"`{name}` is {value!r}; send a whole number or leave it out")
    return value


def _optional_object(body: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise errors.unprocessable(f"`{name}` is {value!r}; send an object or leave it out")
    return value


def _submission(request: Request) -> Submission:
    body = request.object()
    kind = body.get("schemaType") or "AVRO"
    if kind != "AVRO":
        raise errors.invalid_schema(f"schemaType {kind} is not supported by this registry; send AVRO")
    text = body.get("schema")
    if not isinstance(text, str) or not text.strip():
        raise errors.invalid_schema("`schema` is empty or no string; send the schema's JSON as a string")
    references = body.get("references") or []
    if not isinstance(references, list):
        raise errors.invalid_schema("`references` is no list; send a list of objects or leave it out")
    return Submission(
        text=text,
        references=tuple(_reference(entry) for entry in references),
        metadata=_optional_object(body, "metadata"),
        rule_set=_optional_object(body, "ruleSet"),
        id=_optional_number(body, "id"),
        version=_optional_number(body, "version"),
        normalize=request.flag("normalize"),
    )


def _reference(entry: Any) -> Reference:
    if isinstance(entry, dict):
        name, subject = entry.get("name"), entry.get("subject")
        if isinstance(name, str) and isinstance(subject, str):
            return Reference(name, _subject(subject), _version(entry.get("version")))
    raise errors.invalid_schema(f"the reference {entry!r} lacks name, subject or version; send all three")


def _text(catalog: Catalog, request: Request, content: Content) -> str:
    return catalog.resolved_text(content) if request.query.get("format") == "resolved" else content.text


def _content(catalog: Catalog, request: Request, content: Content) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": content.id,
        "schemaType": "AVRO",
        "schema": _text(catalog, request, content),
        "guid": content.guid,
    }
    if content.references:
        body["references"] = [reference._asdict() for reference in content.references]
    if content.metadata is not None:
        body["metadata"] = content.metadata
    if content.rule_set is not None:
        body["ruleSet"] = content.rule_set
    return body


def _registered(catalog: Catalog, request: Request, version: Version) -> dict[str, Any]:
    body: dict[str, Any] = {"subject": version.subject, "version": version.number}
    if version.deleted:
        body["deleted"] = True
    return body | _content(catalog, request, version.content)


# Schemas


def _get_schemas(catalog: Catalog, request: Request) -> Any:
    found = catalog.all_versions(
        _subject(request.query.get("subjectPrefix", "")), request.flag("deleted"), request.flag("latestOnly")
    )
    return request.page([_registered(catalog, request, version) for version in found])


def _get_types(catalog: Catalog, request: Request) -> Any:
    return ["AVRO"]


def _get_id(catalog: Catalog, request: Request) -> Any:
    content = catalog.content(request.id)
    body = _content(catalog, request, content)
    subject = _subject(request.query.get("subject", ""))
    holders = [held for held in catalog.holders(content.id, deleted=True) if held.subject == subject]
    if holders:
        body |= {"subject": subject, "version": holders[-1].number}
    return body


def _get_id_schema(catalog: Catalog, request: Request) -> Raw:
    return Raw(_text(catalog, request, catalog.content(request.id)))


def _holders(catalog: Catalog, request: Request) -> list[Version]:
    catalog.content(request.id)
    subject = _subject(request.query.get("subject", ""))
    held = catalog.holders(request.id, request.flag("deleted"))
    return [version for version in held if subject in ("", version.subject)]


def _get_id_subjects(catalog: Catalog, request: Request) -> Any:
    return request.page(list(dict.fromkeys(version.subject for version in _holders(catalog, request))))


def _get_id_versions(catalog: Catalog, request: Request) -> Any:
    held = _holders(catalog, request)
    return request.page([{"subject": version.subject, "version": version.number} for version in held])


def _get_guid(catalog: Catalog, request: Request) -> Any:
    return _content(catalog, request, catalog.content_of_guid(request.parts["guid"]))


def _get_guid_ids(catalog: Catalog, request: Request) -> Any:
    return [{"context": ".", "id": catalog.content_of_guid(request.parts["guid"]).id}]


# Subjects


def _get_subjects(catalog: Catalog, request: Request) -> Any:
    prefix = request.query.get("subjectPrefix", "").removeprefix(":*:")
    return request.page(
        catalog.subjects(_subject(prefix), request.flag("deleted"), request.flag("deletedOnly"))
    )


def _find(catalog: Catalog, request: Request) -> Any:
    found = catalog.find(request.subject, _submission(request), request.flag("deleted"))
    return _registered(catalog, request, found)


def _delete_subject(catalog: Catalog, request: Request) -> Any:
    return catalog.delete_subject(request.subject, request.flag("permanent"))


def _get_versions(catalog: Catalog, request: Request) -> Any:
    found = catalog.versions(request.subject, request.flag("deleted"), request.flag("deletedOnly"))
    return request.page([version.number for version in found])


def _register(catalog: Catalog, request: Request) -> Any:
    return _registered(catalog, request, catalog.register(request.subject, _submission(request)))


def _get_version(catalog: Catalog, request: Request) -> Any:
    found = catalog.version(request.subject, request.version, request.flag("deleted"))
    return _registered(catalog, request, found)


def _get_version_schema(catalog: Catalog, request: Request) -> Raw:
    found = catalog.version(request.subject, request.version, request.flag("deleted"))
    return Raw(_text(catalog, request, found.content))


def _get_referencedby(catalog: Catalog, request: Request) -> Any:
    version = catalog.version(request.subject, request.version, deleted=True)
    found = catalog.referrers(version.subject, version.number, request.flag("deleted"))
    return request.page(sorted({referrer.content.id for referrer in found}))


def _delete_version(catalog: Catalog, request: Request) -> Any:
    return catalog.delete_version(request.subject, request.version, request.flag("permanent"))


def _get_metadata(catalog: Catalog, request: Request) -> Any:
    key, value = request.query.get("key"), request.query.get("value")
    for version in reversed(catalog.versions(request.subject, request.flag("deleted"))):
        properties = (version.content.metadata or {}).get("properties") or {}
        if key is None or (key in properties and properties[key] == value):
            return _registered(catalog, request, version)
    raise errors.schema_not_found()


# Compatibility


def _judge(catalog: Catalog, request: Request) -> Any:
    number = request.version if "version" in request.parts else None
    try:
        reasons = catalog.judge(request.subject, _submission(request), number)
    except errors.RegistryError as error:
        if error.code != 42201 or not request.flag("verbose"):
            raise
        reasons = [str(error)]
    verdict: dict[str, Any] = {"is_compatible": not reasons}
    return verdict | {"messages": reasons} if request.flag("verbose") else verdict


# Settings and modes

_SETTING_NAMES = {"compatibility", "compatibilityLevel", "normalize"}


def _scope(request: Request) -> str | None:
    return request.subject or None if "subject" in request.parts else None


def _settings(settings: Settings) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if settings.level is not None:
        body["compatibilityLevel"] = settings.level
    if settings.normalize is not None:
        body["normalize"] = settings.normalize
    return body


def _get_settings(catalog: Catalog, request: Request) -> Any:
    scope = _scope(request)
    own = catalog.settings(scope)
    if scope is None or request.flag("defaultToGlobal"):
        return _settings(catalog.settings_in_scope(scope))
    if own == Settings():
        raise errors.no_subject_config(scope)
    return _settings(own)


def _put_settings(catalog: Catalog, request: Request) -> Any:
    body = {name: value for name, value in request.object().items() if value is not None}
    unsupported = sorted(set(body) - _SETTING_NAMES)
    if unsupported:
        raise errors.unprocessable(
            f"{', '.join(unsupported)} is not supported by this registry;"
            " send compatibility or normalize only"
        )
    wanted = body.get("compatibility", body.get("compatibilityLevel"))
    try:
        level = None if wanted is None else Level(str(wanted).upper())
    except ValueError:
        raise errors.invalid_level(wanted, list(Level)) from None
    normalize = body.get("normalize")
    if normalize is not None and not isinstance(normalize, bool):
        raise errors.unprocessable(f"`normalize` is {normalize!r}; send true or false")
    stored = catalog.set_settings(_scope(request), Settings(level, normalize))
    answer = _settings(stored)
    if "compatibilityLevel" in answer:
        answer["compatibility"] = answer.pop("compatibilityLevel")
    return answer


def _delete_settings(catalog: Catalog, request: Request) -> Any:
    scope = _scope(request)
    old = catalog.settings(scope)
    if scope is not None and old == Settings():
        raise errors.subject_not_found(scope)
    before = _settings(old if scope is not None else catalog.settings_in_scope(None))
    catalog.set_settings(scope, None)
    return before


def _get_mode(catalog: Catalog, request: Request) -> Any:
    scope = _scope(request)
    if scope is None or request.flag("defaultToGlobal"):
        return {"mode": catalog.mode_in_scope(scope)}
    mode = catalog.mode(scope)
    if mode is None:
        raise errors.no_subject_mode(scope)
    return {"mode": mode}


def _put_mode(catalog: Catalog, request: Request) -> Any:
    wanted = request.object().get("mode")
    try:
        mode = Mode(str(wanted).upper())
    except ValueError:
        raise errors.invalid_mode(wanted, list(Mode)) from None
    catalog.set_mode(_scope(request), mode, request.flag("force"))
    return {"mode": mode}


def _delete_mode(catalog: Catalog, request: Request) -> Any:
    scope = _scope(request)
    old = catalog.mode(scope)
    if old is None and scope is not None:
        raise errors.subject_not_found(scope)
    catalog.set_mode(scope, None)
    return {"mode": old or Mode.READWRITE}


# The registry itself


def _get_root(catalog: Catalog, request: Request) -> Any:
    return {}


def _get_contexts(catalog: Catalog, request: Request) -> Any:
    return request.page(["."])


def _get_health(catalog: Catalog, request: Request) -> Any:
    return {"status": "ok", "subjects": len(catalog.subjects())}


def _get_server_version(catalog: Catalog, request: Request) -> Any:
    return {"version": "millrace", "commitId": ""}


def _get_server_id(catalog: Catalog, request: Request) -> Any:
    return {"id": "millrace", "scope": {"path": [], "clusters": {}}}


def _get_associations(catalog: Catalog, request: Request) -> Any:
    """None: clients with the `ASSOCIATED` strategy then name subjects after topics."""
    return []


class Raw(str):
    """An answer that is sent as it stands, not as JSON."""


Handler = Callable[[Catalog, Request], Any]

ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/"): _get_root,
    ("GET", "/health"): _get_health,
    ("GET", "/contexts"): _get_contexts,
    ("GET", "/v1/metadata/id"): _get_server_id,
    ("GET", "/v1/metadata/version"): _get_server_version,
    ("GET", "/associations/resources/{namespace}/{name}"): _get_associations,
    ("GET", "/schemas"): _get_schemas,
    ("GET", "/schemas/types"): _get_types,
    ("GET", "/schemas/ids/{id}"): _get_id,
    ("GET", "/schemas/ids/{id}/schema"): _get_id_schema,
    ("GET", "/schemas/ids/{id}/subjects"): _get_id_subjects,
    ("GET", "/schemas/ids/{id}/versions"): _get_id_versions,
    ("GET", "/schemas/guids/{guid}"): _get_guid,
    ("GET", "/schemas/guids/{guid}/ids"): _get_guid_ids,
    ("GET", "/subjects"): _get_subjects,
    ("POST", "/subjects/{subject}"): _find,
    ("DELETE", "/subjects/{subject}"): _delete_subject,
    ("GET", "/subjects/{subject}/metadata"): _get_metadata,
    ("GET", "/subjects/{subject}/versions"): _get_versions,
    ("POST", "/subjects/{subject}/versions"): _register,
    ("GET", "/subjects/{subject}/versions/{version}"): _get_version,
    ("DELETE", "/subjects/{subject}/versions/{version}"): _delete_version,
    ("GET", "/subjects/{subject}/versions/{version}/schema"): _get_version_schema,
    ("GET", "/subjects/{subject}/versions/{version}/referencedby"): _get_referencedby,
    ("POST", "/compatibility/subjects/{subject}/versions"): _judge,
    ("POST", "/compatibility/subjects/{subject}/versions/{version}"): _judge,
    ("GET", "/config"): _get_settings,
    ("PUT", "/config"): _put_settings,
    ("DELETE", "/config"): _delete_settings,
    ("GET", "/config/{subject}"): _get_settings,
    ("PUT", "/config/{subject}"): _put_settings,
    ("DELETE", "/config/{subject}"): _delete_settings,
    ("GET", "/mode"): _get_mode,
    ("PUT", "/mode"): _put_mode,
    ("DELETE", "/mode"): _delete_mode,
    ("GET", "/mode/{subject}"): _get_mode,
    ("PUT", "/mode/{subject}"): _put_mode,
    ("DELETE", "/mode/{subject}"): _delete_mode,
}


class _Pattern(NamedTuple):
    method: str
    segments: tuple[str, ...]
    handler: Handler


def _split(path: str) -> tuple[str, ...]:
    return tuple(segment for segment in path.split("/") if segment)


_PATTERNS = [_Pattern(method, _split(path), handler) for (method, path), handler in ROUTES.items()]


def _match(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    parts: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            parts[expected[1:-1]] = unquote(segment)
        elif expected != segment:
            return None
    return parts


def answer(catalog: Catalog, method: str, target: str, body: Any) -> Any:
    """The answer to one request: JSON, or `Raw` text. Raises RegistryError.

    `target` is the request's path and query as received; a subject may hold an encoded slash, so the
    path is split before it is decoded.
    """
    url = urlsplit(target)
    segments = _split(url.path)
    allowed = False
    for pattern in _PATTERNS:
        parts = _match(pattern.segments, segments)
        if parts is None:
            continue
        if pattern.method == method:
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            return pattern.handler(catalog, Request(parts, query, body))
        allowed = True
    if allowed:
        raise errors.RegistryError(405, 405, f"HTTP 405 {method} is not allowed on {url.path}")
    raise errors.RegistryError(404, 404, f"HTTP 404 {url.path} is no resource of this registry")
