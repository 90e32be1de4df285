"""One thing that `gpulab doctor` looked at. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """
    One check.

    Attributes:
        name: What was looked at, two or three words.
        state: `ok`, `warning` (something works less well) or `failed` (a launch cannot work).
        text: What was found, a half-sentence.
        hint: The one thing to do; empty when all is well.
    """

    name: str
    state: str
    text: str
    hint: str = ""
