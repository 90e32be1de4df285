"""
Who has an instance in a lab right now, and acting on many of them at once: bounded, one outcome each, one failure never stops the rest.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from gpulab.errors import GpulabError, NotFound, StoreError, Unreachable, WrongUsage
from gpulab.fleet.plan import trouble_of
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.bookkeeping import catch_up
from gpulab.fleets.former import HINT
from gpulab.fleets.looking import live_of
from gpulab.fleets.pacing import LOOK
from gpulab.launch.context import Context
from gpulab.launch.events import WaitingFor
from gpulab.launch.running import booting
from gpulab.model.course import Lab
from gpulab.model.fleet import AccountRef, Outcome, Result, Seat
from gpulab.model.instance import Instance, State
from gpulab.remote import hostkeys

_AT_ONCE = 32
_ACCOUNTS_AT_ONCE = 16


@dataclass(frozen=True)
class Member:
    """
    One seat and its instance, or one instance that serves nobody in the roster.

    Attributes:
        seat: `None` for an extra instance.
        instance: `None` when nothing runs for the seat.
        error: Why the account could not be read; then nobody knows whether something runs.
        is_former: Whether nobody in the roster has the account any more.
    """

    account: AccountRef
    seat: Seat | None
    instance: Instance | None
    error: GpulabError | None = None
    is_former: bool = False

    @property
    def name(self) -> str:
        """The instance's name."""
        if self.seat is not None:
            return self.seat.name
        return self.instance.name if self.instance else ""

    @property
    def is_off(self) -> bool:
        """Whether its instance is stopped: nothing runs, its disk is paid for, and may hold work that nobody can save now."""
        return self.instance is not None and self.instance.state.is_off

    @property
    def label(self) -> str:
        """What the teacher calls it."""
        if self.seat is not None:
            return self.seat.label
        if self.is_former:
            whose = self.instance.owner if self.instance else self.account.title
            return f"{whose} (left)"
        return f"{self.name} (extra)"


def members(
    accounts: Accounts,
    lab: Lab,
    seats: Sequence[Seat],
    *,
    with_extras: bool,
    former: Sequence[AccountRef] = (),
) -> tuple[Member, ...]:
    """
    Look who is up: one paginated call for each account and region, and more only where the books and the account differ.

    Args:
        seats: In the order wanted.
        with_extras: Whether instances of the lab that serve nobody among the seats follow.
        former: Accounts that nobody in the roster has any more, see `fleets.former`: what runs of the lab there comes last.
    """
    refs = list({seat.account.key: seat.account for seat in seats}.values())
    every = (*refs, *former)

    def ask(ref: AccountRef) -> list[Instance] | GpulabError:
        try:
            found = live_of(accounts, ref, accounts.course.id, lab.id)
        except GpulabError as error:
            return error
        catch_up(accounts, ref, lab.id, [i.id for i in found], seats=seats)
        return found

    with ThreadPoolExecutor(min(_ACCOUNTS_AT_ONCE, max(1, len(every)))) as pool:
        said = dict(zip((ref.key for ref in every), pool.map(ask, every), strict=True))
    found = [_member(seat, said[seat.account.key]) for seat in seats]
    taken = {m.instance.id for m in found if m.instance}
    if with_extras:
        for ref in refs:
            listed = said[ref.key]
            rest = [] if isinstance(listed, GpulabError) else listed
            found += [Member(ref, None, i) for i in rest if i.id not in taken]
    return (*found, *(member for ref in former for member in _left(ref, said[ref.key])))


def each(
    accounts: Accounts,
    chosen: Sequence[Member],
    act: Callable[[Context, Member, Instance], str],
    *,
    done: Result = Result.DONE,
    may_be_off: bool = False,
) -> Iterator[Outcome]:
    """
    Act on every instance, many at once.

    Args:
        act: Called in a thread with the account's context; its text is the outcome's detail, its `GpulabError` the outcome's trouble.
        done: What a success is called.
        may_be_off: Whether it is called for a stopped instance too, whose disk is still paid for.

    Yields:
        One outcome for each member, as they come. A member without an instance has failed.
    """
    pool = ThreadPoolExecutor(min(_AT_ONCE, max(1, len(chosen))))
    try:
        waiting: dict[Future[Outcome], Member] = {
            pool.submit(_acted, accounts, m, act, done, may_be_off=may_be_off): m for m in chosen
        }
        for future in as_completed(waiting):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reached(account: Account, instance: Instance, *, may_wait: bool = True) -> Context:
    """
    Pin an instance's host key from its console where it is not pinned yet, in the account's own pace.

    Args:
        may_wait: Whether to look at the console for ten minutes, or once: who looks at a class again and again must not stand still
            while one boots.

    Raises:
        GpulabError: The console does not show it; nothing connects then.
    """
    context = account.context
    if not hostkeys.pinned(context.folder.known_hosts, instance.id):
        account.pace.bucket(instance.place.region, LOOK).take()
        for event in booting.pin(context, instance):
            if not may_wait and isinstance(event, WaitingFor):
                raise Unreachable("its console does not show its host key yet", hint=_BOOTING)
    return context


def ending_unsaved(member: Member) -> str:
    """Return the command that ends the instance of one member, and no other, without saving its work."""
    instance = member.instance
    assert instance is not None
    if member.seat is None:
        return terminating(instance)
    return f"gpulab fleet stop {shlex.quote(instance.lab)} --only {member.seat.name} --no-save"


def terminating(instance: Instance) -> str:
    """Return the command that ends an instance which serves nobody that `--only` could name."""
    its = f"--region {instance.place.region} --instance-ids {instance.id}"
    return f"aws ec2 terminate-instances {its}"


def off_hint(member: Member) -> str:
    """Say what can be done about a stopped instance."""
    unsaved = ending_unsaved(member)
    return f"Start it in the EC2 console, or `{unsaved}` ends it with what is on its disk"


_BOOTING = "A booting instance shows it within a minute or two"


def _member(seat: Seat, listed: list[Instance] | GpulabError) -> Member:
    """A seat has what runs for it; otherwise what is stopped, whose disk is paid for and may hold the student's work."""
    if isinstance(listed, GpulabError):
        return Member(seat.account, seat, None, listed)
    mine = [i for i in listed if i.name == seat.name and not i.state.is_over]
    first = min(mine, key=lambda i: (i.state.is_off, i.launched_at, i.id), default=None)
    return Member(seat.account, seat, first)


def _left(ref: AccountRef, listed: list[Instance] | GpulabError) -> list[Member]:
    if isinstance(listed, GpulabError):
        error = GpulabError(listed.message, hint=HINT, code=listed.code)
        return [Member(ref, None, None, error, is_former=True)]
    return [Member(ref, None, i, is_former=True) for i in listed if not i.state.is_over]


def _acted(
    accounts: Accounts,
    member: Member,
    act: Callable[[Context, Member, Instance], str],
    done: Result,
    *,
    may_be_off: bool,
) -> Outcome:
    try:
        if member.error is not None:
            raise member.error
        if member.instance is None:
            raise NotFound(f"{member.label} has no instance", hint="`gpulab fleet up` starts one")
        if member.instance.state is not State.RUNNING and not (member.is_off and may_be_off):
            raise NotFound(
                f"{member.label} is {member.instance.state}",
                hint=off_hint(member) if member.is_off else "Try again in a minute",
            )
        detail = act(accounts.account(member.account).context, member, member.instance)
    except (GpulabError, OSError) as error:
        if isinstance(error, OSError):
            error = StoreError(str(error))
        return Outcome(
            member.name,
            member.account,
            Result.FAILED,
            member.seat,
            member.instance,
            trouble_of(error),
        )
    return Outcome(member.name, member.account, done, member.seat, member.instance, detail=detail)


def refuse_nobody(found: Sequence[Member]) -> None:
    """
    Refuse to act on nobody.

    Raises:
        WrongUsage: There is none.
    """
    if not found:
        raise WrongUsage("that is nobody", hint="`gpulab fleet ls LAB` shows who is up")
