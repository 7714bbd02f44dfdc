"""The HTTP interface itself: shapes, error codes and sentences that other clients rely on."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.schemas.registry.process import RegistryProcess, record

FIRST = record(("id", "string"))
SECOND = record(("id", "string"), ("note", ["null", "string"], None))
OTHER = record(("till", "int"), name="Till")


def refused(answer: tuple[int, Any]) -> tuple[int, int]:
    status, body = answer
    assert set(body) == {"error_code", "message"}
    return status, body["error_code"]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("", "`schema` is empty"),
        ("{", "is not JSON"),
        ("wrong", "is not JSON"),
        ({"type": "recordd", "name": "A"}, "`type` at the top level is `recordd`"),
        ({"type": "record", "name": "A"}, "record A at the top level has no list `fields`"),
        (record(("a-b", "int")), 'the field\'s `name` at /fields/0 is "a-b"'),
        (record(("a", "int"), ("a", "long")), "field `a` at /fields/1 occurs twice"),
        (record(("a", "Missing")), "`Missing` at /fields/0/type is not defined"),
        (
            record(("a", "int", "x")),
            'the default of field `a` at /fields/0 in shop.Sale is "x", which is no int',
        ),
        (record(("a", ["int", ["null"]])), "a union stands inside a union at /fields/0/type/1"),
        (record(("a", ["int", "int"])), "the union at /fields/0/type holds int twice"),
        ({"type": "enum", "name": "E", "symbols": ["A", "A"]}, "enum E at the top level has a symbol twice"),
        ({"type": "enum", "name": "E", "symbols": ["A"], "default": "B"}, "choose one of A"),
        ({"type": "fixed", "name": "F", "size": -1}, "`size` of fixed F at the top level is -1"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_invalid_schema(registry: RegistryProcess, subject: str, schema: Any, reason: str) -> None:
    """A schema that is none is refused with 42201 and a sentence that names place and reason."""
    answer = registry.register(subject, schema)
    assert refused(answer) == (422, 42201)
    assert reason in answer[1]["message"]


@pytest.mark.parametrize("kind", ["JSON", "PROTOBUF"])
def test_other_schema_types(registry: RegistryProcess, subject: str, kind: str) -> None:
    """Only Avro is kept; another schemaType is refused by name."""
    answer = registry.register(subject, "{}", schemaType=kind)
    assert refused(answer) == (422, 42201)
    assert f"schemaType {kind} is not supported" in answer[1]["message"]


def test_not_found(registry: RegistryProcess, subject: str) -> None:
    """What does not exist is answered with 404 and the code of what is missing."""
    call = registry.call
    assert refused(call("GET", f"/subjects/{subject}/versions")) == (404, 40401)
    assert refused(call("GET", f"/subjects/{subject}/versions/1")) == (404, 40401)
    assert refused(call("POST", f"/subjects/{subject}", {"schema": json.dumps(FIRST)})) == (404, 40401)
    assert refused(call("DELETE", f"/subjects/{subject}")) == (404, 40401)
    registry.register(subject, FIRST)
    assert refused(call("GET", f"/subjects/{subject}/versions/2")) == (404, 40402)
    assert refused(call("GET", f"/subjects/{subject}/versions/0")) == (422, 42202)
    assert refused(call("GET", f"/subjects/{subject}/versions/newest")) == (422, 42202)
    assert refused(call("POST", f"/subjects/{subject}", {"schema": json.dumps(OTHER)})) == (404, 40403)
    assert refused(call("GET", "/schemas/ids/987654")) == (404, 40403)
    assert refused(call("GET", "/schemas/ids/x")) == (404, 40403)
    assert refused(call("GET", "/schemas/guids/0")) == (404, 40403)
    assert refused(call("GET", f"/config/{subject}")) == (404, 40408)
    assert refused(call("GET", f"/mode/{subject}")) == (404, 40409)
    assert refused(call("GET", "/nowhere")) == (404, 404)
    assert refused(call("PUT", "/subjects", {})) == (405, 405)


def test_deletion_takes_two_steps(registry: RegistryProcess, subject: str) -> None:
    """Permanent deletion comes after soft deletion, each once."""
    registry.register(subject, FIRST)
    version, permanent = f"/subjects/{subject}/versions/1", "?permanent=true"
    assert refused(registry.call("DELETE", version + permanent)) == (404, 40407)
    assert refused(registry.call("DELETE", f"/subjects/{subject}{permanent}")) == (404, 40405)
    assert registry.call("DELETE", version) == (200, 1)
    assert refused(registry.call("DELETE", version)) == (404, 40406)
    assert refused(registry.call("DELETE", f"/subjects/{subject}")) == (404, 40404)
    assert registry.call("GET", f"{version}?deleted=true")[1]["deleted"] is True
    assert registry.call("DELETE", f"/subjects/{subject}{permanent}") == (200, [1])
    assert refused(registry.call("GET", f"{version}?deleted=true")) == (404, 40401)


def test_one_content_one_id(registry: RegistryProcess, subject: str) -> None:
    """The same schema, however it is written, has one id in all subjects and keeps its first text."""
    spaced = json.dumps(FIRST | {"doc": subject}, indent=2)
    reordered = json.dumps(
        {
            "doc": subject,
            "fields": [{"type": {"type": "string"}, "name": "id"}],
            "name": "shop.Sale",
            "type": "record",
        }
    )
    first = registry.register(subject, spaced)[1]
    second = registry.register(f"{subject}-2", reordered)[1]
    assert first["id"] == second["id"]
    assert registry.call("GET", f"/schemas/ids/{first['id']}")[1]["schema"] == spaced
    assert registry.call("GET", f"/schemas/ids/{first['id']}/subjects")[1] == [subject, f"{subject}-2"]
    other = registry.register(f"{subject}-3", FIRST | {"doc": f"not {subject}"})[1]
    assert other["id"] > first["id"]


def test_text_comes_back_unchanged(registry: RegistryProcess, subject: str) -> None:
    """Logical types, custom attributes, docs and odd spacing of a schema survive."""
    text = """ {"type": "record", "name": "Odd", "doc": "gr\u00fcn \\u00e9 \U0001f600", "x": {"y": ["a"]},
      "fields": [{"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "x": 1.50},
                 {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}}]}\n"""
    schema_id = registry.register(subject, text)[1]["id"]
    assert registry.call("GET", f"/schemas/ids/{schema_id}")[1]["schema"] == text
    assert registry.call("GET", f"/subjects/{subject}/versions/1/schema") == (200, json.loads(text))


def test_normalize(registry: RegistryProcess, subject: str) -> None:
    """`normalize` stores the normal form, which has the id of every other spelling."""
    schema = FIRST | {"doc": subject}
    normalized = registry.call(
        "POST", f"/subjects/{subject}/versions?normalize=True", {"schema": json.dumps(schema)}
    )[1]
    assert normalized["schema"] == (
        f'{{"doc":"{subject}","fields":[{{"name":"id","type":"string"}}],"name":"shop.Sale","type":"record"}}'
    )
    assert registry.register(f"{subject}-2", schema)[1]["id"] == normalized["id"]


def test_verbose_compatibility(registry: RegistryProcess, subject: str) -> None:
    """A verbose check lists each reason with version and direction; a schema that is none is a reason too."""
    registry.register(subject, FIRST)
    registry.register(subject, SECOND)
    path = f"/compatibility/subjects/{subject}/versions"
    narrow = {"schema": json.dumps(record(("id", "int")))}
    assert registry.call("POST", f"{path}/latest", narrow) == (200, {"is_compatible": False})
    status, verdict = registry.call("POST", f"{path}?verbose=true", narrow)
    assert status == 200 and verdict["is_compatible"] is False
    mismatches = [message for message in verdict["messages"] if message.startswith("TYPE_MISMATCH")]
    assert [message[message.rindex("(") :] for message in mismatches] == [
        "(version 2, backward)",
        "(version 2, forward)",
        "(version 1, backward)",
        "(version 1, forward)",
    ]
    fine = {"schema": json.dumps(SECOND)}
    assert registry.call("POST", f"{path}/1?verbose=true", fine) == (
        200,
        {"is_compatible": True, "messages": []},
    )
    broken = registry.call("POST", f"{path}?verbose=true", {"schema": "{"})
    assert broken[1]["is_compatible"] is False and "is not JSON" in broken[1]["messages"][0]
    assert refused(registry.call("POST", path, {"schema": "{"})) == (422, 42201)
    assert refused(registry.call("POST", f"{path}/9", fine)) == (404, 40402)


def test_missing_reference(registry: RegistryProcess, subject: str) -> None:
    """A reference to what is not registered is refused by name."""
    reference = {"name": "shop.Money", "subject": "nowhere", "version": 1}
    answer = registry.register(subject, record(("price", "shop.Money")), references=[reference])
    assert refused(answer) == (422, 42201)
    assert "subject 'nowhere'" in answer[1]["message"] and "`shop.Money`" in answer[1]["message"]


def test_diamond_of_references(registry: RegistryProcess, subject: str) -> None:
    """Two references that lead to the same third schema are resolved, transitively and once."""
    registry.register(f"{subject}-a", record(("x", "int"), name="A"))
    to_a = {"name": "shop.A", "subject": f"{subject}-a", "version": 1}
    registry.register(f"{subject}-b", record(("a", "shop.A"), name="B"), references=[to_a])
    to_b = {"name": "shop.B", "subject": f"{subject}-b", "version": -1}
    top = record(("a", "shop.A"), ("b", "shop.B"), name="Top")
    status, stored = registry.register(subject, top, references=[to_a, to_b])
    assert status == 200
    assert stored["references"][1]["version"] == 1, "`latest` is pinned, as it would change its meaning"
    wrong = record(("a", "shop.A"), ("b", "shop.B"), ("c", "int"), name="Top")
    assert refused(registry.register(subject, wrong, references=[to_a, to_b])) == (409, 40901)


@pytest.mark.parametrize("name", ["a/b", "with blank", "gr\u00fcn", "100%", "a.b-c_d", "..", "?x=1#y"])
def test_subject_names(registry: RegistryProcess, name: str) -> None:
    """A subject may have any printable name, which is encoded in the path."""
    path = f"/subjects/{quote(name, safe='')}/versions"
    assert registry.call("POST", path, {"schema": json.dumps(FIRST)})[1]["subject"] == name
    assert name in registry.call("GET", "/subjects")[1]
    assert registry.call("GET", path) == (200, [1])


def test_invalid_subject_names(registry: RegistryProcess) -> None:
    """Control characters and contexts, which this registry does not have, are refused."""
    assert refused(registry.register("a%00b", FIRST)) == (422, 42208)
    assert refused(registry.register(":.other:sales", FIRST)) == (422, 42208)
    assert registry.register(":.:default-context", FIRST)[1]["subject"] == "default-context"


def test_lists_are_paged_and_filtered(registry: RegistryProcess, subject: str) -> None:
    """Lists take prefix, offset and limit."""
    names = [f"{subject}-{letter}" for letter in "abc"]
    for name in names:
        registry.register(name, FIRST)
    registry.register(names[0], SECOND)
    assert registry.call("GET", f"/subjects?subjectPrefix={subject}")[1] == names
    assert registry.call("GET", f"/subjects?subjectPrefix={subject}&offset=1&limit=1")[1] == names[1:2]
    found = registry.call("GET", f"/schemas?subjectPrefix={subject}&latestOnly=true")[1]
    assert [(s["subject"], s["version"]) for s in found] == [(names[0], 2), (names[1], 1), (names[2], 1)]
    registry.call("DELETE", f"/subjects/{names[2]}")
    assert registry.call("GET", f"/subjects?subjectPrefix={subject}&deletedOnly=true")[1] == names[2:]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/config", {"compatibility": "UP"}, (422, 42203)),
        ("/config", {"defaultRuleSet": {}}, (422, 422)),
        ("/config", [], (422, 422)),
        ("/config", b"{", (400, 400)),
        ("/mode", {"mode": "FORWARD"}, (422, 42204)),
        ("/mode", {}, (422, 42204)),
    ],
)
def test_bad_settings(registry: RegistryProcess, path: str, body: Any, expected: tuple[int, int]) -> None:
    """A setting that this registry cannot honour is refused, not ignored."""
    assert refused(registry.call("PUT", path, body)) == expected


def test_every_level(registry: RegistryProcess, subject: str) -> None:
    """Each level lets pass what it should: one direction or both, the latest version or all."""
    wider = record(("id", "string"), ("n", "int", 1), ("late", "int"))
    expected = {
        "NONE": True,
        "BACKWARD": False,
        "BACKWARD_TRANSITIVE": False,
        "FORWARD": True,
        "FORWARD_TRANSITIVE": True,
        "FULL": False,
        "FULL_TRANSITIVE": False,
    }
    registry.register(subject, record(("id", "string")))
    registry.register(subject, record(("id", "string"), ("n", "int", 1)))
    for level, passes in expected.items():
        assert registry.call("PUT", f"/config/{subject}", {"compatibility": level})[0] == 200
        verdict = registry.call(
            "POST", f"/compatibility/subjects/{subject}/versions", {"schema": json.dumps(wider)}
        )
        assert verdict == (200, {"is_compatible": passes}), level


def test_import_mode(own_registry: RegistryProcess) -> None:
    """In import mode schemas keep the ids and versions they bring; other content under an id is refused."""
    register = own_registry.register
    assert own_registry.call("PUT", "/mode", {"mode": "IMPORT"}) == (200, {"mode": "IMPORT"})
    assert refused(register("sales", FIRST)) == (422, 42205)
    assert register("sales", FIRST, id=40, version=7)[1]["id"] == 40
    assert refused(register("other", OTHER, id=40, version=1)) == (422, 42207)
    assert refused(register("other", FIRST, id=41, version=1)) == (422, 42207)
    assert own_registry.call("GET", "/subjects/sales/versions")[1] == [7]
    assert own_registry.call("DELETE", "/mode")[0] == 200
    assert refused(register("other", OTHER, id=50)) == (422, 42205)
    following = register("sales", SECOND)[1]
    assert (following["id"], following["version"]) == (41, 8)
    assert refused(own_registry.call("PUT", "/mode", {"mode": "IMPORT"})) == (422, 42205)
    assert own_registry.call("PUT", "/mode?force=true", {"mode": "READONLY_OVERRIDE"})[0] == 200
    assert refused(register("sales", FIRST)) == (422, 42205)


def test_common_settings(own_registry: RegistryProcess) -> None:
    """The common level holds where a subject has none of its own, and falls back to FULL_TRANSITIVE."""
    call = own_registry.call
    assert call("PUT", "/config", {"compatibility": "NONE", "normalize": True})[0] == 200
    assert call("GET", "/config/any?defaultToGlobal=true")[1] == {
        "compatibilityLevel": "NONE",
        "normalize": True,
    }
    assert own_registry.register("any", FIRST)[0] == 200
    assert own_registry.register("any", OTHER)[0] == 200
    assert call("DELETE", "/config")[1] == {"compatibilityLevel": "NONE", "normalize": True}
    assert call("GET", "/config") == (200, {"compatibilityLevel": "FULL_TRANSITIVE"})
    assert refused(own_registry.register("any", FIRST | {"name": "New"})) == (409, 40901)


def test_raw_http(registry: RegistryProcess, subject: str) -> None:
    """Chunked bodies, HEAD, kept connections, oversized bodies and nonsense get a proper answer."""
    address = urlsplit(registry.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    body = json.dumps({"schema": json.dumps(FIRST)}).encode()
    parts = iter([body[:10], body[10:]])
    connection.request(
        "POST",
        f"/subjects/{subject}/versions",
        parts,
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert json.loads(connection.getresponse().read())["version"] == 1
    connection.request("HEAD", "/subjects")
    head = connection.getresponse()
    assert (head.status, head.read()) == (200, b"")
    connection.request("GET", "/", headers={"Accept": "application/vnd.schemaregistry.v1+json"})
    assert json.loads(connection.getresponse().read()) == {}
    connection.putrequest("POST", f"/subjects/{subject}/versions")
    connection.putheader("Content-Length", "999999999")
    connection.endheaders()
    assert json.loads(connection.getresponse().read())["error_code"] == 42209
    connection.close()
    connection.request("PATCH", "/subjects")
    assert json.loads(connection.getresponse().read())["error_code"] == 501
    connection.close()


def test_health(registry: RegistryProcess) -> None:
    """/health and the root answer."""
    assert registry.call("GET", "/health")[1]["status"] == "ok"
    assert registry.call("GET", "/") == (200, {})
