"""
Instances that `fleet up` ends: those that serve nobody, beside the launches, and those that are replaced. Each is saved first; one whose work
cannot be saved runs on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from gpulab.errors import GpulabError
from gpulab.fleet.outcomes import Outcomes, failed, outcome_of
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.events import FleetEvent, Pruned, Pruning
from gpulab.fleets.launching import Halted
from gpulab.fleets.members import terminating
from gpulab.launch.context import Context
from gpulab.launch.running import booting, stop
from gpulab.launch.running.lineage import other_versions
from gpulab.model.fleet import Outcome, Result, Step
from gpulab.model.instance import Instance

_AT_ONCE = 16


class Prune:
    """
    Saves and ends instances that serve nobody, beside the launches: nobody whose lab begins waits until a stray's work is saved.

    Args:
        strays: Steps whose instances are ended.
    """

    def __init__(self, accounts: Accounts, strays: Sequence[Step], outcomes: Outcomes) -> None:
        self._accounts = accounts
        self._strays = strays
        self._outcomes = outcomes
        self._leave = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._ending: dict[Future[Outcome], Step] = {}

    def begin(self) -> Iterator[FleetEvent]:
        """Begin to end them."""
        self._ending = {self._pool.submit(self._pruned, step): step for step in self._strays}
        if self._ending:
            yield Pruning(self._accounts.outside.now(), len(self._ending))

    def finish(self) -> Iterator[FleetEvent]:
        """Wait until all have ended, or cannot be ended."""
        for future in as_completed(self._ending):
            outcome = self._outcomes.set(self._ending[future], future.result())
            yield Pruned(self._accounts.outside.now(), outcome)

    def leave(self) -> None:
        """Begin no further end; those under way are waited for."""
        self._leave.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _pruned(self, step: Step) -> Outcome:
        assert step.instance is not None
        context = self._accounts.account(step.account).context
        try:
            save_and_end(context, step.instance, halt=self._leave)
        except GpulabError as error:
            return failed(step, error, instance=step.instance)
        others = other_versions(context, step.instance.name)
        detail = "; ".join(filter(None, (step.reason, others)))
        return outcome_of(step, Result.ENDED, detail=detail)


def save_and_end(context: Context, instance: Instance, *, halt: threading.Event) -> None:
    """
    Save the work and end an instance; one whose work cannot be saved runs on, and so does one that shows no host key yet at Ctrl-C.

    Raises:
        GpulabError: It runs on.
        Halted: The command is being interrupted.
    """
    for _ in booting.pin(context, instance):
        if halt.is_set():
            raise Halted
    for _ in stop.stop(context, instance, unsaved=terminating(instance)):
        pass
