"""One look at a class, or at one's own instances. One paginated call for each account and region; each agent asked at most once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpulab.errors import GpulabError
from gpulab.fleets import acting
from gpulab.fleets.accounts import Accounts
from gpulab.fleets.members import Member, members
from gpulab.launch.context import Context
from gpulab.launch.running import overview
from gpulab.model.course import Lab
from gpulab.model.fleet import AccountRef, Seat
from gpulab.model.instance import State
from gpulab.model.status import AgentStatus
from gpulab.spending.facts import timeline_of
from gpulab.spending.lab import CourseSpending, course_spending
from gpulab.view.dashboard import Board, class_board, own_board
from gpulab.view.fleet_members import MemberRow


@dataclass
class ClassLook:
    """
    Looks at a lab, again and again.

    Attributes:
        seats: Whom the board shows, in this order.
        has_all: Whether these are all of the lab; then what serves nobody is shown too.
        former: Accounts that nobody in the roster has any more, see `fleets.former`.
    """

    accounts: Accounts
    lab: Lab
    seats: Sequence[Seat]
    has_all: bool
    has_names: bool
    former: Sequence[AccountRef] = ()
    # What agents said last, by instance: shown until they are asked again, so that a look is there before the last of 300 has answered.
    _statuses: dict[str, AgentStatus] = field(default_factory=dict)
    _silences: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> Iterator[Board]:
        """
        Look once: what EC2 says, then what the agents say.

        Yields:
            Two boards; the second knows what every agent said now.
        """
        found = members(
            self.accounts, self.lab, self.seats, with_extras=self.has_all, former=self.former
        )
        spending, notes = self._spending(found)
        yield self._board(found, spending, notes)
        self._ask(found)
        yield self._board(found, spending, notes)

    def _ask(self, found: Sequence[Member]) -> None:
        running = [m for m in found if m.instance and m.instance.state is State.RUNNING]
        fresh: dict[str, AgentStatus] = {}
        silences: dict[str, str] = {}

        def take(member: Member, status: AgentStatus) -> None:
            fresh[_id(member)] = status

        for outcome in acting.statuses(self.accounts, running, take=take):
            if outcome.trouble is not None and outcome.instance is not None:
                silences[outcome.instance.id] = outcome.trouble.message
        # Who could not be asked, because the account is lost, keeps what was said last.
        asked = {_id(member) for member in running}
        kept = {key: said for key, said in self._statuses.items() if key not in asked}
        self._statuses, self._silences = {**kept, **fresh}, silences

    def _board(
        self, found: Sequence[Member], spending: CourseSpending, notes: Sequence[str]
    ) -> Board:
        # By instance, not by name: in a course account a name is what somebody wrote into a tag.
        rows = [
            MemberRow(m, self._statuses.get(_id(m)), self._silences.get(_id(m), "")) for m in found
        ]
        course = self.accounts.course
        students = sum(len(seat.students) for seat in self.seats)
        return class_board(
            rows,
            lab=self.lab,
            spending=spending,
            term_budget_usd=course.budget_usd * students if course.budget_usd is not None else None,
            has_names=self.has_names,
            notes=notes,
            now=self.accounts.outside.now(),
        )

    def _spending(self, found: Sequence[Member]) -> tuple[CourseSpending, list[str]]:
        """Add up the ledgers of this computer; one that cannot be read is a note, and hides what it knows only."""
        total, notes = CourseSpending(), []
        refs: dict[str, AccountRef] = {m.account.key: m.account for m in found}
        for ref in refs.values():
            try:
                total += self._of_account(ref, [m for m in found if m.account.key == ref.key])
            except GpulabError as error:
                notes.append(f"what {ref.key} has cost is not known: {error.message}")
        return total, notes

    def _of_account(self, ref: AccountRef, found: Sequence[Member]) -> CourseSpending:
        facts = self.accounts.account(ref).context.ledger.facts()
        is_read = all(member.error is None for member in found)
        return course_spending(
            timeline_of(facts),
            course=self.accounts.course.id,
            lab=self.lab.id,
            alive={_id(m) for m in found} if is_read else None,
            now=self.accounts.outside.now(),
        )


@dataclass(frozen=True)
class OwnLook:
    """Looks at one's own instances, again and again."""

    context: Context

    def __call__(self) -> Iterator[Board]:
        """Look once."""
        yield own_board(overview.look(self.context), now=self.context.now())


def _id(member: Member) -> str:
    return member.instance.id if member.instance else ""
