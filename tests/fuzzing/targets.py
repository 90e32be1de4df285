"""Every target, room by room; a room is imported when it is asked for."""

from __future__ import annotations

import importlib
from functools import cache

from tests.fuzzing.oracle import Target

ROOMS = ("course", "store", "remote", "instance", "aws")


@cache
def targets_of(room: str) -> dict[str, Target]:
    """Return a room's targets by name."""
    found: tuple[Target, ...] = importlib.import_module(f"tests.fuzzing.{room}").TARGETS
    return {target.name: target for target in found}
