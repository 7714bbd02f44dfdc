"""What one request of GraphQL may ask for: how deep, and how much, measured before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLCompositeType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    get_named_type,
)
from graphql.language import OperationType
from graphql.utilities import value_from_ast_untyped
from strawberry.extensions import SchemaExtension

from api.graphql.readings import READINGS, Reading
from infra.problems import Problem

MOST_DEEP = 8
"""Fields within fields."""
MOST_COST = 2_500
"""Rows that can come, and `READING` for each time that rows are asked for."""
READING = 10
MOST_TOKENS = 2_000
"""Words and signs of a query's text."""
MOST_FIELDS = 2_000
"""Fields as they are with every fragment in its place: fragments of fragments grow without end."""
MOST_ROWS = 1_000
"""What a page can have, where its limit is none."""


@dataclass
class Measure:
    """What an operation asks for. Raises `Problem` 422 as soon as that is too much."""

    schema: GraphQLSchema
    fragments: Mapping[str, FragmentDefinitionNode]
    variables: Mapping[str, Any]
    cost: int = 0
    depth: int = 0
    fields: int = 0

    @classmethod
    def of(
        cls,
        schema: GraphQLSchema,
        document: DocumentNode,
        operation_name: str | None,
        given: Mapping[str, Any],
    ) -> Measure:
        """The measure of the operation that is asked for. The document is valid."""
        operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
        named = [o for o in operations if operation_name in (None, o.name and o.name.value)]
        if len(named) != 1:
            raise Problem(
                422,
                "Invalid request",
                "The query has several operations; name in operationName the one that is meant.",
                field="operationName",
            )
        [operation] = named
        fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        defaults = {
            v.variable.name.value: value_from_ast_untyped(v.default_value)
            for v in operation.variable_definitions or ()
            if v.default_value is not None
        }
        measure = cls(schema, fragments, {**defaults, **given})
        root = schema.get_root_type(OperationType.QUERY)
        assert root is not None
        measure._selected(operation.selection_set, root, 1, 1)
        return measure

    def _selected(self, chosen: SelectionSetNode, of: GraphQLCompositeType, times: int, depth: int) -> None:
        for node in self._fields(chosen):
            name = node.name.value
            if name.startswith("__") or not isinstance(of, GraphQLObjectType):
                continue  # of the schema itself, whose depth graphql-core bounds
            self.depth = max(self.depth, depth)
            reading = READINGS.get(of.name, {}).get(name)
            rows = 1
            if reading is not None:
                rows = self._rows(reading, node)
                self.cost += times * (READING + rows)
            self._require()
            if node.selection_set is not None:
                within = get_named_type(of.fields[name].type)
                self._selected(node.selection_set, within, times * rows, depth + 1)

    def _fields(self, chosen: SelectionSetNode) -> Iterator[FieldNode]:
        """The fields with every fragment in its place. (No type here is another's kind: all of them hold.)"""
        for node in chosen.selections:
            self.fields += 1
            self._require()
            if isinstance(node, FieldNode):
                yield node
            elif isinstance(node, FragmentSpreadNode):
                yield from self._fields(self.fragments[node.name.value].selection_set)
            elif isinstance(node, InlineFragmentNode):
                yield from self._fields(node.selection_set)

    def _rows(self, reading: Reading, node: FieldNode) -> int:
        if "limit" not in reading.arguments:
            return reading.most
        for argument in node.arguments or ():
            if argument.name.value == "limit":
                given = value_from_ast_untyped(argument.value, dict(self.variables))
                # What is no number is refused later, by the type of the argument.
                return given if isinstance(given, int) and given > 0 else MOST_ROWS
        return reading.most

    def _require(self) -> None:
        if self.fields > MOST_FIELDS:
            raise _too_much("large", f"it has more than {MOST_FIELDS} fields", "ask for fewer")
        if self.depth > MOST_DEEP:
            raise _too_much(
                "deep", f"its fields stand more than {MOST_DEEP} within one another", "ask step by step"
            )
        if self.cost > MOST_COST:
            raise _too_much(
                "costly",
                f"it may come to more than {MOST_COST} (each row counts 1, each time that rows are asked for"
                f" {READING}, and what stands below a list as often as its limit says)",
                "lower a limit, or ask in several requests",
            )


def _too_much(how: str, reason: str, remedy: str) -> Problem:
    return Problem(422, f"Too {how} a query", f"The query is refused as {reason}; {remedy}.", field="query")


class Measured(SchemaExtension):
    """Refuses what is too much before it is executed, and tells what the rest came to."""

    _measure: Measure | None = None

    def on_operation(self) -> Iterator[None]:
        """A text without end is not even read."""
        self.execution_context.parse_options["max_tokens"] = MOST_TOKENS
        yield

    def on_execute(self) -> Iterator[None]:
        """The document is valid now, and nothing has been read."""
        context = self.execution_context
        assert context.graphql_document is not None
        schema = context.schema._schema  # it has no other name
        self._measure = Measure.of(
            schema, context.graphql_document, context.context.operation, context.variables or {}
        )
        yield

    def get_results(self) -> dict[str, Any]:
        """What is told beside the data."""
        measure = self._measure
        return {} if measure is None else {"cost": measure.cost, "depth": measure.depth}
