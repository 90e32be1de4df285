"""
Kill a process that writes the ledger at its every write, 200 times, and count lost and doubled facts.

    python scripts/bench/ledger_kills.py [--kills 200]

Needs `strace` (Debian package `strace`), which delivers SIGKILL at the n-th call of pwrite64, fdatasync or unlink.
Exits 1 when a fact that was reported durable is missing, or any fact is there twice or in half a batch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpulab.store.ledger import Ledger

WRITER = Path(__file__).parents[2] / "tests" / "unit" / "ledger_writer.py"
CALLS = ("pwrite64", "fdatasync", "unlink")
APPENDS = 60
BATCH = 3


@dataclass(frozen=True)
class Result:
    """What one kill left behind."""

    was_killed: bool
    acknowledged: int
    lost: int
    doubled: int
    halved: int


def main() -> int:
    """Kill, look, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    kills = parser.parse_args().kills
    results: list[Result] = []
    skipped: set[str] = set()
    turn = 0
    while len(results) < kills and len(skipped) < len(CALLS):
        call, turn = CALLS[turn % len(CALLS)], turn + 1
        if call in skipped:
            continue
        result = _kill_at(call, 1 + (turn - 1) // len(CALLS))
        if result.was_killed:
            results.append(result)
        else:
            skipped.add(call)
    lost, doubled, halved = (
        sum(getattr(r, key) for r in results) for key in ("lost", "doubled", "halved")
    )
    acknowledged = sum(r.acknowledged for r in results)
    print(
        f"{len(results)} kills, {acknowledged * BATCH} facts reported durable:"
        f" {lost} lost, {doubled} doubled, {halved} half batches"
    )
    return 1 if lost or doubled or halved else 0


def _kill_at(call: str, count: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        writer = [sys.executable, str(WRITER), str(ledger.path), "0", str(APPENDS)]
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:signal=KILL:when={count}"]
        ran = subprocess.run(
            [*strace, *inject, *writer], capture_output=True, text=True, check=False
        )
        said = {int(line) for line in ran.stdout.splitlines()}
        first = _counts(ledger)
        subprocess.run(writer, check=True, capture_output=True)
        after = _counts(ledger)
    return Result(
        was_killed=ran.returncode != 0,
        acknowledged=len(said),
        lost=sum(first[n] < BATCH for n in said) + sum(after[n] < BATCH for n in range(APPENDS)),
        doubled=sum(after[n] > BATCH for n in range(APPENDS)),
        halved=sum(first[n] not in (0, BATCH) for n in range(APPENDS)),
    )


def _counts(ledger: Ledger) -> Counter[int]:
    """Count the facts of each append; the writer's appends lie a minute apart, within one hour."""
    return Counter(fact.at.minute for fact in ledger.facts())


if __name__ == "__main__":
    sys.exit(main())
