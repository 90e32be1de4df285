"""Reading JSON that must be right to the letter. Hides the bookkeeping of places; refuses what it does not know."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from gpulab.errors import WrongUsage
from gpulab.model.nearest import did_you_mean
from gpulab.spending.exact import MAX_DIGITS

_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
_TIME = re.compile(r"\d{4}-?\d{2}-?\d{2}[T ]\d{2}(:?\d{2}(:?\d{2}([.,]\d+)?)?)?(Z|[+-][\d:]+)?")

# EC2 opened in 2006; a year far outside is a slip of the keyboard.
_YEARS = range(1970, 2101)


@dataclass(frozen=True)
class Node:
    """
    A value and where it stands in its document.

    Attributes:
        value: As `json` reads it; numbers with a point are `Decimal`.
        path: JSON path, `$.instances[0].events[1].at`.
    """

    value: Any
    path: str = "$"

    def refuse(self, problem: str, hint: str = "") -> NoReturn:
        """Raise `WrongUsage` that names this place."""
        raise WrongUsage(f"{self.path} {problem}", hint=hint)

    def fields(self, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> Fields:
        """Read an object that has every required key and no unknown one."""
        if not isinstance(self.value, dict):
            self.refuse(f"is {_kind(self.value)}, not an object")
        known = (*required, *optional)
        for key in self.value:
            if key not in known:
                hint = did_you_mean(key, known, otherwise="Known: " + ", ".join(known))
                Node(None, f"{self.path}.{_shown(key)}").refuse("is not a key of this format", hint)
        for key in required:
            if key not in self.value:
                self.refuse(f"has no `{key}`")
        return Fields(self)

    def items(self) -> Iterator[Node]:
        """Yield the members of an array."""
        if not isinstance(self.value, list):
            self.refuse(f"is {_kind(self.value)}, not an array")
        for n, value in enumerate(self.value):
            yield Node(value, f"{self.path}[{n}]")

    def entries(self) -> Iterator[tuple[str, Node]]:
        """Yield the members of an object whose keys are data."""
        if not isinstance(self.value, dict):
            self.refuse(f"is {_kind(self.value)}, not an object")
        for key, value in self.value.items():
            yield key, Node(value, f"{self.path}.{_shown(key)}")

    def text(self) -> str:
        """Read a text that is not empty."""
        if not isinstance(self.value, str):
            self.refuse(f"is {_kind(self.value)}, not a text")
        if not self.value.strip():
            self.refuse("is empty")
        return self.value

    def choice(self, values: Mapping[str, Any]) -> Any:
        """Read one of some words; return what it stands for."""
        text = self.text()
        if text not in values:
            self.refuse(f"is `{_shown(text)}`, not one of {', '.join(values)}")
        return values[text]

    def usd(self) -> Decimal:
        """Read an amount: a decimal text, at least 0."""
        hint = 'Amounts are decimal texts in USD, such as "0.2158"'
        if not isinstance(self.value, str):
            self.refuse(f"is {_kind(self.value)}, not a decimal text", hint)
        if len(self.value) > MAX_DIGITS or not _AMOUNT.fullmatch(self.value):
            self.refuse(f"is `{_shown(self.value)}`, not an amount of at least 0", hint)
        try:
            return Decimal(self.value)
        except InvalidOperation:
            self.refuse(f"is `{_shown(self.value)}`, not an amount", hint)

    def size(self) -> Decimal:
        """Read a number above 0."""
        is_number = isinstance(self.value, int | Decimal) and not isinstance(self.value, bool)
        if not is_number or not 0 < self.value < 10**9 or len(str(self.value)) > MAX_DIGITS:
            self.refuse(f"is {_kind(self.value)}, not a number of GB above 0")
        return Decimal(self.value)

    def moment(self, zone: tzinfo | None) -> datetime:
        """
        Read a time as a whole second in UTC; fractions of a second are cut off.

        Args:
            zone: Of times without an offset; `None` refuses them. A local time that comes twice means the first,
                as in RFC 5545.
        """
        text = self.text().upper()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            self._refuse_time()
        if found.tzinfo is None and zone is None:
            raise WrongUsage(
                f"naive_timestamp: {self.path} is `{_shown(self.value)}`, a time without an offset",
                hint="End it with Z or an offset such as +02:00, or name `assume_timezone`",
            )
        if not text.isascii() or not _TIME.fullmatch(text) or found.year not in _YEARS:
            self._refuse_time()
        whole = found.replace(microsecond=0)
        return (whole if found.tzinfo else whole.replace(tzinfo=zone)).astimezone(UTC)

    def _refuse_time(self) -> NoReturn:
        self.refuse(f"is `{_shown(self.value)}`, not a time such as 2026-10-23T16:10:00Z")


@dataclass(frozen=True)
class Fields:
    """The members of an object whose keys were checked."""

    node: Node

    def __getitem__(self, key: str) -> Node:
        """Return a member; one that is absent reads as null."""
        return Node(self.node.value.get(key), f"{self.node.path}.{key}")

    def given(self, key: str) -> Node | None:
        """Return a member, or `None` when it is absent or null."""
        return None if self.node.value.get(key) is None else self[key]

    def listed(self, key: str) -> Iterator[Node]:
        """Yield the members of an array that may be absent."""
        return iter(()) if key not in self.node.value else self[key].items()


def read_json(content: bytes) -> Node:
    """
    Read one JSON document.

    Raises:
        WrongUsage: It is not UTF-8, not JSON, has NaN or a key twice, or is nested too deeply.
    """
    try:
        text = content.decode("utf-8-sig")
        return Node(
            json.loads(
                text,
                parse_int=_whole,
                parse_float=_amount,
                parse_constant=_refuse_constant,
                object_pairs_hook=_unique,
            )
        )
    except UnicodeDecodeError as error:
        raise WrongUsage(f"the file is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise WrongUsage(f"the file is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise WrongUsage("the file is nested too deeply") from error


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        raise _too_long(digits) from error


def _amount(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation as error:
        raise _too_long(digits) from error


def _too_long(digits: str) -> WrongUsage:
    return WrongUsage(f"the file has a number with too many digits, {digits[:20]}...")


def _refuse_constant(word: str) -> NoReturn:
    raise WrongUsage(f"the file has {word}, which is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        twice = next(key for key, count in times.items() if count > 1)
        raise WrongUsage(f"the file has the key `{_shown(twice)}` twice in one object")
    return found


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None:
        return "null or missing"
    return f"`{_shown(str(value))}`"


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
