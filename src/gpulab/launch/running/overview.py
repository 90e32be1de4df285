"""What runs, what it costs and what it is doing, side by side. Reads AWS once, the ledger once, and each instance at most once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from gpulab.errors import GpulabError, StoreError
from gpulab.launch.context import Context
from gpulab.launch.money.budget import term_budget
from gpulab.launch.money.rebuilding import refresh
from gpulab.launch.running import browser, instances
from gpulab.model.budget import TermBudget
from gpulab.model.instance import Instance, State
from gpulab.model.status import AgentStatus
from gpulab.model.timeline import Timeline
from gpulab.spending.facts import LedgerReading, timeline_of
from gpulab.spending.forecast import burn_of, lasts_until, spent_between

# Status calls wait for a network, not for a processor.
_AT_ONCE = 16
# A list doesn't wait for one that is still starting or has lost its network; `gpulab show` is more patient with it.
_ANSWER_WITHIN_S = 4.0


@dataclass(frozen=True)
class Row:
    """
    One instance and what is known beside EC2's word.

    Attributes:
        usd_per_hour: What it costs now with disk and address; `None` when its launch is not in the ledger.
        spent_usd: Since its launch; `None` likewise.
        status: From its agent; `None` when it was not asked or did not answer.
        local_url: Where its tunnel listens on this computer; `""` without one.
        is_silent: Whether its agent was asked and did not answer in time.
    """

    instance: Instance
    usd_per_hour: Decimal | None
    spent_usd: Decimal | None
    status: AgentStatus | None
    local_url: str = ""
    is_silent: bool = False

    @property
    def deadline(self) -> datetime | None:
        """When its timer ends it: as its agent says, else as its tag says."""
        told = self.status.deadline if self.status is not None else None
        return told or self.instance.expires_at

    @property
    def budget_ends_at(self) -> datetime | None:
        """When its own budget is used up at what it costs now; `None` without one, or where its agent did not say."""
        status = self.status
        if status is None or status.budget_usd is None or status.spent_usd is None:
            return None
        if self.usd_per_hour is None:
            return None
        left = max(status.budget_usd - status.spent_usd, Decimal(0))
        return lasts_until(left, self.usd_per_hour, now=status.at)


@dataclass(frozen=True)
class Overview:
    """
    All of mine.

    Attributes:
        rows: Live instances first, each group by name.
        notes: What could not be read or is still open, so that an empty list is never taken for "nothing costs".
        budget: The term's; `None` when the profile has none.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    budget: TermBudget | None = None


def look(context: Context, *, with_ended: bool = False, ask_instances: bool = True) -> Overview:
    """
    Look at all of mine.

    Args:
        with_ended: Also what is ending or has ended, as long as EC2 remembers it: about an hour.
        ask_instances: Whether each running instance is asked what it is doing.

    Raises:
        GpulabError: No region answered.
    """
    seen = instances.listing(context, with_ended=with_ended)
    found = [i for i in seen.instances if with_ended or not i.state.is_over]
    found.sort(key=lambda i: (not i.state.is_alive, i.name, i.id))
    statuses = _statuses(context, found) if ask_instances else {}
    reading, unread = _ledger(context)
    if not seen.notes and _has_lost_some(reading, seen.instances):
        # Ended by AWS or by itself: the next report must not charge it until today.
        with contextlib.suppress(GpulabError):
            refresh(context, at_once=True)
            reading, unread = _ledger(context)
    timeline, urls = reading.timeline, browser.urls(context)
    silent = {asked for asked, status in statuses.items() if status is None}
    rows = (_row(context, i, timeline, statuses.get(i.id), urls.get(i.name, "")) for i in found)
    return Overview(
        tuple(replace(row, is_silent=row.instance.id in silent) for row in rows),
        (*seen.notes, *unread),
        term_budget(context, reading),
    )


def row(context: Context, instance: Instance, *, status: AgentStatus | None) -> Row:
    """Look at one instance whose status was read already."""
    timeline = _ledger(context)[0].timeline
    return _row(context, instance, timeline, status, browser.urls(context).get(instance.name, ""))


def _has_lost_some(reading: LedgerReading, seen: Iterable[Instance]) -> bool:
    """Whether the ledger believes something to run that EC2 does not show alive."""
    alive = {i.id for i in seen if not i.state.is_over}
    return any(
        life.id not in alive for life in reading.timeline.instances if life.runs[-1].ends_at is None
    )


def _ledger(context: Context) -> tuple[LedgerReading, tuple[str, ...]]:
    """Read the ledger; a damaged one hides what things cost, never that they run."""
    try:
        return timeline_of(context.ledger.facts()), ()
    except StoreError as error:
        note = (
            f"what it costs is not known: {error.message}; {error.hint[:1].lower()}{error.hint[1:]}"
        )
        return timeline_of(()), (note,)


def _row(
    context: Context, instance: Instance, timeline: Timeline, status: AgentStatus | None, url: str
) -> Row:
    mine = _only(timeline, instance)
    if not mine.instances:
        # Launched by another computer, or the ledger is lost: the instance itself counts too.
        return Row(instance, None, status.spent_usd if status else None, status, url)
    now = context.now()
    burn = burn_of(mine, now=now)
    spent = spent_between(mine, None, now)
    return Row(instance, burn.usd_per_hour, spent, status, url)


def _only(timeline: Timeline, instance: Instance) -> Timeline:
    return Timeline(
        tuple(life for life in timeline.instances if life.id == instance.id),
        tuple(volume for volume in timeline.volumes if volume.id in instance.volume_ids),
    )


def _statuses(context: Context, found: Iterable[Instance]) -> dict[str, AgentStatus | None]:
    """Ask the running ones, all at once; `None` for one that does not answer soon."""
    running = [i for i in found if i.state is State.RUNNING and i.address]

    def ask(instance: Instance) -> AgentStatus | None:
        try:
            return instances.status(context, instance, timeout_s=_ANSWER_WITHIN_S)
        except GpulabError:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip((i.id for i in running), pool.map(ask, running), strict=True))
