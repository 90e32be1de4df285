"""How a credit is spent: in time order over all charges. Hides the walk over what accrues side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby

from gpulab.model.timeline import Charge
from gpulab.spending.exact import Usd, seconds_between


@dataclass(frozen=True)
class CreditUse:
    """
    What a credit paid and what it did not.

    Attributes:
        exhausted_at: First whole second at which the accrued cost is at least the credit; `None` while some is left.
    """

    used: Usd
    left: Usd
    out_of_pocket: Usd
    exhausted_at: datetime | None


def use_credit(amount_usd: Decimal, charges: Iterable[Charge]) -> CreditUse:
    """
    Pay charges from a credit, in time order.

    Args:
        amount_usd: At least 0.
        charges: In any order; each accrues evenly over its seconds, the padding of a minimum included.
    """
    paid = tuple(charges)
    total, credit = Usd.of(paid), Usd(amount_usd)
    if total < credit:
        return CreditUse(total, credit - total, Usd(), None)
    return CreditUse(credit, Usd(), total - credit, _reached_at(credit, paid))


def _reached_at(credit: Usd, charges: tuple[Charge, ...]) -> datetime | None:
    """Find the first second by which a sum has accrued that the charges reach; `None` without charges."""
    accrued, per_second, last = Usd(), Usd(), None
    for moment, change in _rate_changes(charges):
        if last is None:
            last = moment
        reached = accrued + per_second * seconds_between(last, moment)
        if reached >= credit:
            return last + timedelta(seconds=(credit - accrued).ceiling_of(per_second))
        accrued, per_second, last = reached, per_second + change, moment
    return last


def _rate_changes(charges: tuple[Charge, ...]) -> Iterable[tuple[datetime, Usd]]:
    """Yield each moment at which the cost per second changes, ascending, and by how much."""
    edges = [(c.begins_at, Usd.per_second(c)) for c in charges]
    edges += [(c.begins_at + timedelta(seconds=c.seconds), -Usd.per_second(c)) for c in charges]
    edges.sort(key=lambda edge: edge[0])
    for moment, group in groupby(edges, key=lambda edge: edge[0]):
        yield moment, sum((change for _, change in group), Usd())
