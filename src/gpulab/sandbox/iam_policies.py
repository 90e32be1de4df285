"""
R25: what policies say to a call: IAM's evaluation of identity policies. Plain moto looks at neither conditions nor tags.

Refuses to guess: a condition operator this layer does not know is an error, never a silent yes or no.

Source:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html and
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html (November 2026)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import cache
from typing import Any

_VARIABLE = re.compile(r"\$\{([^}]+)\}")

Context = Mapping[str, Sequence[str]]


class Decision(StrEnum):
    """What all policies together say."""

    ALLOWED = "allowed"
    DENIED = "denied by a statement"
    NOT_ALLOWED = "allowed by no statement"


@dataclass(frozen=True)
class Asked:
    """
    One permission that a call needs: an action on one resource.

    Attributes:
        context: What AWS knows of the call, by condition key in lower case; several values for keys such as `aws:TagKeys`.
    """

    action: str
    resource: str
    context: Context


def decide(policies: Iterable[Mapping[str, Any]], asked: Asked) -> Decision:
    """
    Say what identity policies decide together: a Deny that fits wins, then an Allow that fits.

    Raises:
        ValueError: A condition operator that is not known here.
    """
    effects = {
        statement["Effect"]
        for policy in policies
        for statement in listed(policy["Statement"])
        if _fits(statement, asked)
    }
    if "Deny" in effects:
        return Decision.DENIED
    return Decision.ALLOWED if "Allow" in effects else Decision.NOT_ALLOWED


def listed(value: Any) -> list[Any]:
    """A policy may say one thing without brackets."""
    return value if isinstance(value, list) else [value]


def _fits(statement: Mapping[str, Any], asked: Asked) -> bool:
    return (
        _names_action(statement, asked.action)
        and _names_resource(statement, asked)
        and all(
            _holds(operator, key, listed(values), asked.context)
            for operator, pairs in statement.get("Condition", {}).items()
            for key, values in pairs.items()
        )
    )


def _names_action(statement: Mapping[str, Any], action: str) -> bool:
    patterns = listed(statement.get("Action", statement.get("NotAction")))
    found = any(_like(action.lower(), pattern.lower()) for pattern in patterns)
    return found if "Action" in statement else not found


def _names_resource(statement: Mapping[str, Any], asked: Asked) -> bool:
    patterns = listed(statement.get("Resource", statement.get("NotResource")))
    found = any(_arn_like(asked.resource, pattern, asked.context) for pattern in patterns)
    return found if "Resource" in statement else not found


def _holds(operator: str, key: str, values: list[str], context: Context) -> bool:
    quantifier, _, rest = operator.rpartition(":")
    name = rest.removesuffix("IfExists")
    there = context.get(key.lower())
    if name == "Null":
        return (there is None) == (values[0] == "true")
    if name not in _OPERATORS:
        raise ValueError(f"the sandbox does not know the condition operator {operator}")
    matches, is_negative = _OPERATORS[name]
    if there is None:
        return rest.endswith("IfExists") or is_negative or quantifier == "ForAllValues"
    hits = [any(matches(one, value, context) for value in values) for one in there]
    if quantifier == "ForAllValues":
        return all(hit != is_negative for hit in hits)
    if quantifier == "ForAnyValue":
        return any(hit != is_negative for hit in hits)
    return any(hits) != is_negative


def _filled(text: str, context: Context) -> list[tuple[str, bool]] | None:
    """Split a text into (piece, whether it came from a variable); `None` when a variable has no value, which never matches."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        pieces.append((text[end : found.start()], False))
        name = found[1]
        if name in ("*", "?", "$"):
            pieces.append((name, True))
        else:
            there = context.get(name.lower())
            if there is None or len(there) != 1:
                return None
            pieces.append((there[0], True))
        end = found.end()
    return [*pieces, (text[end:], False)]


def _equals(one: str, value: str, context: Context) -> bool:
    pieces = _filled(value, context)
    return pieces is not None and one == "".join(text for text, _ in pieces)


def _equals_whatever_case(one: str, value: str, context: Context) -> bool:
    return _equals(one.lower(), value.lower(), context)


def _is_like(one: str, value: str, context: Context) -> bool:
    pieces = _filled(value, context)
    return pieces is not None and _matches(one, pieces)


def _arn_like(one: str, value: str, context: Context) -> bool:
    """Compare ARNs part by part: a wildcard never reaches over a colon of the first five."""
    pieces = _filled(value, context)
    if pieces is None:
        return False
    if pieces == [("*", False)]:
        return True
    parts = _parts(pieces)
    mine = one.split(":", 5)
    return len(mine) == len(parts) and all(map(_matches, mine, parts))


def _parts(pieces: list[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """Split the pieces of an ARN at its first five colons."""
    parts: list[list[tuple[str, bool]]] = [[]]
    for text, is_literal in pieces:
        rest = text
        while not is_literal and ":" in rest and len(parts) < 6:
            head, _, rest = rest.partition(":")
            parts[-1].append((head, False))
            parts.append([])
        parts[-1].append((rest, is_literal))
    return parts


def _matches(text: str, pieces: Sequence[tuple[str, bool]]) -> bool:
    """Compare with wildcards; what a variable brought in is taken letter by letter."""
    pattern = "".join(re.escape(p) if is_literal else _pattern(p) for p, is_literal in pieces)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _like(text: str, pattern: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return text == pattern
    return re.fullmatch(_pattern(pattern), text, re.DOTALL) is not None


@cache
def _pattern(wildcards: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in wildcards)


def _number(compare: Callable[[Decimal, Decimal], bool]) -> Callable[[str, str, Context], bool]:
    def matches(one: str, value: str, _: Context) -> bool:
        try:
            return compare(Decimal(one), Decimal(value))
        except InvalidOperation:
            return False

    return matches


#: Operator -> how one value of the call is compared with one of the statement, and whether the answer is turned round.
_OPERATORS: Mapping[str, tuple[Callable[[str, str, Context], bool], bool]] = {
    "StringEquals": (_equals, False),
    "StringNotEquals": (_equals, True),
    "StringEqualsIgnoreCase": (_equals_whatever_case, False),
    "StringLike": (_is_like, False),
    "StringNotLike": (_is_like, True),
    "ArnEquals": (_arn_like, False),
    "ArnLike": (_arn_like, False),
    "ArnNotLike": (_arn_like, True),
    "Bool": (_equals_whatever_case, False),
    "NumericEquals": (_number(lambda a, b: a == b), False),
    "NumericLessThanEquals": (_number(lambda a, b: a <= b), False),
    "NumericGreaterThanEquals": (_number(lambda a, b: a >= b), False),
}
