"""A process that appends facts until it is killed; run by the ledger's tests as `python ledger_writer.py LEDGER FIRST COUNT`."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import time_ns

from gpulab.model.fact import Fact, address, intent, price, statement_read
from gpulab.model.market import Market
from gpulab.model.statement import Statement
from gpulab.store.ledger import Ledger

# More than one fact in each append, so that half an append could be seen.
BATCH = 3


def batch(number: int) -> list[Fact]:
    """Make the facts of one append: what is about to be asked, an address, a price; the same number gives the same facts."""
    begin = _minute(number)
    asked = intent(
        f"l-{number}-1",
        at=begin,
        launch_id=f"l-{number}",
        zone="us-east-1a",
        instance_type="g4dn.xlarge",
        market=Market.SPOT,
        at_most_usd_per_hour=Decimal("0.526"),
    )
    return [
        asked,
        address(f"i-{number}", at=begin, usd_per_hour=Decimal("0.005")),
        price("us-east-1a", "g4dn.xlarge", at=begin, usd_per_hour=Decimal("0.25")),
    ]


def statements(number: int) -> list[Fact]:
    """Say that three statements were read, at another second each time: told twice they are one fact all the same."""
    at = _minute(number) + timedelta(seconds=time_ns() % 60)
    plain = Statement(name="", format="cur-2.0", digest="", lines=1, unreadable=0)
    return [statement_read(replace(plain, digest=f"{number}-{n}"), at=at) for n in range(BATCH)]


def _minute(number: int) -> datetime:
    return datetime(2026, 10, 1, tzinfo=UTC) + timedelta(minutes=number)


def main(path: str, first: str, count: str) -> None:
    """Append, and say on stdout which append is durable; every third is one of statements."""
    ledger = Ledger(Path(path))
    for number in range(int(first), int(first) + int(count)):
        if number % 3 == 2:
            ledger.append_unheard(statements(number))
        else:
            ledger.append(batch(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
