"""The agent's own program, loaded as often as there are machines, so that each has a clock and connections of its own."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_NAME = "soaking_agent"


def load_agent() -> Any:
    """Load the agent's program as a module of its own, whose clock and connections may be replaced."""
    module = ModuleType(_NAME)
    module.__file__ = str(_place())
    sys.modules[_NAME] = module  # its classes look their module up while they are made
    exec(_code(), module.__dict__)  # noqa: S102 - our own file
    return module


@cache
def _code() -> CodeType:
    return compile(_place().read_bytes(), str(_place()), "exec")


def _place() -> Path:
    from gpulab import agent

    return Path(agent.__file__).with_name("agent.py")
