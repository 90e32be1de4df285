"""AWS's answers, compared with what its own models say: no value of another type goes further. Hides botocore's shapes; a missing member is not noticed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

# What botocore's readers make of each type; what is not named here, such as a stream, is taken as it comes.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "timestamp": (datetime,),
    "structure": (dict,),
    "list": (list,),
    "map": (dict,),
}


def check_reply(parsed: Any, model: Any, **_: Any) -> None:
    """
    Compare a parsed answer with its model; a handler of botocore's `after-call`.

    Raises:
        ValueError: A value is of another type; the text names its place.
    """
    if isinstance(parsed, dict) and "Error" not in parsed and model.output_shape is not None:
        _check(parsed, model.output_shape, model.name)


def _check(value: Any, shape: Any, place: str) -> None:
    kinds = _TYPES.get(shape.type_name, ())
    if shape.is_document_type if shape.type_name == "structure" else not kinds:
        return
    is_other = isinstance(value, bool) and bool not in kinds
    if is_other or not isinstance(value, kinds):
        raise ValueError(f"{place} is of the type {type(value).__name__}, not {shape.type_name}")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{place} is a time without its zone")
    _BELOW.get(shape.type_name, _nothing)(value, shape, place)


def _members(value: dict[str, Any], shape: Any, place: str) -> None:
    for name, member in shape.members.items():
        if name in value:
            _check(value[name], member, f"{place}.{name}")


def _items(value: list[Any], shape: Any, place: str) -> None:
    for number, item in enumerate(value):
        _check(item, shape.member, f"{place}[{number}]")


def _entries(value: dict[str, Any], shape: Any, place: str) -> None:
    for key, entry in value.items():
        _check(key, shape.key, place)
        _check(entry, shape.value, f"{place}.{key}")


def _nothing(value: Any, shape: Any, place: str) -> None:
    """A plain value has nothing below it."""


_BELOW: Mapping[str, Callable[[Any, Any, str], None]] = {
    "structure": _members,
    "list": _items,
    "map": _entries,
}
