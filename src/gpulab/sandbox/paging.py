"""Pages of a list, with tokens that say nothing about how they were made."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gpulab.sandbox.calls import Refusal

Row = TypeVar("Row")


def page(
    rows: Sequence[Row],
    params: Mapping[str, Any],
    *,
    largest: int,
    default: int | None = None,
    names: tuple[str, str] = ("MaxResults", "NextToken"),
    error: str = "InvalidParameterValue",
) -> tuple[list[Row], str | None]:
    """
    The page a caller asks for, and the token of the next one.

    Args:
        default: Rows in a page when the caller does not say; `None` for all.
        names: Of the two parameters, in the service's own spelling.

    Raises:
        Refusal: The size is out of range or the token is not one of ours.
    """
    size = params.get(names[0]) or default or max(1, len(rows))
    if not 1 <= int(size) <= max(largest, default or len(rows)):
        raise Refusal(error, f"Value ( {size} ) for parameter {names[0]} is invalid.")
    start = _offset(params.get(names[1]), names[1], error)
    end = start + int(size)
    return list(rows[start:end]), _token(end) if end < len(rows) else None


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(f"page:{offset}".encode()).decode()


def _offset(token: str | None, name: str, error: str) -> int:
    if not token:
        return 0
    try:
        word, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        if word == "page":
            return int(number)
    except (ValueError, binascii.Error, UnicodeDecodeError):
        pass
    raise Refusal(error, f"Invalid value for {name}.")
