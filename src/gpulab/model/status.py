"""What the agent on an instance says of itself. Values, and the one reader of its status file, version 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from gpulab.model.moment import read_moment

PHASES = ("armed", "host-keys", "ssh", "work", "jupyter", "environment", "gpu")


@dataclass(frozen=True)
class Phase:
    """
    One step of an instance's start.

    Attributes:
        state: `waiting`, `running`, `done` or `failed`.
        seconds: How long it took, or has taken so far.
        message: In the agent's words; from outside, so printed through the filter only.
    """

    name: str
    state: str
    seconds: float
    message: str


@dataclass(frozen=True)
class Gpu:
    """One GPU as `nvidia-smi` sees it now."""

    name: str
    use_percent: float
    memory_used_mib: float
    memory_total_mib: float


@dataclass(frozen=True)
class Used:
    """How much of its time an instance has worked, as its agent counts."""

    since: datetime
    seconds: int
    idle_seconds: int


@dataclass(frozen=True)
class AgentStatus:
    """
    The agent's status.

    Attributes:
        at: When it was written; aware UTC.
        phases: In the order of the start.
        deadline: When the instance ends itself.
        idle_since: `None` while it is in use.
        spent_usd: The agent's own estimate.
        jupyter_port: On the instance's localhost.
        saved_at: When the work was last kept; `None` if never.
        notice: AWS's announcement to take the instance back: what, and when; `None` without one.
        ending: Why the instance is about to end itself; `""` while it is not.
        used: `None` before the agent's first look.
        left_out: What is never kept, each path with its reason; caches are not among them.
        unsaved: What could not be kept as it is now, a line each.
    """

    at: datetime
    phases: tuple[Phase, ...]
    deadline: datetime | None
    idle_minutes: int
    idle_since: datetime | None
    spent_usd: Decimal | None
    budget_usd: Decimal | None
    gpus: tuple[Gpu, ...]
    jupyter_port: int
    is_jupyter_ready: bool
    saved_at: datetime | None
    notice: tuple[str, datetime | None] | None
    ending: str
    used: Used | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    unsaved: tuple[str, ...] = ()

    def phase(self, name: str) -> Phase | None:
        """Return a phase by name."""
        return next((p for p in self.phases if p.name == name), None)


def read_status(text: str) -> AgentStatus:
    """
    Read the status file's JSON. What is missing is empty; an instance may be hostile, so nothing in it is trusted.

    Raises:
        ValueError: It is not a status, or of another version.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("version") != 1:
        raise ValueError("not a status of version 1")
    jupyter, notice = _table(found, "jupyter"), _table(found, "notice")
    kept = _table(found, "keep")
    return AgentStatus(
        at=read_moment(found.get("at")) or datetime.fromtimestamp(0, UTC),
        phases=tuple(_phase(p) for p in _tables(found, "phases")),
        deadline=read_moment(found.get("deadline")),
        idle_minutes=int(_number(found.get("idle_minutes"))),
        idle_since=read_moment(found.get("idle_since")),
        spent_usd=_amount(found.get("spent_usd")),
        budget_usd=_amount(found.get("budget_usd")),
        gpus=tuple(_gpu(g) for g in _tables(found, "gpu")),
        jupyter_port=int(_number(jupyter.get("port"), 8888)),
        is_jupyter_ready=jupyter.get("ready") is True,
        saved_at=read_moment(found.get("saved_at")),
        notice=(str(notice.get("action", "")), read_moment(notice.get("time"))) if notice else None,
        ending=str(_table(found, "ending").get("reason", "")),
        used=_used(_table(found, "used")),
        left_out=tuple(
            (str(skipped.get("path", "")), str(skipped.get("reason", "")))
            for skipped in _tables(kept, "skipped")
            if skipped.get("reason") != "excluded"
        ),
        unsaved=_texts(kept, "failed"),
    )


def _used(table: Mapping[str, Any]) -> Used | None:
    since = read_moment(table.get("since"))
    if since is None:
        return None
    seconds, idle = (int(_number(table.get(key))) for key in ("seconds", "idle_seconds"))
    return Used(since, seconds, idle)


def _phase(table: Mapping[str, Any]) -> Phase:
    return Phase(
        name=str(table.get("name", "")),
        state=str(table.get("state", "waiting")),
        seconds=_number(table.get("seconds")),
        message=str(table.get("message") or ""),
    )


def _gpu(table: Mapping[str, Any]) -> Gpu:
    return Gpu(
        name=str(table.get("name", "")),
        use_percent=_number(table.get("use_percent")),
        memory_used_mib=_number(table.get("memory_used_mib")),
        memory_total_mib=_number(table.get("memory_total_mib")),
    )


def _table(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _tables(found: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = found.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _texts(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = found.get(key)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()


def _number(value: object, default: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return value if abs(value) < 1e12 else default


def _amount(value: object) -> Decimal | None:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
