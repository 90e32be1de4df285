"""A whole class at once: whom each instance serves, what is to happen to it, and what came of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from gpulab.model.course import Course, Lab, Student
from gpulab.model.instance import Instance, LaunchPlan, LaunchRequest
from gpulab.model.setup import ImageChoice


class Action(StrEnum):
    """What a plan does about one seat, or about one instance nobody asked for."""

    LAUNCH = "launch"
    KEEP = "keep"
    REPLACE = "replace"
    EXTRA = "extra"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class AccountRef:
    """
    One AWS account and the way into it.

    Attributes:
        key: Unique among the accounts of a course; a folder's name: `profile-default`, `111122223333`.
        profile: gpulab profile whose credentials are used, directly or to assume the role.
        role_arn: Role to assume; `""` to use the profile itself.
        external_id: What the role's trust asks for; not a secret, but one for each student.
    """

    key: str
    profile: str
    role_arn: str = ""
    external_id: str = ""

    @property
    def number(self) -> str:
        """The account's twelve digits where the role tells them, else `""`."""
        return self.role_arn.split(":")[4] if self.role_arn else ""

    @property
    def title(self) -> str:
        """What the teacher calls it: its number, else the profile that leads there."""
        return f"account {self.number}" if self.number else f"profile {self.profile}"


@dataclass(frozen=True)
class Seat:
    """
    Whom one instance serves: a student, or a group.

    Attributes:
        name: Of the instance, `LAB-OWNER`; at most 40 characters, nothing personal.
        owner: Opaque id of the student or the group.
        label: What the teacher calls it: the student's id or the group's name. Stays on this computer.
        students: Never empty; one but for groups.
        account: Who pays; of a group, its first student's account.
    """

    name: str
    owner: str
    label: str
    group: str
    students: tuple[Student, ...]
    account: AccountRef


@dataclass(frozen=True)
class Step:
    """
    What is to happen about one seat.

    Attributes:
        seat: `None` only for an extra instance.
        instance: The one that is up; `None` for a launch.
        at_most_usd: Worst case of what this step starts; 0 where it starts nothing.
        budget_usd: What its instance may cost before it ends itself: the lab's, or what is left of the student's term; `None` for no limit.
        reason: Why, a half-sentence; empty for a plain launch or keep.
        hint: What to do about it; empty when there is nothing useful to say.
    """

    action: Action
    account: AccountRef
    seat: Seat | None
    instance: Instance | None = None
    at_most_usd: Decimal = Decimal(0)
    budget_usd: Decimal | None = None
    reason: str = ""
    hint: str = ""

    @property
    def starts(self) -> bool:
        """Whether an instance is to be launched."""
        return self.action in (Action.LAUNCH, Action.REPLACE)

    @property
    def name(self) -> str:
        """The instance's name."""
        if self.seat is not None:
            return self.seat.name
        return self.instance.name if self.instance else ""


@dataclass(frozen=True)
class QuotaNeed:
    """
    What a plan asks of one quota.

    Attributes:
        needed_vcpus: Of everything the plan would launch under it, whether it fits or not.
        free_vcpus: What is left now; `None` when nobody could read it.
        hint: The request that raises it; empty when all fits.
    """

    account: AccountRef
    region: str
    family: str
    market: str
    code: str
    needed_vcpus: int
    free_vcpus: int | None
    limit_vcpus: int | None
    hint: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.free_vcpus is None or self.needed_vcpus <= self.free_vcpus


@dataclass(frozen=True)
class Trouble:
    """
    What went wrong for one seat or account, as data.

    Attributes:
        message: One sentence without a full stop.
        hint: What to do about it; may be empty.
        code: AWS's own code; empty when AWS did not speak.
    """

    message: str
    hint: str = ""
    code: str = ""


@dataclass(frozen=True)
class BrokenAccount:
    """An account that could not be looked at, and whom that concerns."""

    account: AccountRef
    seats: tuple[Seat, ...]
    trouble: Trouble


@dataclass(frozen=True)
class FleetPlan:
    """
    What is to happen so that every seat of a lab has its instance.

    Attributes:
        ends_at: When each new instance ends itself; aware UTC.
        steps: One for each seat in the roster's order, then the extras by name.
        launch_plans: What to try where, by account key; only where something is launched.
        request: The wish all launches share, but for the name.
        at_most_usd: Worst case of all launches.
        expected_usd: All launches at today's price of the first place.
        boots: What the launches boot from, by account key: one choice for each region looked at, in order of preference.
        refusals: Limits the plan passes; with any, nothing may be launched.
        notes: Sentences to read before confirming.
    """

    course: Course
    lab: Lab
    made_at: datetime
    ends_at: datetime
    request: LaunchRequest
    steps: tuple[Step, ...]
    launch_plans: Mapping[str, LaunchPlan]
    quotas: tuple[QuotaNeed, ...]
    broken: tuple[BrokenAccount, ...]
    at_most_usd: Decimal
    expected_usd: Decimal
    boots: Mapping[str, tuple[ImageChoice, ...]] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, *actions: Action) -> tuple[Step, ...]:
        """Return the steps of some actions, in the plan's order."""
        return tuple(step for step in self.steps if step.action in actions)

    @property
    def starting(self) -> tuple[Step, ...]:
        """The steps that launch an instance, in the plan's order."""
        return tuple(step for step in self.steps if step.starts)


class Result(StrEnum):
    """What came of one seat."""

    LAUNCHED = "launched"
    KEPT = "kept"
    ADOPTED = "adopted"
    REPLACED = "replaced"
    ENDED = "ended"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """
    What came of one seat, whatever happened to the others.

    Attributes:
        seat: `None` for an extra instance.
        instance: The live one, if there is one.
        trouble: Why it failed; `None` otherwise.
        detail: What was done, a half-sentence; may come from outside.
        boot: What a new instance boots from; `None` for any other.
    """

    name: str
    account: AccountRef
    result: Result
    seat: Seat | None = None
    instance: Instance | None = None
    trouble: Trouble | None = None
    detail: str = ""
    boot: ImageChoice | None = None

    @property
    def is_failed(self) -> bool:
        """Whether somebody has to do something."""
        return self.result is Result.FAILED

    @property
    def who(self) -> str:
        """What the teacher calls whom this concerns."""
        return self.seat.label if self.seat else self.name or self.account.title
