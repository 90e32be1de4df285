"""What came of each step of a fleet's plan, gathered while the plan is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpulab.errors import GpulabError, Refused
from gpulab.fleet.plan import trouble_of
from gpulab.model.fleet import Action, FleetPlan, Outcome, Result, Step
from gpulab.model.instance import Instance


class Outcomes:
    """The outcomes of one plan's steps so far; at most one for each, the last one that was set."""

    def __init__(self, plan: FleetPlan) -> None:
        self._plan = plan
        self._found: dict[int, Outcome] = {}

    def set(self, step: Step, outcome: Outcome) -> Outcome:
        """Set what came of a step."""
        self._found[id(step)] = outcome
        return outcome

    def add(self, step: Step, said: str) -> Outcome:
        """Add half a sentence to what came of a step; an empty one changes nothing."""
        outcome = self._found[id(step)]
        detail = "; ".join(filter(None, (outcome.detail, said)))
        return self.set(step, replace(outcome, detail=detail))

    def known(self) -> Iterator[tuple[Step, Outcome]]:
        """Yield what is known by now, in the plan's order."""
        for step in self._plan.steps:
            if id(step) in self._found:
                yield step, self._found[id(step)]

    def all(self) -> tuple[Outcome, ...]:
        """
        Return one for each step, in the plan's order.

        Raises:
            KeyError: Of a step nobody has said anything yet.
        """
        return tuple(self._found[id(step)] for step in self._plan.steps)


def outcome_of(
    step: Step, result: Result, *, instance: Instance | None = None, detail: str = ""
) -> Outcome:
    """Say what came of a step."""
    return Outcome(
        name=step.name,
        account=step.account,
        result=result,
        seat=step.seat,
        instance=instance,
        detail=detail,
    )


def failed(step: Step, error: GpulabError, *, instance: Instance | None = None) -> Outcome:
    """
    Say why a step came to nothing.

    Args:
        instance: What is alive all the same.
    """
    outcome = outcome_of(step, Result.FAILED, instance=instance)
    return replace(outcome, trouble=trouble_of(error))


def untouched(step: Step) -> Outcome:
    """Say what came of a step that launches and ends nothing."""
    if step.action is Action.KEEP:
        return outcome_of(step, Result.KEPT, instance=step.instance, detail=step.reason)
    if step.action is Action.BLOCKED:
        return failed(step, Refused(step.reason, hint=step.hint))
    detail = f"{step.reason}; `--prune` saves its work and ends it"
    return outcome_of(step, Result.KEPT, instance=step.instance, detail=detail)
