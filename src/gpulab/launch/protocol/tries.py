"""
One launch on its way through the places of its plan: a token for each try, and what a refusal leaves. Pure; a single launch and each seat
of a class go by it. What a launch remembers for others (full places, a region's repair) is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpulab.errors import GpulabError
from gpulab.model.market import Offer, Place
from gpulab.planning.failover import Failure, Next, conclusion, remaining, what_next

# Nobody knows, or it is the same everywhere: another place would hide it, or cost twice.
_ENDS = (Next.SAME_CALL, Next.STOP, Next.ADOPT, Next.REPAIR, Next.NEW_TOKEN)


@dataclass(frozen=True)
class Attempt:
    """
    One try of a launch at one place.

    Attributes:
        number: From 1; each has its own token, since AWS counts tokens by zone.
    """

    launch_id: str
    number: int
    offer: Offer

    @property
    def token(self) -> str:
        """Client token of this attempt."""
        return f"{self.launch_id}-{self.number}"


@dataclass(frozen=True)
class Left:
    """
    What a refusal leaves.

    Attributes:
        offers: What is still worth trying, in order; empty when nothing is.
        then: Why.
        is_repeat: Whether the same place is tried once more, so that nothing is known of it yet.
    """

    offers: tuple[Offer, ...]
    then: Next
    is_repeat: bool


class Tries:
    """
    The tries of one launch.

    Args:
        launch_id: Unique; the stem of every token.
        may_repair: Asked before a region's setup is made anew; true once for each region, and forgets the setup then.
    """

    def __init__(self, launch_id: str, *, may_repair: Callable[[str], bool]) -> None:
        self._launch_id = launch_id
        self._may_repair = may_repair
        self._number = 0
        self._failures: list[Failure] = []
        self._renewed: set[Place] = set()

    def next_at(self, offer: Offer) -> Attempt:
        """Begin a try; each has a number and a token of its own."""
        self._number += 1
        return Attempt(self._launch_id, self._number, offer)

    def after(self, error: GpulabError, offer: Offer, left: Sequence[Offer]) -> Left:
        """
        Say what a refusal leaves, and remember it.

        Args:
            left: What was to be tried, with the place that refused.

        Raises:
            GpulabError: The launch ends here: nobody knows, or it is the same everywhere.
        """
        then = what_next(error)
        if self._is_repeated(then, offer):
            return Left(tuple(left), then, is_repeat=True)
        failure = Failure(offer, error)
        if then in _ENDS:
            raise conclusion([*self._failures, failure]) if self._failures else error
        self._failures.append(failure)
        return Left(remaining(left, failure), then, is_repeat=False)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What places have refused, in order."""
        return tuple(self._failures)

    @property
    def is_same_everywhere(self) -> bool:
        """Whether what is missing is missing in every region."""
        return any(what_next(f.error) is Next.ON_DEMAND for f in self._failures)

    def _is_repeated(self, then: Next, offer: Offer) -> bool:
        """Repair a region once, and take a new token for a place once."""
        if then is Next.REPAIR:
            return self._may_repair(offer.place.region)
        if then is Next.NEW_TOKEN and offer.place not in self._renewed:
            self._renewed.add(offer.place)
            return True
        return False
