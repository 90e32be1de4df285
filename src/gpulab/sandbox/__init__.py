"""
Simulated AWS: moto, a realism layer, and the machines behind its instances.

`Sandbox` is the in-process context manager for tests, `World` the layer itself; both load moto only when they are named.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpulab.sandbox.in_process import Sandbox
    from gpulab.sandbox.rules import Delays, Rules
    from gpulab.sandbox.world import World

__all__ = ["Delays", "Rules", "Sandbox", "World"]

# moto reads this once, when it is imported: its 1,300 images of 2017 cost seconds and are replaced by our own.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

_HOMES = {"Sandbox": "in_process", "World": "world", "Rules": "rules", "Delays": "rules"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"gpulab.sandbox.{_HOMES[name]}"), name)
