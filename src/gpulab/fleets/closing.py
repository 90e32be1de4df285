"""
The end of a term: every instance of every lab saved and ended, and what the course has set up in each account removed.

In that order, and account by account: where an instance runs on, because its work could not be kept, the key to reach it stays. Each step
looks at what is there, so that running it again after a kill goes on where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial

from gpulab.aws import course_setup, instances, workspace
from gpulab.errors import GpulabError, NotAllowed, Refused
from gpulab.fleet.plan import trouble_of
from gpulab.fleets import acting, bookkeeping, keeping
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.former import HINT
from gpulab.fleets.members import Member
from gpulab.fleets.settling import settle
from gpulab.launch.account.removing import remove
from gpulab.model.fact import FactKind
from gpulab.model.fleet import AccountRef, Outcome, Seat, Trouble
from gpulab.model.leftover import Tagged

_AT_ONCE = 16


@dataclass(frozen=True)
class Standing:
    """
    What is left of a course in one account.

    Attributes:
        members: Its instances, of every lab, the stopped ones too: their disks are paid for, and may hold work.
        setup: Scheduled ends, groups and keys, in the order of removing.
        roles: Names of the roles that the course has made; in a student's account the student's stack has them.
        kept: Where instances have kept work by themselves, and of how many; `("", 0)` where none has.
        open_names: Instances whose launch was interrupted so lately that nobody knows yet whether they exist.
        trouble: Why the account could not be looked at; then nothing else is known.
        unheard: Sentences about costs that could not be read: the account's books may know too little.
    """

    account: AccountRef
    members: tuple[Member, ...] = ()
    setup: tuple[Tagged, ...] = ()
    roles: tuple[str, ...] = ()
    kept: tuple[str, int] = ("", 0)
    open_names: tuple[str, ...] = ()
    trouble: Trouble | None = None
    unheard: tuple[str, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether nothing is left."""
        return not (self.members or self.setup or self.roles or self.open_names or self.trouble)


@dataclass(frozen=True)
class Cleared:
    """What came of removing the setup of one account; `trouble` is `None` when all of it is gone."""

    account: AccountRef
    removed: tuple[Tagged, ...]
    roles: tuple[str, ...] = ()
    kept: tuple[str, int] = ("", 0)
    trouble: Trouble | None = None


def look(
    accounts: Accounts,
    refs: Sequence[AccountRef],
    seats: Iterable[Seat],
    *,
    former: Sequence[AccountRef] = (),
) -> tuple[Standing, ...]:
    """
    Look at what is left in each account; changes nothing but the books, which learn what has ended.

    Args:
        seats: Of every lab, to say whom an instance serves.
        former: Accounts that nobody in the roster has any more, see `fleets.former`.
    """
    known = {(seat.account.key, seat.name): seat for seat in seats}

    def ask(ref: AccountRef) -> Standing:
        try:
            return _standing(accounts, ref, known)
        except GpulabError as error:
            trouble = trouble_of(error)
            return Standing(ref, trouble=replace(trouble, hint=HINT) if ref in former else trouble)

    every = (*refs, *former)
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(every)))) as pool:
        return tuple(pool.map(ask, every))


def end(accounts: Accounts, found: Sequence[Standing], *, save: bool) -> Iterator[Outcome]:
    """Save and end every instance; one whose work cannot be saved runs on."""
    members = [member for standing in found for member in standing.members]
    return acting.stop(accounts, members, save=save) if members else iter(())


def clear(accounts: Accounts, found: Sequence[Standing]) -> Iterator[Cleared]:
    """
    Remove what the course has set up, in accounts where nothing of it runs any more.

    Args:
        found: Looked at after the instances have ended.

    Yields:
        One result for each account, as they come.
    """
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(found)))) as pool:
        for future in as_completed([pool.submit(_clear, accounts, one) for one in found]):
            yield future.result()


def _standing(accounts: Accounts, ref: AccountRef, known: dict[tuple[str, str], Seat]) -> Standing:
    account = accounts.account(ref)
    context, course = account.looking, accounts.course.id
    story = context.journal.read()
    regions = tuple(dict.fromkeys((*accounts.course.regions, *(m.region for m in story.made))))
    listed = [
        instance
        for region in regions
        for instance in instances.in_region(context.cloud, region, owner="").mine
        if instance.course == course
    ]
    names = {name for key, name in known if key == ref.key}
    settled = settle(account, names, listed, may_write=True)
    ours = [*listed, *(i for i in settled.unlisted if i.course == course)]
    unheard = _completed(accounts, ref, regions, known.values())
    made = _launched_here(account, course) | {i.id for i in ours}
    owner = account.context.owner
    found = tuple(
        resource
        for region in regions
        for resource in course_setup.in_region(
            context.cloud, region, owner=owner, instance_ids=made
        ).found
    )
    return Standing(
        ref,
        tuple(Member(ref, known.get((ref.key, i.name)), i) for i in ours if not i.state.is_over),
        found,
        () if ref.role_arn else _roles(account, course),
        _kept(accounts, ref),
        tuple(sorted(intent.name for intent in settled.open_intents)),
        unheard=unheard,
    )


def _completed(
    accounts: Accounts, ref: AccountRef, regions: tuple[str, ...], seats: Iterable[Seat]
) -> tuple[str, ...]:
    """Complete the account's books, and say of what they may know too little; that keeps nobody from ending the term."""
    try:
        return bookkeeping.complete(accounts, ref, regions, seats)
    except GpulabError as error:
        return (f"its costs could not be written down: {error.message}",)


def _launched_here(account: Account, course: str) -> set[str]:
    launched = account.context.ledger.facts(FactKind.LAUNCHED)
    return {fact.subject for fact in launched if fact.details.get("course") == course}


def _roles(account: Account, course: str) -> tuple[str, ...]:
    context = account.context
    try:
        return keeping.patiently(context, lambda: course_setup.roles(context.cloud, course))
    except NotAllowed:
        # Who may not look at roles has not made them either. Anything else is no answer, and nothing may be called closed then.
        return ()


def _kept(accounts: Accounts, ref: AccountRef) -> tuple[str, int]:
    """Say where instances have kept work by themselves; what cannot be read holds nobody up, since nothing of it is removed."""
    account = accounts.find_keeping(ref)
    where = account.keeping
    if where is None:
        return "", 0
    with contextlib.suppress(GpulabError):
        bucket = where.role.bucket
        names = workspace.names(account.context.cloud, bucket, owner=where.owner)
        return (where.shown, len(names)) if names else ("", 0)
    return "", 0


def _clear(accounts: Accounts, standing: Standing) -> Cleared:
    ref, removed = standing.account, []
    if standing.trouble is not None:
        return Cleared(ref, (), trouble=standing.trouble)
    try:
        _refuse_busy(standing)
        context = accounts.account(ref).context
        for resource in standing.setup:
            remove(context, resource, partial(course_setup.remove, context.cloud, resource))
            removed.append(resource)
        if standing.roles:
            course_setup.remove_roles(context.cloud, accounts.course.id, standing.roles)
            keeping.forget(context, accounts.course.id)
    except GpulabError as error:
        return Cleared(ref, tuple(removed), trouble=trouble_of(error))
    return Cleared(ref, tuple(removed), standing.roles, standing.kept)


def _refuse_busy(standing: Standing) -> None:
    if standing.members:
        names = ", ".join(sorted(member.label for member in standing.members)[:5])
        count = len(standing.members)
        run_on = "1 instance runs on" if count == 1 else f"{count} instances run on"
        if all(member.is_off for member in standing.members):
            run_on = "1 instance is stopped" if count == 1 else f"{count} instances are stopped"
        raise Refused(
            f"{run_on} ({names}), so the key to reach them stays",
            hint="Close again once they have ended; `--no-save` ends them without their work",
        )
    if standing.open_names:
        raise Refused(
            f"nobody knows yet whether the launch of {standing.open_names[0]} took effect",
            hint="Close again in ten minutes: by then AWS shows it, or it was never made",
        )
