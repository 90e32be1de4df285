"""What happens while a fleet is carried out, as values; `view/` turns them into words. Each says when (`at`, aware UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gpulab.model.fleet import Outcome, Seat
from gpulab.model.instance import Instance


@dataclass(frozen=True)
class WaitingUntil:
    """Nothing is launched before that moment."""

    at: datetime
    until: datetime


@dataclass(frozen=True)
class AccountsLack:
    """
    Something is missing in some accounts, for one reason.

    Attributes:
        accounts: What the teacher calls them.
        why: A sentence; the same for all of them.
    """

    at: datetime
    accounts: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Unscheduled(AccountsLack):
    """Some accounts end nothing by themselves: the timer on each instance is all that does."""


@dataclass(frozen=True)
class Narrowed:
    """
    The launches of a region have closed port 22 of all the course's instances there to a range that was let in before.

    Attributes:
        account: What the teacher calls it.
        former: The ranges that are let in no more, sorted.
        cidr: What is let in now.
    """

    at: datetime
    account: str
    region: str
    former: tuple[str, ...]
    cidr: str


@dataclass(frozen=True)
class Unkept(AccountsLack):
    """Nothing keeps the work of some launches when their instances end by themselves."""


@dataclass(frozen=True)
class Unwritten(AccountsLack):
    """Whose some instances are could not be written down where other computers look."""


@dataclass(frozen=True)
class Unbooked(AccountsLack):
    """The ledger of some accounts may lack what an earlier command launched there."""


@dataclass(frozen=True)
class Pruning:
    """Instances that serve nobody are saved and ended while the others are launched."""

    at: datetime
    count: int


@dataclass(frozen=True)
class Pruned:
    """What came of ending an instance that serves nobody."""

    at: datetime
    outcome: Outcome


@dataclass(frozen=True)
class BringingBack:
    """The kept work of some seats goes to their new instances, as soon as these can be reached."""

    at: datetime
    count: int


@dataclass(frozen=True)
class BroughtBack:
    """
    What came of bringing a seat's kept work to its new instance.

    Attributes:
        said: In words; also when it is not there.
    """

    at: datetime
    outcome: Outcome
    said: str


@dataclass(frozen=True)
class Requested:
    """AWS took the launch for a seat; from here on it costs."""

    at: datetime
    seat: Seat
    instance: Instance
    done: int
    of: int


@dataclass(frozen=True)
class SeatFailed:
    """A seat came to nothing, for now; its outcome says why."""

    at: datetime
    outcome: Outcome
    done: int
    of: int


@dataclass(frozen=True)
class Polled:
    """
    One look at everything that was launched.

    Attributes:
        running: How many EC2 says run.
    """

    at: datetime
    running: int
    pending: int


@dataclass(frozen=True)
class Lost:
    """An instance ended while it started; its seat is launched again."""

    at: datetime
    seat: Seat
    reason: str


@dataclass(frozen=True)
class Finished:
    """Everything was tried; one outcome for each seat, in the plan's order, then the extras."""

    at: datetime
    outcomes: tuple[Outcome, ...]


FleetEvent = (
    WaitingUntil
    | Unscheduled
    | Narrowed
    | Unkept
    | Unwritten
    | Unbooked
    | Pruning
    | Pruned
    | Requested
    | SeatFailed
    | Polled
    | Lost
    | BringingBack
    | BroughtBack
    | Finished
)
