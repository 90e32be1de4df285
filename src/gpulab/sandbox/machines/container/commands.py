"""Runs the host's system tools; a failure keeps the tool's own words."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gpulab.sandbox.machines.container.requirements import host_path

_LONGEST_QUOTE = 1000


class ToolFailed(Exception):
    """A system tool returned an error; the text names it and quotes the last it said."""


def tool_environment() -> dict[str, str]:
    """The environment of system tools: this process's, with a PATH that has the system folders."""
    return dict(os.environ) | {"PATH": host_path(os.environ.get("PATH")), "LC_ALL": "C.UTF-8"}


def run_tool(*argv: str | Path, stdin: str = "") -> str:
    """
    Run a tool to its end.

    Returns:
        What it wrote to its standard output.

    Raises:
        ToolFailed: It is not there or returned an error.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, text=True, capture_output=True, env=tool_environment(), check=False
        )
    except OSError as error:
        raise ToolFailed(f"`{words[0]}` did not start: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-_LONGEST_QUOTE:]
        raise ToolFailed(f"`{' '.join(words[:6])}` failed ({done.returncode}): {said}")
    return done.stdout


def in_network(namespace: Path, argv: Sequence[str | Path]) -> list[str]:
    """Return the words that run a tool inside a network namespace, given by its file."""
    return ["nsenter", f"--net={namespace}", *map(str, argv)]
