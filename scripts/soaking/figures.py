"""What a term came to: counts, seconds, dollars and memory, and whether that is what was promised."""

from __future__ import annotations

import gc
import statistics
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from soaking.machines import Lost, Tally
from soaking.process import memory_mb, open_files

# What is written this shortly before an end that nobody announced may be lost: a look every 45 s, and the upload.
_UNANNOUNCED_S = 60.0
_NOTICE_S = 90.0
# From a notice on it looks every 10 s.
_LAST_LOOK_S = 12.0


@dataclass(frozen=True)
class Sample:
    """What this process held at a moment of the term."""

    at: datetime
    launches: int
    memory_mb: int
    threads: int
    files: int


@dataclass
class Figures:
    """
    Everything that is counted.

    Attributes:
        to_jupyter_s: Of each launch, from the command to `Ready`.
        wish_to_jupyter_s: Of each session, from the first command to `Ready`, with every failure between.
        noticed_late_s: Of each launch, from JupyterLab's answer on the machine to `Ready`: gpulab's own share.
        unknown_resources: What the bill names and no ledger does.
        unknown_usd: What that costs.
        end_unknown: By how much those instances are estimated too high that AWS had forgotten, with their end, before anybody looked, and of
            which the ledger says so. One that is estimated too low is a broken promise all the same.
        apart: Other instances whose estimate is more than a cent off.
        samples: Of every process, one each week.
    """

    commands: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    gave_up: int = 0
    lids_closed: int = 0
    swept: int = 0
    to_jupyter_s: list[float] = field(default_factory=list)
    wish_to_jupyter_s: list[float] = field(default_factory=list)
    noticed_late_s: list[float] = field(default_factory=list)
    wrong_after_restore: list[str] = field(default_factory=list)
    wrong_at_end: list[str] = field(default_factory=list)
    running_at_end: int = 0
    orphans: list[str] = field(default_factory=list)
    unknown_resources: list[str] = field(default_factory=list)
    unknown_usd: Decimal = Decimal(0)
    billed_usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    most_apart: tuple[str, Decimal] = ("", Decimal(0))
    end_unknown: list[Decimal] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    outages: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    calls: int = 0
    real_s: float = 0.0

    def count_command(self, command: str) -> None:
        """Count one run of a command."""
        self.commands[command] += 1

    def count_failure(self, command: str, cause: str) -> None:
        """Count one run that failed."""
        self.failures[command, cause] += 1

    def sample(self, at: datetime, launches: int) -> Sample:
        """Look at this process, without what it no longer needs."""
        gc.collect()
        found = Sample(at, launches, memory_mb(), threading.active_count(), open_files())
        self.samples.append(found)
        return found


def lost_by_cause(tally: Tally) -> dict[str, list[Lost]]:
    """Sort what was lost into what may be lost and what must never be; the latter is the key `broken promise`."""
    found: dict[str, list[Lost]] = {}
    for lost in tally.lost:
        found.setdefault(_why(lost), []).append(lost)
    return found


def _why(lost: Lost) -> str:
    if not lost.has_bucket:
        return "on an instance without a bucket, which S3 refused at its launch"
    if lost.noticed_s >= _NOTICE_S and lost.age_s <= _LAST_LOOK_S:
        return "written in the last ten seconds before the cut"
    if lost.noticed_s >= _NOTICE_S:
        return "S3 refused until the cut" if lost.is_refused else "broken promise"
    if lost.age_s <= _UNANNOUNCED_S:
        return "written in the last minute before an unannounced end"
    return "older, at an unannounced end"


def violations(figures: Figures, tally: Tally) -> list[str]:
    """Name every promise that was not kept; empty for a sound term."""
    broken = lost_by_cause(tally).get("broken promise", [])
    found = [f"launched twice: {text}" for text in tally.doubled]
    found += [f"lost on notice: {lost}" for lost in broken]
    found += [f"wrong after a restore: {path}" for path in figures.wrong_after_restore]
    found += [f"wrong at the end: {path}" for path in figures.wrong_at_end]
    found += [f"orphan after the sweep: {name}" for name in figures.orphans]
    found += [f"unknown to the ledger: {name}" for name in figures.unknown_resources]
    found += [f"estimated wrong: {text}" for text in figures.apart]
    return found + [f"traceback: {text}" for text in figures.tracebacks]


def percentile(values: Sequence[float], share: int) -> float:
    """Return a percentile; 0 without values."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
