"""
Measures what gpulab costs before it does anything: CPU of short commands, as multiples of `python -c pass`.

    build/wheel-environment/bin/python scripts/bench/startup.py --rounds 13

It measures the gpulab beside the Python that runs it; the gate's step `wheel` leaves one as a student has it.
The rounds are interleaved, so that a busy moment touches every case; CPU (user + system) is read by getrusage, so that waiting for
a turn on a shared machine is not counted. Ratios can be compared between machines; milliseconds cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """
    One command to measure.

    Attributes:
        target: What it may cost at most, in multiples of `python -c pass`; `None` where nothing is promised.
        extra: Environment variables it needs.
    """

    name: str
    command: tuple[str, ...]
    target: float | None = None
    extra: tuple[tuple[str, str], ...] = ()


_TAB = (("_GPULAB_COMPLETE", "bash_complete"), ("COMP_CWORD", "1"))


def main() -> int:
    """Measure and print; 1 when a target is missed; stops when a command fails, since failing is cheap."""
    parser = argparse.ArgumentParser(description="CPU of short commands over `python -c pass`.")
    parser.add_argument("--rounds", type=int, default=13, help="interleaved rounds (default: 13)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    cases = _cases()
    with tempfile.TemporaryDirectory() as home:
        _prepare(Path(home))
        seconds = _measure(cases, options.rounds, Path(home))
    rows = _rows(cases, seconds)
    print(json.dumps(rows, indent=2) if options.json else _table(rows, options.rounds))
    return 0 if all(row["is_reached"] is not False for row in rows) else 1


def _cases() -> list[Case]:
    gpulab = str(Path(sys.executable).with_name("gpulab"))
    return [
        Case("python -c pass", (sys.executable, "-c", "pass")),
        Case("gpulab --version", (gpulab, "--version"), 1.5),
        Case("gpulab --help", (gpulab, "--help"), 5.5),
        Case("Tab after `gpulab `", (gpulab,), 5.5, (*_TAB, ("COMP_WORDS", "gpulab "))),
        Case(
            "Tab after `gpulab stop `",
            (gpulab,),
            5.5,
            (_TAB[0], ("COMP_CWORD", "2"), ("COMP_WORDS", "gpulab stop ")),
        ),
        Case("gpulab up --help", (gpulab, "up", "--help"), 10),
        Case("gpulab completion bash", (gpulab, "completion", "bash"), 10),
        Case("gpulab ledger show --json", (gpulab, "ledger", "show", "--json"), 10),
        Case("import boto3", (sys.executable, "-c", "import boto3")),
    ]


def _prepare(home: Path) -> None:
    """A computer on which nothing was set up yet."""
    (home / ".gpulab").mkdir(mode=0o700)


def _measure(cases: list[Case], rounds: int, home: Path) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            used = _cpu_seconds(case, home)
            if number:  # the first round warms the caches of files
                seconds[case.name].append(used)
    return seconds


def _cpu_seconds(case: Case, home: Path) -> float:
    # Without bytecode (PYTHONDONTWRITEBYTECODE) every run would compile gpulab again: no user's computer does.
    surroundings = {name: text for name, text in os.environ.items() if name[:6] != "PYTHON"}
    surroundings |= {"HOME": str(home), "GPULAB_HOME": str(home / ".gpulab")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        case.command,
        env=surroundings | dict(case.extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SystemExit(f"error: {case.name} ended with {ended.returncode} and said: {last}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _rows(cases: list[Case], seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    plain = statistics.median(seconds[cases[0].name])
    rows: list[dict[str, object]] = []
    for case in cases:
        cpu = statistics.median(seconds[case.name])
        ratio = cpu / plain
        rows.append(
            {
                "case": case.name,
                "cpu_ms": round(cpu * 1000, 1),
                "ratio": round(ratio, 2),
                "target": case.target,
                "is_reached": None if case.target is None else ratio <= case.target,
            }
        )
    return rows


def _table(rows: list[dict[str, object]], rounds: int) -> str:
    lines = [f"CPU, median of {rounds} interleaved rounds, Python {sys.version.split()[0]}", ""]
    lines.append(f"{'case':28} {'CPU ms':>8} {'x pass':>8} {'target':>8}")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.1f}"
        mark = " MISSED" if row["is_reached"] is False else ""
        lines.append(f"{row['case']:28} {row['cpu_ms']:8} {row['ratio']:8} {target:>8}{mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
