"""
The regions of a request, one after the other: each is looked at only when the ones before it cannot serve. That keeps the usual launch at
a handful of calls, however many regions the profile names.
"""

from __future__ import annotations

from dataclasses import replace

from gpulab.errors import CreditTooLow, Refused
from gpulab.launch.context import Context
from gpulab.launch.money.budget import term_budget
from gpulab.launch.money.credit import credit_left_usd
from gpulab.launch.offers.look import snapshot
from gpulab.model.instance import Instance, LaunchPlan, LaunchRequest
from gpulab.planning import Limits, plan_launch
from gpulab.planning.catalogue import instance_types
from gpulab.planning.plan import already_up, check_request
from gpulab.planning.snapshot import Snapshot


class Route:
    """
    One request on its way through its regions.

    Raises:
        WrongUsage, Refused: The request itself cannot be met anywhere; nothing was asked of AWS.
    """

    def __init__(self, context: Context, request: LaunchRequest) -> None:
        self._context = context
        self._request = request
        self._limits = Limits(context.profile.lifetime_limit)
        self._left = list(request.regions)
        self._notes: list[str] = []
        self._seen: Snapshot | None = None
        check_request(request, instance_types(), self._limits)

    def already_up(self) -> Instance | None:
        """Return my live instance of the request's name, as far as the region looked at next shows it."""
        return already_up(self._request, self._look())

    def next_plan(self) -> LaunchPlan:
        """
        Plan the next region that can serve.

        Raises:
            Refused, QuotaTooLow: No region that is left can; the first region's reason.
            CreditTooLow: The worst case does not fit into the credit or the term's budget, in whichever region.
            GpulabError: AWS does not answer.
        """
        first: Refused | None = None
        while self._left:
            try:
                return self._plan()
            except CreditTooLow:
                raise
            except Refused as error:
                first = first or error
                self._notes.append(f"{self._left[0]} is left out: {error.message}")
                self._leave()
        raise first or Refused(f"no region is left for {self._request.name}")

    def further(self) -> LaunchPlan | None:
        """
        Plan the next region, after every attempt in the one before came to nothing; `None` when none is left that can serve.

        Raises:
            Refused: An instance of that name is up in that region: launched from another computer.
            GpulabError: AWS does not answer.
        """
        self._leave()
        try:
            plan = self.next_plan()
        except CreditTooLow:
            raise
        except Refused:
            return None
        self._check_not_up(plan)
        return plan

    def _plan(self) -> LaunchPlan:
        here = replace(self._request, regions=(self._left[0],))
        try:
            plan = plan_launch(here, self._look(), limits=self._limits)
        except CreditTooLow:
            # What ended while this computer was off may still be counted as running: ask before refusing.
            left, _ = credit_left_usd(self._context, is_ledger_enough=False)
            budget = term_budget(self._context)
            self._seen = replace(self._look(), credit_left_usd=left, term_budget=budget)
            plan = plan_launch(here, self._seen, limits=self._limits)
        later = tuple(self._left[1:])
        notes = [*self._notes, *plan.warnings, *_later_note(later)]
        return replace(plan, warnings=tuple(notes), later_regions=later)

    def _look(self) -> Snapshot:
        if self._seen is None:
            here = replace(self._request, regions=(self._left[0],))
            seen = snapshot(self._context, here)
            self._seen = replace(seen, term_budget=term_budget(self._context))
        return self._seen

    def _leave(self) -> None:
        self._left = self._left[1:]
        self._seen = None

    def _check_not_up(self, plan: LaunchPlan) -> None:
        up = self.already_up()
        if up is not None:
            raise Refused(
                f"{up.name} is up already in {plan.attempts[0].place.region} ({up.id})",
                hint=f"`gpulab open {up.name}`, or another name",
            )


def _later_note(later: tuple[str, ...]) -> tuple[str, ...]:
    if not later:
        return ()
    return (f"if all of these are full, {' and then '.join(later)} is tried",)
