"""Good documents with a few values made wrong: what bytes alone would seldom hit. The bytes choose, so that an input can be kept and replayed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

MARK = b"\0"
_DEEP = 200
_LONG = 100_000


class Choices:
    """Bytes, taken as decisions; zeros once they are used up."""

    def __init__(self, given: bytes) -> None:
        self._given = given
        self._at = 0

    @property
    def is_over(self) -> bool:
        """Whether every byte has been used."""
        return self._at >= len(self._given)

    def below(self, limit: int) -> int:
        """Choose a number from 0 to below a limit."""
        size = 1 if limit <= 256 else 2
        part = self._given[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part, "big") % max(limit, 1)

    def of(self, things: Sequence[Any]) -> Any:
        """Choose one of some things."""
        return things[self.below(len(things))]

    def text(self) -> str:
        """Take up to 15 bytes as text."""
        size = self.below(16)
        part = self._given[self._at : self._at + size]
        self._at += size
        return part.decode("utf-8", "surrogateescape")


def edited(document: Any, choices: Choices, *, odd: Sequence[Any] = ()) -> Any:
    """
    Return a copy of a document in which up to eight places are changed.

    Args:
        odd: Values to put there besides those of any document.
    """
    whole = [copy.deepcopy(document)]
    for _ in range(8):
        if choices.is_over:
            break
        _change(whole, choices, (*_ODD, *odd))
    return whole[0]


def either(
    documents: Sequence[Any], read: Callable[[bytes], object], write: Callable[[Any], bytes]
) -> Callable[[bytes], object]:
    """Make a reader of two kinds of input: plain bytes, and behind `MARK` edits to one of some good documents."""

    def one(given: bytes) -> object:
        if not given.startswith(MARK):
            return read(given)
        choices = Choices(given[1:])
        document = choices.of(documents)
        return read(write(edited(document, choices)))

    return one


def as_json(document: Any) -> bytes:
    """Write a document as JSON, as far as it can be."""
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")


def as_lines(documents: Any) -> bytes:
    """Write a list of documents as lines of JSON."""
    rows = documents if isinstance(documents, list) else [documents]
    return b"".join(as_json(row) + b"\n" for row in rows)


def _change(whole: list[Any], choices: Choices, odd: Sequence[Any]) -> None:
    parent: Any = whole
    key: Any = 0
    for _ in range(12):
        value = parent[key]
        if isinstance(value, dict | list) and value and choices.below(8):
            parent = value
            key = choices.of(list(value) if isinstance(value, dict) else range(len(value)))
        else:
            break
    _act(parent, key, choices, odd, is_top=parent is whole)


def _act(parent: Any, key: Any, choices: Choices, odd: Sequence[Any], *, is_top: bool) -> None:
    way = choices.below(6)
    if way == 0 and not is_top:
        del parent[key]
    elif way == 1 and isinstance(parent, list) and not is_top:
        parent.insert(key, copy.deepcopy(parent[choices.below(len(parent))]))
    elif way == 2 and isinstance(parent, dict):
        parent[choices.text()] = parent[key]
    elif way == 3 and isinstance(parent[key], str):
        cut = choices.below(len(parent[key]) + 1)
        parent[key] = parent[key][:cut] + choices.text() + parent[key][cut + choices.below(4) :]
    elif way == 4:
        parent[key] = choices.text()
    else:
        parent[key] = copy.deepcopy(choices.of(odd))


def _deep() -> Any:
    value: Any = 1
    for _ in range(_DEEP):
        value = [value]
    return value


_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    -(10**30),
    10**4000,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "x",
    "0",
    "-1",
    "NaN",
    "Infinity",
    "1E+999999",
    "1e-999999",
    "9" * 5000,
    "\0",
    "\ud800",
    "\x1b[2J",
    "\u202e",
    "../../x",
    "/etc/passwd",
    "NUL",
    "=1+1",
    "x" * _LONG,
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-11-23T12:00:00",
    [],
    {},
    [[]],
    [{}],
    [None],
    {"": {}},
    _deep(),
)

# What botocore makes of an answer besides: moments and bytes.
ODD_PARSED: tuple[Any, ...] = (
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2026, 11, 23, 12),  # noqa: DTZ001 - a moment without its zone is what is odd
    b"\xff",
)
