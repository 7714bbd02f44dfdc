"""What a PromQL expression asks for, held against the list of metrics: names, labels, and what can match."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser as ast

from infra.telemetry.metrics import METRICS

TARGET = frozenset({"job", "instance", "role", "pipeline"})
"""The labels that every scraped series has besides its own."""


class Unsound(AssertionError):
    """An expression that can find nothing, or not what it says."""


@cache
def series() -> dict[str, frozenset[str]]:
    """Every series that Prometheus can hold, by name, with its labels."""
    found = {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate", "severity"}}
    for metric in METRICS:
        labels = TARGET | set(metric.labels)
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


def labels(expression: str) -> frozenset[str]:
    """The labels that the expression's result can have. Raises `Unsound`, or ValueError for its syntax."""
    return _labels(ast.parse(expression)) or frozenset()


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each series selected: its name, and the labels that must equal a value."""
    waiting = [ast.parse(expression)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.VectorSelector):
            equal = [(m.name, m.value) for m in node.matchers.matchers if m.op == ast.MatchOp.Equal]
            yield str(node.name), equal
        parts = ("expr", "lhs", "rhs", "vector_selector")
        waiting += [getattr(node, part) for part in parts if hasattr(node, part)]
        waiting += getattr(node, "args", [])


def _labels(node: Any) -> frozenset[str] | None:
    """The labels of a node's result; None for a number, which goes with anything."""
    match node:
        case ast.NumberLiteral() | ast.StringLiteral():
            return None
        case ast.VectorSelector():
            if node.name not in series():
                raise Unsound(f"there is no metric {node.name!r}; docs/metrics.md has them all")
            known = series()[node.name]
            _require({m.name for m in node.matchers.matchers}, known, f"{node.name} has no label")
            return known
        case ast.MatrixSelector():
            return _labels(node.vector_selector)
        case ast.ParenExpr() | ast.UnaryExpr() | ast.SubqueryExpr():
            return _labels(node.expr)
        case ast.Call():
            return _call(node)
        case ast.AggregateExpr():
            inner = _labels(node.expr) or frozenset()
            if node.modifier is None:
                return frozenset()
            named = frozenset(node.modifier.labels)
            _require(named, inner, f"{node.prettify()!r} groups by what it does not have:")
            return named if node.modifier.type == ast.AggModifierType.By else inner - named
        case ast.BinaryExpr():
            return _binary(node)
    raise Unsound(f"{type(node).__name__} is not understood here; teach it to tests/infra/promql.py")


def _call(node: Any) -> frozenset[str] | None:
    found = [inner for argument in node.args if (inner := _labels(argument)) is not None]
    if node.func.name == "histogram_quantile":
        if "le" not in found[-1]:
            raise Unsound(f"{node.prettify()!r} has lost the label le")
        return found[-1] - {"le"}
    return found[-1] if found else None


def _binary(node: Any) -> frozenset[str] | None:
    left, right = _labels(node.lhs), _labels(node.rhs)
    if left is None or right is None:
        return left if right is None else right
    operator = str(node).removeprefix(str(node.lhs)).split()[0]  # the parser gives it no name
    if operator == "or":
        return left | right
    matching = node.modifier.matching if node.modifier is not None else None
    if matching is not None:
        _require(set(matching.labels), left & right, f"{node.prettify()!r} matches on what one side has not:")
    elif left != right:
        raise Unsound(f"{node.prettify()!r} can never match: {sorted(left)} against {sorted(right)}")
    return left


def _require(wanted: set[str] | frozenset[str], known: frozenset[str], words: str) -> None:
    if missing := sorted(wanted - known):
        raise Unsound(f"{words} {', '.join(missing)}; it has {', '.join(sorted(known))}")
