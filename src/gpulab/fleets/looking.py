"""
Looking at every account of a lab, once: what runs, what is sold, what is allowed, what is left. A broken account is an answer.

Also settles what interrupted commands left open, as far as looking goes: nothing is launched here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from gpulab.aws import instances
from gpulab.errors import GpulabError
from gpulab.fleet.plan import View
from gpulab.fleet.seats import allowance_of
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.settling import Settled, settle
from gpulab.launch.account import images
from gpulab.launch.context import Context
from gpulab.launch.offers.look import snapshot
from gpulab.model.budget import TermBudget
from gpulab.model.course import Course
from gpulab.model.fleet import AccountRef, Seat
from gpulab.model.instance import Instance, LaunchRequest
from gpulab.model.setup import ImageChoice
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import types_for
from gpulab.spending.budget import term_budget
from gpulab.spending.facts import timeline_of
from gpulab.store.journal import Intent

_AT_ONCE = 16


@dataclass(frozen=True)
class Seen:
    """
    All accounts of a lab.

    Attributes:
        views: By account key; an error for an account that could not be looked at.
        open_intents: Launches of which nobody knows yet whether they took effect, by the instance's name.
    """

    views: Mapping[str, View | GpulabError]
    open_intents: Mapping[str, Intent]


def look(
    accounts: Accounts, request: LaunchRequest, seats: Sequence[Seat], *, may_settle: bool
) -> Seen:
    """
    Look at the accounts of some seats, many at once.

    Args:
        may_settle: Whether the journals may be written; not while another command launches this lab.
    """
    refs = list({seat.account.key: seat.account for seat in seats}.values())
    by_account = {ref.key: [s for s in seats if s.account.key == ref.key] for ref in refs}

    def ask(ref: AccountRef) -> tuple[View, Settled] | GpulabError:
        try:
            account, theirs = accounts.account(ref), by_account[ref.key]
            view, settled = _account(accounts, ref, request, theirs, may_settle=may_settle)
            return replace(view, budgets=_budgets(account, theirs, accounts.course)), settled
        except GpulabError as error:
            return error

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(refs)))) as pool:
        answers = dict(zip((ref.key for ref in refs), pool.map(ask, refs), strict=True))
    found = {key: a for key, a in answers.items() if not isinstance(a, GpulabError)}
    return Seen(
        views={k: a if isinstance(a, GpulabError) else a[0] for k, a in answers.items()},
        open_intents={i.name: i for _, settled in found.values() for i in settled.open_intents},
    )


def live_of(accounts: Accounts, ref: AccountRef, course_id: str, lab_id: str) -> list[Instance]:
    """
    List the live instances of a lab in one account: one paginated call for each region of the course.

    Raises:
        GpulabError: A region did not answer.
    """
    cloud = accounts.account(ref).context.cloud
    return [
        instance
        for region in accounts.course.regions
        for instance in instances.in_region(cloud, region, owner="").mine
        if (instance.course, instance.lab) == (course_id, lab_id)
    ]


def _account(
    accounts: Accounts,
    ref: AccountRef,
    request: LaunchRequest,
    seats: Sequence[Seat],
    *,
    may_settle: bool,
) -> tuple[View, Settled]:
    """A lone student's launch fits into the first region nearly always; a whole class may need the room of all."""
    regions = request.regions if len(seats) > 1 else request.regions[:1]
    account = accounts.account(ref)
    context = account.looking
    seen = snapshot(context, replace(request, regions=regions), is_every_region_needed=True)
    later = tuple(r for r in request.regions if r not in regions)
    elsewhere = [i for r in later for i in instances.in_region(context.cloud, r, owner="").mine]
    listed = (*seen.instances, *elsewhere)
    settled = settle(account, {seat.name for seat in seats}, listed, may_write=may_settle)
    everything = (*listed, *settled.unlisted)
    boots: tuple[ImageChoice, ...] = ()
    if _lack(request, seats, everything):
        account = accounts.find_keeping(ref) if ref.role_arn else account
        boots = _boots(account.launching(context.owner), request, regions)
    return View(replace(seen, instances=everything), regions, later, boots=boots), settled


def _lack(request: LaunchRequest, seats: Sequence[Seat], everything: Sequence[Instance]) -> bool:
    """Whether something is to be launched: a seat has no instance of the lab with its environment."""
    wanted = (request.course, request.lab, request.environment)
    up = {
        i.name
        for i in everything
        if i.state.is_alive and (i.course, i.lab, i.environment) == wanted
    }
    return any(seat.name not in up for seat in seats)


def _boots(
    context: Context, request: LaunchRequest, regions: Sequence[str]
) -> tuple[ImageChoice, ...]:
    """Choose what each region's launches boot from: one call for all of them, and none where it is remembered."""
    has_gpu = any(kind.gpus for kind in types_for(request, instance_types()))
    return tuple(images.choose(context, r, request, has_gpu=has_gpu) for r in regions)


def _budgets(account: Account, seats: Sequence[Seat], course: Course) -> dict[str, TermBudget]:
    """Compare the term's budget of each seat's students with the account's ledger; asks AWS nothing."""
    if course.budget_usd is None:
        return {}
    reading = timeline_of(account.context.ledger.facts())
    now = account.context.now()
    allowed = {seat.name: allowance_of(course, seat, seat.owner) for seat in seats}
    return {
        name: term_budget(reading, a.usd, owners=a.owners, now=now)
        for name, a in allowed.items()
        if a.usd is not None
    }
