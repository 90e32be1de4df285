"""A process that appends facts until it is killed; run by the ledger's tests as `python ledger_writer.py LEDGER FIRST COUNT`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from gpulab.model.fact import Fact, price
from gpulab.store.ledger import Ledger

# More than one fact in each append, so that half an append could be seen.
BATCH = 3


def batch(number: int) -> list[Fact]:
    """Make the facts of one append; the same number gives the same facts."""
    begin = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(minutes=number)
    return [
        price("us-east-1a", f"g{n}.xlarge", at=begin, usd_per_hour=Decimal("0.25"))
        for n in range(BATCH)
    ]


def main(path: str, first: str, count: str) -> None:
    """Append, and say on stdout which append is durable."""
    for number in range(int(first), int(first) + int(count)):
        Ledger(Path(path)).append(batch(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
