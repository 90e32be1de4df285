"""
Measure reading a roster whose every row is hostile in another way: how long, and whether each bad row is named with its line.

    python scripts/bench/roster.py [--rows 10000] [--times 5]

Exits 1 when it takes a second or more, or when a row's problem is not named.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from gpulab.course.roster import read_roster

_HEADER = "id,name,email,group,account,role,profile,ssh_public_key"
# Each cell is wrong in one column; what stands there would hurt somewhere else: a shell, a spreadsheet, a terminal, a page, a path.
_HOSTILE = (
    ("", "Ann", "{n}@x.example", "g1", "", "", "", ""),
    ("../../etc/{n}", "Ann", "{n}@x.example", "g1", "", "", "", ""),
    ("s{n}", "Ann", "nobody", "g1", "", "", "", ""),
    ("s{n}", "Ann", "{n}@x.example\x1b]52;c;aGk=\x07", "g1", "", "", "", ""),
    ("s{n}", "Ann", "{n}@x.example", "g1", "12", "", "", ""),
    ("s{n}", "Ann", "{n}@x.example", "g1", "", "arn:aws:iam::1:role/x;rm -rf /", "", ""),
    ("s{n}", "Ann", "{n}@x.example", "g1", "", "", "$(id)", ""),
    ("s{n}", "Ann", "{n}@x.example", "g1", "", "", "", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ("-oProxyCommand={n}", "Ann", "{n}@x.example", "g1", "", "", "", ""),
    ("s1", "the same again", "same@x.example", "g1", "", "", "", ""),
)


def main() -> int:
    """Read the roster several times; 1 when it is slow or a problem is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    raw = _roster(asked.rows)
    took = []
    for _ in range(asked.times):
        began = time.perf_counter()
        found = read_roster(raw, file="roster.csv", secret=b"k" * 32)
        took.append(time.perf_counter() - began)
    named = {problem.line for problem in found.problems}
    # The first of the rows that are the same as another is a good one.
    missing = sorted(set(range(2, asked.rows + 2)) - named - {s.line for s in found.students})
    print(
        f"{asked.rows:,} hostile rows, {len(raw) / 2**20:.1f} MiB: {min(took):.2f} s at best, {max(took):.2f} s at worst (1)"
    )
    print(
        f"  {len(found.problems):,} problems in {len(named):,} rows, {len(found.students):,} taken, {len(missing):,} not named (0)"
    )
    return int(min(took) >= 1 or bool(missing) or len(named) < asked.rows - 1)


def _roster(rows: int) -> bytes:
    chance = random.Random(3)
    lines = [_HEADER]
    for number in range(rows):
        cells = [cell.format(n=number) for cell in chance.choice(_HOSTILE)]
        lines.append(",".join(f'"{cell}"' for cell in cells))
    return "\r\n".join(lines).encode("utf-8-sig")


if __name__ == "__main__":
    sys.exit(main())
