"""What breaks clients of a published API is found, and what does not is let through."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings

from infra.openapi_changes import Fit, breaking

DOCS = Path(__file__).parents[2] / "docs"
API = json.loads((DOCS / "openapi.json").read_text())
GATEWAY = json.loads((DOCS / "openapi-gateway.json").read_text())

Change = Callable[[Any], object]
ORDER = "/v1/orders/{order_id}"
STOCK = "/v1/stock"
RECEIPTS = "/v1/stock/{sku}/receipts"


def model(document: Any, name: str) -> Any:
    return document["components"]["schemas"][name]


def property_of(document: Any, name: str, of: str) -> Any:
    return model(document, name)["properties"][of]


def parameter(document: Any, path: str, name: str) -> Any:
    return next(p for p in document["paths"][path]["get"]["parameters"] if p["name"] == name)


def added(document: Any, path: str, **more: Any) -> None:
    parameters = document["paths"][path]["get"]["parameters"]
    parameters.append({"name": "new", "in": "query", "schema": {"type": "string"}, **more})


def dropped(of: Any, name: str) -> None:
    """A field that an answer has no more."""
    del of["properties"][name]
    of["required"].remove(name)


BREAKING: Mapping[str, tuple[Change, str]] = {
    "a path is gone": (lambda d: d["paths"].pop(ORDER), f"GET {ORDER} is gone"),
    "a method is gone": (lambda d: d["paths"][ORDER].pop("get"), f"GET {ORDER} is gone"),
    "another name for clients": (
        lambda d: d["paths"][ORDER]["get"].update(operationId="one_order"),
        "operationId is one_order instead of order",
    ),
    "another scope": (
        lambda d: d["paths"][ORDER]["get"].update({"x-millrace-scope": "ops:read"}),
        "x-millrace-scope is ops:read instead of orders:read",
    ),
    "a field of an answer is gone": (
        lambda d: dropped(model(d, "Order"), "reason"),
        f"GET {ORDER}: answer 200: `reason` need not be there on one side, but must on the other",
    ),
    "a field within a list is gone": (
        lambda d: dropped(model(d, "Line"), "sku"),
        "`lines[].sku` need not be there",
    ),
    "a field may be missing": (
        lambda d: model(d, "Order")["required"].remove("lines"),
        "`lines` need not be there",
    ),
    "an optional field is gone": (
        lambda d: model(d, "Page_Stock_")["properties"].pop("next_cursor"),
        f"GET {STOCK}: answer 200: `next_cursor` may be gone",
    ),
    "a field may be null": (
        lambda d: property_of(d, "Stock", "on_hand").update(type=["integer", "null"]),
        "`on_hand` can be null, not only integer",
    ),
    "a field of another type": (
        lambda d: property_of(d, "Stock", "on_hand").update(type="string"),
        "`items[].on_hand` can be string, not only integer",
    ),
    "a whole number may be broken": (
        lambda d: property_of(d, "Stock", "on_hand").update(type="number"),
        "can be number, not only integer",
    ),
    "a value that was not named": (
        lambda d: property_of(d, "Order", "status")["enum"].append("LOST"),
        "`status` can be LOST, not only",
    ),
    "no date any more": (
        lambda d: property_of(d, "Order", "placed_at").pop("format"),
        "`placed_at` format is none on one side, date-time on the other",
    ),
    "a tag is gone": (
        lambda d: d["paths"][ORDER]["get"]["responses"]["200"]["headers"].clear(),
        "header ETag is gone",
    ),
    "an answer of another kind": (
        lambda d: d["paths"][ORDER]["get"]["responses"]["200"]["content"].clear(),
        "application/json is no longer given",
    ),
    "a status is gone": (
        lambda d: d["paths"][ORDER]["get"]["responses"].pop("304"),
        "answer 304 is gone",
    ),
    "a parameter is gone": (
        lambda d: d["paths"][STOCK]["get"]["parameters"].clear(),
        "parameter `low` (query) is gone",
    ),
    "a new one is required": (
        lambda d: added(d, STOCK, required=True),
        f"GET {STOCK}: parameter `new` (query) is required now",
    ),
    "an old one is required": (
        lambda d: parameter(d, STOCK, "low").update(required=True),
        "parameter `low` (query) is required now",
    ),
    "less at once": (
        lambda d: parameter(d, STOCK, "limit")["schema"].update(maximum=100),
        "parameter `limit` (query): maximum is 1000 on one side, 100 on the other",
    ),
    "a pattern": (
        lambda d: parameter(d, STOCK, "low")["schema"].update(type="string", pattern="^t"),
        "can be boolean, not only string",
    ),
}
"""By what it is: a change of the API, and how it is told."""

HARMLESS: Mapping[str, Change] = {
    "nothing": lambda d: None,
    "a new path": lambda d: d["paths"].update({"/v1/new": d["paths"][STOCK]}),
    "a new parameter": lambda d: added(d, STOCK),
    "a new field": lambda d: model(d, "Order")["properties"].update(new={"type": "string"}),
    "more at once": lambda d: parameter(d, STOCK, "limit")["schema"].update(maximum=5000),
    "a value less": lambda d: property_of(d, "Order", "status")["enum"].remove("RETURNED"),
    "never null": lambda d: property_of(d, "Order", "reason").update(anyOf=[{"type": "string"}]),
    "other words": lambda d: d["paths"][STOCK]["get"].update(description="Of every SKU."),
    "a field that is always there": lambda d: model(d, "Page_Stock_").update(
        required=["items", "next_cursor"]
    ),
    "another name of a model": lambda d: renamed(d, "Stock", "StockOfSku"),
}


def renamed(document: Any, name: str, to: str) -> None:
    text = json.dumps(document).replace(f'"#/components/schemas/{name}"', f'"#/components/schemas/{to}"')
    document.update(json.loads(text))
    document["components"]["schemas"][to] = document["components"]["schemas"].pop(name)


@pytest.mark.parametrize("what", BREAKING)
def test_what_breaks_a_client_is_told(what: str) -> None:
    """One change of the published description, and a line names the place."""
    change, told = BREAKING[what]
    new = copy.deepcopy(API)
    change(new)
    assert new != API
    found = breaking(API, new)
    assert any(told in line for line in found), found


@pytest.mark.parametrize("what", HARMLESS)
def test_what_breaks_nobody_is_let_through(what: str) -> None:
    """What was sent is still taken, and what is answered is what clients were told of."""
    new = copy.deepcopy(API)
    HARMLESS[what](new)
    assert breaking(API, new) == []


SENT: Mapping[str, tuple[Change, str]] = {
    "a field is required": (
        lambda d: model(d, "StockReceipt")["required"].append("tenant"),
        "body: `tenant` need not be there on one side, but must on the other",
    ),
    "a new field is required": (
        lambda d: model(d, "StockReceipt").update(
            required=["quantity", "new"],
            properties={**model(d, "StockReceipt")["properties"], "new": {"type": "string"}},
        ),
        "body: `new` need not be there",
    ),
    "a field is not taken any more": (
        lambda d: model(d, "StockReceipt")["properties"].pop("tenant"),
        "body: `tenant` is no longer taken",
    ),
    "a lower bound": (
        lambda d: property_of(d, "StockReceipt", "quantity").update(maximum=1),
        "body: `quantity` maximum is",
    ),
    "another kind of body": (
        lambda d: d["paths"][RECEIPTS]["post"]["requestBody"]["content"].clear(),
        "a body of application/json is no longer taken",
    ),
}
"""By what it is: a change of what the gateway takes, and how it is told."""


@pytest.mark.parametrize("what", SENT)
def test_what_is_no_longer_taken_is_told(what: str) -> None:
    """For bodies the other way round: they may be held to less, not to more."""
    change, told = SENT[what]
    new = copy.deepcopy(GATEWAY)
    change(new)
    found = breaking(GATEWAY, new)
    assert any(told in line and RECEIPTS in line for line in found), found


def test_less_is_asked_of_a_body(what: str = "quantity") -> None:
    """A field that need not be sent any more, and a wider one, break nobody."""
    new = copy.deepcopy(GATEWAY)
    model(new, "StockReceipt")["required"].remove(what)
    property_of(new, "StockReceipt", what).pop("maximum", None)
    assert breaking(GATEWAY, new) == []


def test_what_refers_to_itself_has_an_end() -> None:
    """A model within itself is compared once, and a difference in it is found."""
    tree = {"type": "object", "properties": {"n": {"type": "integer"}, "of": {"$ref": "#/Tree"}}}
    other = copy.deepcopy(tree)
    other["properties"]["n"] = {"type": "string"}  # type: ignore[index]
    ref = {"$ref": "#/Tree"}
    assert list(Fit({"Tree": tree}, {"Tree": tree}).reasons(ref, ref)) == []
    found = list(Fit({"Tree": tree}, {"Tree": other}).reasons(ref, ref))
    assert found == ["`n` can be integer, not only string"]


NAMES = st.sampled_from(["a", "b"])
SMALL = st.integers(0, 3)


def _object(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required, more: {
            "type": "object",
            "properties": properties,
            "required": sorted(required),
            **({} if more is None else {"additionalProperties": more}),
        },
        st.dictionaries(NAMES, inner, max_size=2),
        st.sets(NAMES, max_size=2),
        st.none() | st.booleans() | inner,
    )


KINDS = st.lists(st.sampled_from(["null", "boolean", "string"]), unique=True, min_size=1)
NAMED = st.lists(st.sampled_from(["x", "y", 1, None]), unique=True, min_size=1)
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["integer", "number"])},
            optional={"minimum": SMALL, "maximum": SMALL, "exclusiveMinimum": SMALL},
        ),
        st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": SMALL, "maxLength": SMALL}),
        st.fixed_dictionaries({"type": KINDS}),
        st.fixed_dictionaries({"enum": NAMED}),
        st.just({}),
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={"maxItems": SMALL}),
        _object(inner),
        st.builds(lambda every: {"anyOf": every}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.sampled_from([0.5, 2.5, "", "x", "y", "xyz", "wxyz"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.just("c"), inner, max_size=3),
    max_leaves=5,
)


def told(schema: Any) -> Any:
    """The schema without the properties that it says nothing of."""
    if isinstance(schema, list):
        return [told(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: told(value) for name, value in schema.items()}
    return {"additionalProperties": False, **inner} if schema.get("type") == "object" else inner


@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
@given(narrow=SCHEMAS, wide=SCHEMAS, values=st.lists(VALUES, min_size=20, max_size=20))
def test_where_nothing_is_told_every_value_fits(narrow: Any, wide: Any, values: list[Any]) -> None:
    """By an independent validator: no value of a schema is refused by one that it was said to fit."""
    if list(Fit({}, {}).reasons(narrow, wide)):
        wide = narrow  # at least this must fit
        assert list(Fit({}, {}).reasons(narrow, wide)) == []
    for value in values:
        assert not jsonschema_rs.is_valid(told(narrow), value) or jsonschema_rs.is_valid(wide, value), value
