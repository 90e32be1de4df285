"""docs/reliability.md claims that every command that changes something is broken everywhere, but for those it names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the crash matrix needs fork")

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
_PLAYS = ("plays", "plays_upkeep", "plays_class", "plays_own_accounts", "plays_sandbox")


def test_every_command_is_broken_everywhere_or_named_with_a_reason(
    commands: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """A new command that changes something must not be forgotten there, nor a reason outlive its command."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    known = importlib.import_module("crash.unplayed")
    groups = {name.rpartition(" ")[0] for name in commands}
    leaves = {name.removeprefix("gpulab ") for name in commands if name not in groups}

    played = {
        " ".join(play.words[:count])
        for module in _PLAYS
        for play in importlib.import_module(f"crash.{module}").plays()
        for count in (1, 2)
    }

    broken = leaves & played
    assert leaves == broken | set(known.UNPLAYED) | known.SHOWING
    assert set() == broken & (set(known.UNPLAYED) | known.SHOWING)
