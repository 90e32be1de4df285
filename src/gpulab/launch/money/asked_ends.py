"""
When this computer asked AWS to end an instance: noted before the call, so that a killed command leaves more than a guess.

By itself a note says nothing of an end: the call may never have reached AWS. Together with an agent that fell silent at that moment it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime

from gpulab.errors import StoreError
from gpulab.launch.context import Context

_KEY = "asked-to-end/"


def note(context: Context, instance_id: str) -> None:
    """Note that AWS is about to be asked; a full disk keeps nobody from ending an instance."""
    with contextlib.suppress(StoreError):
        context.notes.write({f"{_KEY}{instance_id}": context.now().isoformat()})


def drop(context: Context, instance_id: str) -> None:
    """Forget it: the end is in the ledger."""
    with contextlib.suppress(StoreError):
        context.notes.write({f"{_KEY}{instance_id}": None})


def noted(context: Context) -> Mapping[str, datetime]:
    """Return the moments, by instance; notes that cannot be read are none."""
    with contextlib.suppress(StoreError):
        below = context.notes.below(_KEY)
        return {key.removeprefix(_KEY): datetime.fromisoformat(at) for key, at in below.items()}
    return {}
