"""The word that was meant, for whoever has mistyped one: the hint of every list of names that is closed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(typed: str, known: Iterable[str], *, otherwise: str, at_least: float = 0.6) -> str:
    """
    Ask for the nearest of the names that are known.

    Args:
        otherwise: The hint where none is near.
        at_least: How near, from 0 to 1.
    """
    near = difflib.get_close_matches(typed, list(known), n=1, cutoff=at_least)
    return f"Did you mean `{near[0]}`?" if near else otherwise
