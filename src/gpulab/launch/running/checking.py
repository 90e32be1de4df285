"""`gpulab check`: what an instance can compute, asked over ssh. Hides the program that is run there; changes nothing on the instance."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gpulab.bootstrap import load_environment
from gpulab.bootstrap.shipping import check_program
from gpulab.errors import CommandFailed, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.running.instances import target
from gpulab.model.instance import Instance

_WITHIN_S = 1200.0
_STATES = frozenset({"ok", "failed", "skipped"})


@dataclass(frozen=True)
class Finding:
    """
    What one check found.

    Attributes:
        state: `ok`, `failed`, or `skipped` where there is nothing to check.
        text: In the instance's words; from outside, so printed through the filter only.
        seconds: How long it took there.
    """

    name: str
    state: str
    text: str
    seconds: float


def check(context: Context, instance: Instance) -> tuple[Finding, ...]:
    """
    Check driver, GPU memory by notebook and disk, then TensorFlow with a product and a convolution.

    Returns:
        In the order of checking; never empty.

    Raises:
        RemoteError: The instance does not answer, or answered in words gpulab does not know.
    """
    host = context.host(target(context, instance))
    said = host.run(
        ["python3", "-"], given=_program(context, instance), timeout_s=_WITHIN_S, max_bytes=1 << 20
    )
    try:
        found = tuple(_finding(row) for row in said.stdout.decode("utf-8", "replace").splitlines())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandFailed(f"{instance.name} answered in words gpulab does not know") from error
    if not found:
        raise CommandFailed(f"{instance.name} said nothing")
    return found


def _program(context: Context, instance: Instance) -> bytes:
    """The program, behind the check of the environment the instance was launched with; without one of a course's own."""
    try:
        folders = context.profile.environment_folders
        check_text = load_environment(instance.environment, folders).check()
    except WrongUsage:
        check_text = ""
    return check_program(check_text)


def _finding(row: str) -> Finding:
    told = json.loads(row)
    state, seconds = str(told["state"]), told["seconds"]
    # Neither `NaN`, which Python's reader of JSON takes, nor a number that fits into no float.
    if not isinstance(seconds, int | float) or not 0 <= seconds <= _WITHIN_S * 10:
        raise ValueError("a time that is none")
    return Finding(
        name=str(told["name"]),
        state=state if state in _STATES else "failed",
        text=str(told["text"]),
        seconds=float(seconds),
    )
