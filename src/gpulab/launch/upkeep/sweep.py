"""`gpulab sweep`: everything of ours in all enabled regions, what it costs a month, and deleting what is left over. Looks only, unless told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gpulab.aws import tagged
from gpulab.aws.regions import ask_each, enabled_regions
from gpulab.errors import AwsError, GpulabError, NotAllowed, StoreError
from gpulab.launch.account.removing import remove
from gpulab.launch.context import Context
from gpulab.launch.money.facts import record_ends
from gpulab.launch.money.planned import planned_ends
from gpulab.launch.money.rebuilding import complete, refresh
from gpulab.launch.protocol import resuming, scheduled_end
from gpulab.launch.running import keep
from gpulab.model.leftover import Kind, Leftover, Tagged
from gpulab.planning.leftovers import is_past_its_tag, sort_out

# S3 Standard, us-east-1; the kept work's figure is an estimate.
_S3_USD_PER_GIB_MONTH = Decimal("0.023")


@dataclass(frozen=True)
class Leftovers:
    """
    What was found.

    Attributes:
        found: What `apply` would delete, in that order.
        untouchable: What carries our tags and stays, each with its reason.
        unread: Regions that did not answer, and why.
    """

    found: tuple[Leftover, ...]
    untouchable: tuple[Leftover, ...]
    unread: dict[str, str]

    @property
    def usd_per_month(self) -> Decimal:
        """What all of `found` costs as it is; what has no known price is not in it."""
        return sum((item.resource.usd_per_month or Decimal(0) for item in self.found), Decimal(0))


@dataclass(frozen=True)
class Outcome:
    """What came of deleting one."""

    leftover: Leftover
    is_done: bool
    error: str = ""


def look(context: Context) -> Leftovers:
    """
    Look in every enabled region.

    Raises:
        GpulabError: No region answered.
    """
    # What cannot be settled or counted now does not keep anybody from cleaning up; in an hour EC2 forgets what has ended.
    with suppress(GpulabError):
        resuming.look_back(context)
        refresh(context, at_once=True)
    answers = ask_each(
        _regions(context),
        lambda r: tagged.in_region(context.cloud, r, owner=context.owner, now=context.now()),
    )
    resources = [r for found in answers.or_raise().values() for r in found]
    kept = _kept(context)
    story = context.journal.read()
    launches = {m.launch_id for m in story.made} | {i.launch_id for i in story.open_intents}
    over, stays = sort_out(
        [*resources, *map(_as_resource, kept)],
        known_launches=launches,
        kept_at={w.name: w.saved_at for w in kept if w.saved_at},
        now=context.now(),
        moved_to=_moved_to(context, resources),
    )
    return Leftovers(over, stays, {r: e.message for r, e in answers.failed.items()})


def apply(context: Context, found: Iterable[Leftover]) -> Iterator[Outcome]:
    """
    Delete what was found, one after the other; one that fails does not stop the rest.

    Args:
        found: From `look`; anything of another kind than it lists is refused there.
    """
    for leftover in found:
        try:
            _delete(context, leftover.resource)
        except GpulabError as error:
            yield Outcome(leftover, is_done=False, error=error.message)
        else:
            yield Outcome(leftover, is_done=True)


def _delete(context: Context, resource: Tagged) -> None:
    if resource.kind is Kind.INSTANCE:
        with suppress(GpulabError):
            complete(context, resource.region, resource.id)
    remove(context, resource, lambda: tagged.delete(context.cloud, resource))
    if resource.kind is Kind.INSTANCE:
        with suppress(StoreError):
            record_ends(context, [resource.id], at=context.now(), reason="sweep")


def _regions(context: Context) -> tuple[str, ...]:
    """Name every enabled region; where that may not be asked, those of the profile and the journal."""
    try:
        return enabled_regions(context.cloud, ask_in=context.profile.regions[0])
    except AwsError:
        made = (m.region for m in context.journal.read().made)
        return tuple(dict.fromkeys((*context.profile.regions, *made)))


def _moved_to(context: Context, resources: Iterable[Tagged]) -> dict[str, datetime | None]:
    """
    Ask the schedule and the ledger when those instances end whose time is over by their tag: an extension may not have reached the tag.

    The latest word counts; a schedule that could not be read is one that nobody knows.
    """
    late = [
        r for r in resources if r.kind is Kind.INSTANCE and is_past_its_tag(r, now=context.now())
    ]
    if not late:
        return {}
    told = planned_ends(context)
    return {r.id: _latest_end(context, r, told.get(r.id)) for r in late}


def _latest_end(context: Context, resource: Tagged, told: datetime | None) -> datetime | None:
    armed = scheduled_end.read_of(context, resource.region, resource.id, owner=context.owner)
    # Who may not look has scheduled nothing.
    if armed.error is not None and not isinstance(armed.error, NotAllowed):
        return None
    scheduled = armed.until - scheduled_end.AFTER_DEADLINE if armed.until else None
    return max(end for end in (resource.expires_at, scheduled, told) if end is not None)


def _kept(context: Context) -> tuple[keep.KeptWork, ...]:
    try:
        return keep.kept(context)
    except GpulabError:
        # Without knowing what is kept, nothing that may hold work is deleted.
        return ()


def _as_resource(work: keep.KeptWork) -> Tagged:
    gib = Decimal(work.bytes) / 2**30
    return Tagged(
        kind=Kind.KEPT_WORK,
        id=work.where,
        region="",
        name=work.name,
        launch_id="",
        created_at=None,
        usd_per_month=gib * _S3_USD_PER_GIB_MONTH if work.is_in_bucket else Decimal(0),
    )
