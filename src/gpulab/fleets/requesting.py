"""Asking AWS for the instances of many seats at once; what a killed command asked for already is asked for again, never anew."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime

from gpulab.errors import Ambiguous, GpulabError, StoreError, Throttled
from gpulab.fleet.outcomes import Outcomes, failed
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.events import FleetEvent, Narrowed, Requested, SeatFailed
from gpulab.fleets.launching import AccountLaunches, Launched
from gpulab.fleets.preparing import Launches
from gpulab.fleets.pruning import save_and_end
from gpulab.launch.protocol.asking import BEFORE_THE_TOKEN
from gpulab.model.fleet import AccountRef, Action, Seat, Step
from gpulab.model.instance import Instance
from gpulab.planning.failover import Failure
from gpulab.store.journal import Intent

# So soon is told whom a class's first launch shuts out: before AWS has answered it.
_NEWS_S = 0.2
_AT_ONCE = 32
_IN_ONE_ACCOUNT = 8


@dataclass
class Start:
    """
    One seat's instance on its way from the plan until it runs.

    Attributes:
        rounds: How often it was asked for anew or again, by this command.
        asked_at: When AWS took the launch, by this computer's clock.
        pending_at: When a look last showed it pending.
        is_adopted: Whether an earlier command had made it.
        failures: Launches that ended at their start.
    """

    step: Step
    seat: Seat
    rounds: int = 0
    launched: Launched | None = None
    asked_at: datetime | None = None
    pending_at: datetime | None = None
    is_adopted: bool = False
    failures: list[Failure] = field(default_factory=list)


class Requests:
    """
    The requests of one `fleet up`.

    Args:
        open_intents: By seat's name, launches of killed commands of which nobody knows.
        total: How many seats there are to be launched.
        halt: Set when the command is interrupted.

    Attributes:
        taken: Every launch that AWS took, and its account.
        unscheduled: Ids of those whose end the account did not schedule at once.
    """

    def __init__(
        self,
        accounts: Accounts,
        launches: Launches,
        outcomes: Outcomes,
        *,
        open_intents: Mapping[str, Intent],
        total: int,
        halt: threading.Event,
    ) -> None:
        self._accounts = accounts
        self._launches = launches
        self._outcomes = outcomes
        self._open = dict(open_intents)
        self._total = total
        self._halt = halt
        self._pool = ThreadPoolExecutor(
            min(_AT_ONCE, max(1, total), _IN_ONE_ACCOUNT * max(1, len(launches)))
        )
        self._told: set[tuple[str, str]] = set()
        self.taken: list[tuple[AccountRef, Instance]] = []
        self.unscheduled: set[str] = set()

    def request(self, starts: Sequence[Start]) -> Generator[FleetEvent, None, list[Start]]:
        """Ask AWS for an instance each, many at once; return those that were taken."""
        now, done = self._accounts.outside.now, self._total - len(starts)
        waiting: dict[Future[Launched], Start] = {
            self._pool.submit(self._launch, start): start for start in starts
        }
        taken = []
        refs = tuple({start.step.account.key: start.step.account for start in starts}.values())
        while waiting:
            ready, _ = wait(waiting, timeout=_NEWS_S, return_when=FIRST_COMPLETED)
            yield from self._narrowed(refs)
            for future in ready:
                start = waiting.pop(future)
                done += 1
                try:
                    launched = future.result()
                except GpulabError as error:
                    outcome = self._outcomes.set(start.step, failed(start.step, error))
                    yield SeatFailed(now(), outcome, done, self._total)
                else:
                    start.launched, start.asked_at, start.pending_at = launched, now(), None
                    taken.append(start)
                    self.taken.append((start.step.account, launched.instance))
                    if launched.unscheduled:
                        self.unscheduled.add(launched.instance.id)
                    yield Requested(now(), start.seat, launched.instance, done, self._total)
        return taken

    def _narrowed(self, refs: Sequence[AccountRef]) -> Iterator[FleetEvent]:
        """Say, once each, where the class is let in from no more, in time to interrupt the launches."""
        for ref in refs:
            for region, (former, cidr) in sorted(self._launches[ref.key].narrowed.copy().items()):
                if (ref.key, region) not in self._told:
                    self._told.add((ref.key, region))
                    now = self._accounts.outside.now()
                    yield Narrowed(now, ref.title, region, former, cidr)

    def leave(self) -> None:
        """Begin no further call; those under way end, and are written down."""
        self._halt.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _launch(self, start: Start) -> Launched:
        step, launches = start.step, self._launches[start.step.account.key]
        launches.check()
        if step.action is Action.REPLACE and start.rounds == 0 and step.instance is not None:
            context = self._accounts.account(step.account).context
            save_and_end(context, step.instance, halt=self._halt)
        start.rounds += 1
        start.is_adopted = False
        intent = self._open.pop(start.seat.name, None)
        if intent is not None:
            launched = _asked_again(launches, start.seat, intent)
            if launched is not None:
                start.is_adopted = True
                return launched
        return launches.launch(start.seat, before=start.failures)


def _asked_again(launches: AccountLaunches, seat: Seat, intent: Intent) -> Launched | None:
    """Return what an earlier command's launch made; `None` when the way is free for a new one."""
    try:
        launched = launches.ask_again(seat, intent)
    except (Ambiguous, Throttled, StoreError, *BEFORE_THE_TOKEN):
        raise
    except GpulabError:
        # Refused: then it was never made.
        return None
    return launched if launched.instance.state.is_alive else None
