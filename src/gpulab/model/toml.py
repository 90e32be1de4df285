"""TOML that people write, read with limits. Hides what tomllib does with a file that is none: errors of four classes, and minutes over a long key."""

from __future__ import annotations

import re
import tomllib
from typing import Any

# A thousand labs or profiles.
LIMIT_BYTES = 200_000
# tomllib's time grows with the square of a dotted key's parts: 50,000 of them take half a minute.
_MOST_DOTS = 100


def read_toml(content: bytes) -> dict[str, Any]:
    """
    Read a document; a byte order mark may begin it.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
        ValueError: It is no TOML, or longer than any that is meant for us; the text says where.
    """
    if len(content) > LIMIT_BYTES:
        raise ValueError(f"{len(content):,} bytes, and the limit is {LIMIT_BYTES:,}")
    text = content.decode("utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MOST_DOTS and not line.lstrip().startswith("#"):
            raise ValueError(f"too many dots (at line {number}, column 1)")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def line_in(error: ValueError) -> int:
    """Find the line in what `read_toml` says; 0 where it names none."""
    found = re.search(r"at line (\d+)", str(error))
    return int(found[1]) if found else 0
