"""The API's models as types of GraphQL: the same fields, in camel case.

Resolvers answer with the models themselves, of which each field is read by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import strawberry
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from strawberry.annotation import StrawberryAnnotation
from strawberry.scalars import JSON
from strawberry.tools import create_type
from strawberry.types.field import StrawberryField
from strawberry.types.scalar import ScalarDefinition

from api import cards, fleet, orders
from api.paging import Page

INT32 = 2**31
INT64 = 2**63

Long = NewType("Long", int)
"""Offsets, and amounts in minor units: GraphQL's own `Int` ends at 32 bits."""

_PLAIN = (str, bool, float, datetime, AwareDatetime, date, time)
_ENUMS: Mapping[Any, str] = {
    cards.Answer: "Answer",
    fleet.Kind: "AlertKind",
    orders.Status: "OrderStatus",
    orders.LineState: "LineState",
}


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -INT64 <= value < INT64:
        raise ValueError("is no whole number of 64 bits")
    return value


SCALARS: dict[object, ScalarDefinition] = {
    Long: strawberry.scalar(
        name="Long",
        description="A whole number of 64 bits.",
        serialize=_whole,
        parse_value=_whole,
    )
}


class Types:
    """The types of one schema, each made once. `links` says what leads on from a type, when it is made."""

    def __init__(self, links: Callable[[str], Sequence[StrawberryField]]) -> None:
        self._links = links
        self._of: dict[str, Any] = {}
        self._made: dict[str, Any] = {}
        self._later: list[Any] = []

    def later(self, annotation: Any) -> StrawberryAnnotation:
        """As `of`, for a field whose answer may be null: types may lead on to one another in a circle.

        They are there after `finish`.
        """
        self._later.append(annotation)
        item = item_of(annotation) if get_origin(annotation) is list else None
        text = f"list[{type_name(item)}]" if item else type_name(annotation)
        return StrawberryAnnotation(f"{text} | None", namespace=self._made)

    def finish(self) -> None:
        """Make the types that were asked for later, and those that they lead on to."""
        while self._later:
            self.of(self._later.pop())

    def of(self, annotation: Any, most: int = INT64) -> Any:
        """The type of GraphQL for a type of Python; `most` is what a whole number of it can be at most.

        Raises `TypeError` for one that GraphQL has nothing for.
        """
        origin, arguments = get_origin(annotation), get_args(annotation)
        if annotation is int:
            return int if most < INT32 else Long
        if annotation is Any or origin is dict:
            return JSON
        if annotation in _PLAIN:
            return datetime if annotation is AwareDatetime else annotation
        if origin is Annotated:
            return self.of(arguments[0], most)
        if origin is list:
            return list[self.of(arguments[0], most)]  # type: ignore[misc]  # made here
        if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
            (present,) = (a for a in arguments if a is not NoneType)
            return self.of(present, most) | None
        if origin is Literal:
            return self._enum(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._once(type_name(annotation), annotation, self._object)
        raise TypeError(f"GraphQL has no type for {annotation!r}; add it to api/graphql/types.py")

    def _enum(self, annotation: Any) -> Any:
        if annotation not in _ENUMS:
            return str
        return self._once(_ENUMS[annotation], annotation, self._enumeration)

    def _once(self, name: str, annotation: Any, make: Callable[[str, Any], Any]) -> Any:
        if self._of.setdefault(name, annotation) != annotation:
            raise TypeError(
                f"{self._of[name]!r} and {annotation!r} would both be {name}; rename one of the two"
            )
        if name not in self._made:
            self._made[name] = make(name, annotation)
        return self._made[name]

    @staticmethod
    def _enumeration(name: str, annotation: Any) -> Any:
        made: Any = Enum(name, {value: value for value in get_args(annotation)})  # type: ignore[misc]  # by value
        return strawberry.enum(made)

    def _object(self, name: str, model: type[BaseModel]) -> Any:
        fields = [self._field(n, f) for n, f in model.model_fields.items()]
        about = None if get_origin_of(model) else model.__doc__
        return self.create(name, fields, about or _of_page(model))

    def create(self, name: str, fields: Sequence[StrawberryField], about: str | None) -> Any:
        """A type with these fields, and those that lead on from it."""
        every = [*fields, *self._links(name)]
        annotations = [f.type_annotation for f in every]
        made = create_type(name, every, description=about)
        # Strawberry forgets what is not there yet.
        for field, annotation in zip(every, annotations, strict=True):
            field.type_annotation = annotation
        return made

    def _field(self, name: str, info: FieldInfo) -> StrawberryField:
        made: StrawberryField = strawberry.field(
            name=info.alias or camel(name),
            description=info.description,
            graphql_type=self.of(info.annotation),
        )
        made.python_name = name
        return made


def get_origin_of(model: type[BaseModel]) -> Any:
    """The generic model that this one is an instance of, or None."""
    return model.__pydantic_generic_metadata__["origin"]


def item_of(model: Any) -> Any:
    """Of what a page or a list has many; None of anything else."""
    if get_origin(model) is list:
        return get_args(model)[0]
    if isinstance(model, type) and issubclass(model, BaseModel) and get_origin_of(model) is Page:
        return model.__pydantic_generic_metadata__["args"][0]
    return None


def type_name(model: type[BaseModel]) -> str:
    """What a model is called in GraphQL: as in Python, but pages by what they have."""
    item = item_of(model)
    return model.__name__ if item is None else f"{item.__name__}Page"


def camel(name: str) -> str:
    """`card_id` as `cardId`."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), name)


def _of_page(model: type[BaseModel]) -> str | None:
    return "One page of a list; ask again with `cursor: nextCursor` for the next." if item_of(model) else None
