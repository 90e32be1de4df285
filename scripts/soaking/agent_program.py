"""The agent's own program, loaded as a module of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_agent() -> Any:
    """Load the agent's program as a module of its own, whose clock and connections may be replaced."""
    from gpulab import agent

    place = Path(agent.__file__).with_name("agent.py")
    spec = importlib.util.spec_from_file_location("soaking_agent", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
