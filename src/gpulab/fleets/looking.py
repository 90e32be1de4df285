"""
Looking at every account of a lab, once: what runs, what is sold, what is allowed, what is left. A broken account is an answer.

Also settles what interrupted commands left open, as far as looking goes: nothing is launched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from gpulab.aws import instances
from gpulab.errors import GpulabError
from gpulab.fleet.plan import View
from gpulab.fleets.accounts import Account, Accounts
from gpulab.fleets.settling import Settled, settle
from gpulab.launch.offers.look import snapshot
from gpulab.model.fleet import AccountRef, Seat
from gpulab.model.instance import Instance, LaunchRequest
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
    names = {seat.name for seat in seats}
    counts = {ref.key: sum(s.account.key == ref.key for s in seats) for ref in refs}

    def ask(ref: AccountRef) -> tuple[View, Settled] | GpulabError:
        try:
            return _account(
                accounts.account(ref), request, names, counts[ref.key] > 1, may_settle=may_settle
            )
        except GpulabError as error:
            return error
        finally:
            if len(refs) > _AT_ONCE:
                accounts.rest(ref)

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
    account: Account,
    request: LaunchRequest,
    names: Iterable[str],
    is_shared: bool,  # noqa: FBT001 - called once, beside its meaning
    *,
    may_settle: bool,
) -> tuple[View, Settled]:
    """A lone student's launch fits into the first region nearly always; a whole class may need the room of all."""
    regions = request.regions if is_shared else request.regions[:1]
    context = account.looking
    seen = snapshot(context, replace(request, regions=regions), is_every_region_needed=True)
    later = tuple(r for r in request.regions if r not in regions)
    elsewhere = [i for r in later for i in instances.in_region(context.cloud, r, owner="").mine]
    listed = (*seen.instances, *elsewhere)
    settled = settle(account, names, listed, may_write=may_settle)
    everything = (*listed, *settled.unlisted)
    return View(replace(seen, instances=everything), regions, later), settled
