"""
What live tests cost at most, USD: on-demand prices of us-east-1 in November 2026, since no spot price passes them, for the whole time.

A thing that several tests share is paid once.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

PRICES = {
    "lab": (Decimal("0.54"), "one g4dn.xlarge with disk and address, 60 min"),
    "short": (Decimal("0.14"), "one g4dn.xlarge, 15 min"),
    "interrupted": (Decimal("0.30"), "one g4dn.xlarge, 20 min, and AWS Fault Injection Service"),
    "image": (Decimal("0.62"), "a builder for 30 min, two launches from its image, its snapshot"),
    "tf1": (Decimal("0.27"), "one g4dn.xlarge, 30 min"),
    "small": (Decimal("0.02"), "t3.micro spot instances, 15 min each"),
    "refused": (
        Decimal("0.10"),
        "launches that should be refused, ended at once where they are not",
    ),
}


def total(names: Iterable[str]) -> Decimal:
    """Add up what some tests need, each thing once."""
    return sum((PRICES[name][0] for name in set(names)), Decimal(0))


def bill(names: Iterable[str]) -> str:
    """Write what some tests need, a line each."""
    lines = [f"  at most ${PRICES[n][0]}  {n}: {PRICES[n][1]}" for n in sorted(set(names))]
    return "\n".join([f"live tests cost at most ${total(names)} in all", *lines])
