"""Waiting until the instances that AWS has taken run: one look for all of them, and for each the ledger and an outcome, or another launch."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace

from gpulab.errors import StoreError
from gpulab.fleet.outcomes import Outcomes, failed, outcome_of
from gpulab.fleets import watching
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.events import FleetEvent, Lost, Polled
from gpulab.fleets.preparing import Launches
from gpulab.fleets.requesting import Start
from gpulab.fleets.verdicts import Judged, Verdict, judge, running_since
from gpulab.launch.money.facts import record_end, record_running
from gpulab.launch.protocol.outcome import FIRST_LOOK_S, ended_by
from gpulab.model.fleet import Action, FleetPlan, Outcome, Result
from gpulab.model.instance import Instance
from gpulab.planning.failover import Failure

_NEXT_LOOK_S = 5.0
_ROUNDS = 3


class Starting:
    """The starts of one `fleet up`, from AWS's answer until they run."""

    def __init__(
        self, accounts: Accounts, plan: FleetPlan, launches: Launches, outcomes: Outcomes
    ) -> None:
        self._accounts = accounts
        self._plan = plan
        self._launches = launches
        self._outcomes = outcomes

    def until_running(self, starts: Sequence[Start]) -> Generator[FleetEvent, None, list[Start]]:
        """Look at all of them together until none is pending; return those that have to be launched again: the others have an outcome."""
        now, pending, pause = self._accounts.outside.now, list(starts), FIRST_LOOK_S
        again: list[Start] = []
        while pending:
            self._accounts.outside.sleep(pause)
            pause = _NEXT_LOOK_S
            said = self._look(pending)
            left = []
            for start in pending:
                judged = self._judged(start, said)
                if judged.verdict is Verdict.WAIT:
                    left.append(start)
                elif (outcome := self._outcome(start, judged)) is not None:
                    self._outcomes.set(start.step, outcome)
                else:
                    again.append(start)
                    reason = judged.seen.state_reason if judged.seen else ""
                    yield Lost(now(), start.seat, reason or "ended")
            pending = left
            yield Polled(now(), len(starts) - len(pending) - len(again), len(pending))
        return again

    def _look(self, pending: Sequence[Start]) -> watching.Said:
        where = watching.places_of(
            (start.step.account, start.launched.instance) for start in pending if start.launched
        )
        course, lab = self._plan.course, self._plan.lab
        return watching.poll(self._accounts, where, course_id=course.id, lab_id=lab.id)

    def _judged(self, start: Start, said: watching.Said) -> Judged:
        assert start.launched is not None
        assert start.asked_at is not None
        instance = start.launched.instance
        waited = self._accounts.outside.now() - start.asked_at
        where = (start.step.account.key, instance.place.region)
        judged = judge(instance, said[where], waited=waited)
        if judged.seen is not None:
            start.launched = replace(start.launched, instance=judged.seen)
            if judged.verdict is Verdict.WAIT:
                start.pending_at = self._accounts.outside.now()
        return judged

    def _outcome(self, start: Start, judged: Judged) -> Outcome | None:
        """Say what came of a start that is not waited for any more; `None` when the seat is launched again."""
        if judged.error is not None:
            return failed(start.step, judged.error, instance=judged.seen)
        assert judged.seen is not None
        if judged.verdict is Verdict.RUNS:
            return self._ran(start, judged.seen)
        return self._ended_early(start, judged.seen)

    def _ran(self, start: Start, instance: Instance) -> Outcome:
        assert start.launched is not None
        assert start.asked_at is not None
        context = self._accounts.account(start.step.account).context
        running_at = running_since(
            instance,
            asked_at=start.asked_at,
            pending_at=start.pending_at,
            now=self._accounts.outside.now(),
            is_adopted=start.is_adopted,
        )
        with contextlib.suppress(StoreError):
            disk_gib = start.launched.plan.disk_gib
            record_running(context, instance, at=running_at, disk_gib=disk_gib)
        note, boot = start.launched.note, start.launched.boot
        outcome = outcome_of(start.step, _result_of(start), instance=instance, detail=note)
        return replace(outcome, boot=boot)

    def _ended_early(self, start: Start, instance: Instance) -> Outcome | None:
        context = self._accounts.account(start.step.account).context
        with contextlib.suppress(StoreError):
            record_end(
                context,
                instance,
                at=self._accounts.outside.now(),
                by=ended_by(instance),
                reason=instance.state_reason,
            )
        assert start.launched is not None
        error, may_go_on = self._launches[start.step.account.key].ended_early(start.launched)
        if not may_go_on or start.rounds >= _ROUNDS:
            return failed(start.step, error)
        if start.launched.offer is not None:
            start.failures.append(Failure(start.launched.offer, error))
        return None


def _result_of(start: Start) -> Result:
    if start.is_adopted:
        return Result.ADOPTED
    return Result.REPLACED if start.step.action is Action.REPLACE else Result.LAUNCHED
