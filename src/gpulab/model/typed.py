"""How a command of gpulab is typed, in a hint. Pure."""

from __future__ import annotations


def typed(words: str, *, profile: str = "") -> str:
    """
    Write a command as it is typed for a profile, in backticks.

    Args:
        words: After `gpulab`: `init --paste`.
        profile: What `--profile` must say; `""` for the default one, which needs no naming.
    """
    named = f"--profile {profile} " if profile else ""
    return f"`gpulab {named}{words}`"
