"""EC2's `Filters`: which of the described resources a caller wants. A filter that EC2 does not have is refused."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gpulab.sandbox.calls import Refusal

#: A path into the description, or a function that finds the values.
Finder = str | Callable[[Mapping[str, Any]], Iterable[Any]]


def check(filters: Sequence[Mapping[str, Any]], finders: Mapping[str, Finder]) -> None:
    """
    Refuse filters that EC2 does not have, also when there is nothing to filter.

    Raises:
        Refusal: `InvalidParameterValue`.
    """
    for entry in filters:
        name = entry["Name"]
        if not name.startswith("tag:") and name not in _OF_TAGS and name not in finders:
            raise Refusal("InvalidParameterValue", f"The filter '{name}' is invalid")


def matches(
    described: Mapping[str, Any],
    filters: Sequence[Mapping[str, Any]],
    finders: Mapping[str, Finder],
) -> bool:
    """
    Whether a description passes every filter; the values of one filter are alternatives, `*` and `?` are wildcards.

    Args:
        finders: Where to look, by the filter's name; tags are always understood.

    """
    return all(
        any(
            _like(value, wanted)
            for value in _values(described, entry["Name"], finders)
            for wanted in entry.get("Values", [])
        )
        for entry in filters
    )


_OF_TAGS = ("tag-key", "tag-value")


def timestamp(moment: datetime) -> str:
    """A moment as EC2 writes it in answers, `2026-11-16T09:00:00.000Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _values(
    described: Mapping[str, Any], name: str, finders: Mapping[str, Finder]
) -> Iterable[Any]:
    tags = described.get("Tags", [])
    if name.startswith("tag:"):
        return [tag["Value"] for tag in tags if tag["Key"] == name[4:]]
    if name == "tag-key":
        return [tag["Key"] for tag in tags]
    if name == "tag-value":
        return [tag["Value"] for tag in tags]
    finder = finders[name]
    return _at(described, finder.split(".")) if isinstance(finder, str) else finder(described)


def _at(value: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _at(item, path)
    elif not path:
        if value is not None:
            yield value
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _like(value: Any, wanted: str) -> bool:
    text = timestamp(value) if isinstance(value, datetime) else str(value)
    if isinstance(value, bool):
        text = text.lower()
    if "*" not in wanted and "?" not in wanted:
        return text == wanted
    return re.match(fnmatch.translate(wanted.replace("[", "[[]")), text) is not None
