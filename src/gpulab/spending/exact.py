"""Exact arithmetic on dollars and seconds. Hides the common denominator; nothing is rounded before it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from functools import total_ordering

from gpulab.model.timeline import Charge

# One second of a price per hour is 1/3600 of it, one second of a price per month 1/(86400 x 28, 29, 30 or 31).
# Cut a dollar into so many shares, and each of these is a whole number of shares.
_SHARES = 86400 * 28 * 29 * 15 * 31

# Inexact is trapped: should an amount ever need more digits, the sum fails loudly and is not wrong by a little.
EXACT = Context(prec=400, traps=[Inexact, InvalidOperation, Overflow])

_NEW, _ADD = object.__new__, EXACT.add

# More digits than any price has; they keep every sum within the precision above.
MAX_DIGITS = 40


@total_ordering
class Usd:
    """
    An exact amount, even where it has no finite decimal form (a third of a cent).

    Compare and add freely; `rounded` and `cents` are for showing.
    """

    __slots__ = ("_shares",)

    def __init__(self, usd: Decimal | int = 0) -> None:
        self._shares = EXACT.multiply(Decimal(usd), Decimal(_SHARES))

    @classmethod
    def of(cls, charges: Iterable[Charge]) -> Usd:
        """Sum charges, exactly."""
        shares = Decimal(0)
        for charge in charges:
            shares = EXACT.fma(_shares_per_second(charge), Decimal(charge.seconds), shares)
        return cls._from(shares)

    @classmethod
    def hourly(cls, usd_per_hour: Decimal, seconds: int) -> Usd:
        """Return what so many seconds cost at a price per hour, exactly."""
        return cls._from(EXACT.multiply(usd_per_hour, Decimal(_SHARES // 3600 * seconds)))

    @classmethod
    def part(cls, charge: Charge, seconds: int) -> Usd:
        """Return what so many seconds of a charge cost, exactly."""
        return cls._from(
            EXACT.multiply(charge.usd, Decimal(_SHARES // charge.unit_seconds * seconds))
        )

    @classmethod
    def per_second(cls, charge: Charge) -> Usd:
        """Return what one second of a charge costs, exactly."""
        return cls._from(_shares_per_second(charge))

    @classmethod
    def _from(cls, shares: Decimal) -> Usd:
        amount = cls.__new__(cls)
        amount._shares = shares
        return amount

    def __add__(self, other: Usd) -> Usd:
        # Written out: a report of a term adds half a million times.
        amount = _NEW(Usd)
        amount._shares = _ADD(self._shares, other._shares)
        return amount

    def __sub__(self, other: Usd) -> Usd:
        return Usd._from(EXACT.subtract(self._shares, other._shares))

    def __neg__(self) -> Usd:
        return Usd._from(EXACT.minus(self._shares))

    def __mul__(self, times: int) -> Usd:
        return Usd._from(EXACT.multiply(self._shares, Decimal(times)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usd) and self._shares == other._shares

    def __lt__(self, other: Usd) -> bool:
        return self._shares < other._shares

    def __hash__(self) -> int:
        return hash(self._shares)

    def __repr__(self) -> str:
        return f"Usd({self.rounded()})"

    def ceiling_of(self, part: Usd) -> int:
        """Count how often a part above 0 is needed to reach this amount (0 or more)."""
        if self._shares <= 0:
            return 0
        whole, rest = EXACT.divmod(self._shares, part._shares)
        return int(whole) + (1 if rest else 0)

    def rounded(self, places: int = 10) -> Decimal:
        """Round once, to so many decimals, half up (away from zero)."""
        doubled = EXACT.multiply(EXACT.abs(self._shares), Decimal(2 * 10**places))
        units = EXACT.divide_int(EXACT.add(doubled, Decimal(_SHARES)), Decimal(2 * _SHARES))
        return EXACT.scaleb(units if self._shares >= 0 else EXACT.minus(units), -places)

    @property
    def cents(self) -> int:
        """Round half up to whole cents."""
        return int(self.rounded(2).scaleb(2, EXACT))


def _shares_per_second(charge: Charge) -> Decimal:
    return EXACT.multiply(charge.usd, Decimal(_SHARES // charge.unit_seconds))


def seconds_between(begin: datetime, end: datetime) -> int:
    """Count whole seconds between two whole seconds in UTC; negative when the end comes first."""
    span = end - begin
    return span.days * 86400 + span.seconds
