"""What `gpulab check` found, as a table a student can read."""

from __future__ import annotations

from collections.abc import Sequence

from gpulab.launch.running.checking import Finding
from gpulab.view.console import table
from gpulab.view.words import one_line, seconds

_STATES = {"ok": "ok", "failed": "FAILED", "skipped": "-"}


def findings_text(findings: Sequence[Finding]) -> str:
    """Write a line for each check."""
    rows = [
        [_STATES[found.state], found.name, one_line(found.text), seconds(found.seconds)]
        for found in findings
    ]
    return table(rows, ["", "CHECK", "FOUND", "TOOK"], right=[3])
