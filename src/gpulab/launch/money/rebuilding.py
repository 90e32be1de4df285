"""
Completing the ledger from the account: what EC2 remembers, and what the instances wrote of their own costs.

Repeatable: a fact that is known already stays as it is. Says what nobody could tell.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpulab.aws.history import PRICES_KEPT, History, history_of
from gpulab.aws.regions import ask_each
from gpulab.launch.context import Context
from gpulab.launch.money.forgotten import (
    close_forgotten,
    forgotten_prices,
    is_guessed,
    open_launches,
    region_of,
)
from gpulab.launch.money.told_costs import told_costs
from gpulab.model.fact import Fact, FactKind
from gpulab.model.instance import Instance
from gpulab.model.market import Market
from gpulab.spending.facts import LedgerReading, timeline_of
from gpulab.store.journal import Intent, Made

_REFRESHED = "ledger/refreshed"
# What lived longer was extended by commands that wrote it down; what ended is forgotten by EC2 anyway.
_LOOKED_FOR = timedelta(days=2)


@dataclass(frozen=True)
class Rebuilt:
    """
    What was found.

    Attributes:
        facts: Found in the account.
        new: Of them, not in the ledger before.
        unknown: Sentences about what nobody could tell.
    """

    facts: int
    new: int
    unknown: tuple[str, ...]


def rebuild(context: Context, regions: tuple[str, ...], *, of_everyone: bool = False) -> Rebuilt:
    """
    Read the account and the kept work, and add what the ledger lacks.

    Args:
        of_everyone: All owners of a shared account, for a teaching assistant; otherwise one's own only.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: No region answered; the first region's error.
    """
    now = context.now()
    owner = "" if of_everyone else context.owner
    answers = ask_each(
        regions, lambda region: history_of(context.cloud, region, owner=owner, now=now)
    )
    histories = answers.or_raise()
    facts = [one for history in histories.values() for one in history.facts]
    unknown = [text for history in histories.values() for text in history.unknown]
    unknown += [f"{region}: {error.message}" for region, error in answers.failed.items()]
    told = told_costs(context, of_everyone=of_everyone)
    known = {one.subject for one in context.ledger.facts(FactKind.LAUNCHED)}
    unknown += _unknown_of(told.facts, known, histories, now)
    prices, unread = forgotten_prices(context, told.facts, histories)
    facts += [*told.facts, *prices]
    new = context.ledger.append(facts)
    more, guesses = close_forgotten(context, _there(histories), owner=owner, is_heard=True)
    unknown += [f"{one.subject} is {one.details['reason']}" for one in guesses]
    unknown += [*unread, *told.problems]
    return Rebuilt(len(facts), new + more, tuple(unknown))


def recall_course(context: Context, regions: tuple[str, ...], *, course: str) -> Rebuilt:
    """
    Add what EC2 remembers of a course's instances, whoever's they are; what else the account holds is not in the course's books.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: No region answered; the first region's error.
    """
    now = context.now()
    answers = ask_each(
        regions,
        lambda region: history_of(context.cloud, region, owner="", now=now, course=course),
    )
    histories = answers.or_raise().values()
    facts = [one for history in histories for one in history.facts]
    unknown = [text for history in histories for text in history.unknown]
    unknown += [f"{region}: {error.message}" for region, error in answers.failed.items()]
    return Rebuilt(len(facts), context.ledger.append(facts), tuple(unknown))


def hear_course(
    context: Context, folder: str, regions: Container[str], *, owners: Container[str] = ()
) -> tuple[str, ...]:
    """
    Add what a course's instances wrote of their costs, also on a computer that launched none of them; those whose end is known are left out.

    Args:
        folder: The course's part of the bucket.
        regions: Where spot prices may be asked for.
        owners: Of whom any instance there is, where the account is a student's own; elsewhere each must be known, or written down.

    Returns:
        Sentences about what could not be read, or is not theirs to tell.

    Raises:
        StoreError: The ledger cannot be read or written.
    """
    facts = context.ledger.facts(FactKind.LAUNCHED, FactKind.ENDED)
    ended = {one.subject for one in facts if one.kind is FactKind.ENDED and not is_guessed(one)}
    launched = {one.subject for one in facts if one.kind is FactKind.LAUNCHED}
    told = told_costs(context, folder=folder, besides=ended & launched, owners=owners)
    prices, unread = forgotten_prices(context, told.facts, regions)
    context.ledger.append([*told.facts, *prices])
    return *told.problems, *unread


def refresh(
    context: Context, *, at_once: bool = False, is_heard: bool = False, folder: str = ""
) -> None:
    """
    Ask the account about what the ledger believes to be running, at most every ten minutes; nothing is asked when nothing is open.

    An instance that ended while this computer was off would otherwise be charged until now, and one whose launch was cut off before
    the ledger knew of it would never be.

    Args:
        at_once: Ask although it was asked a moment ago, because something is known to have ended.
        is_heard: Whether the ledger has what the instances wrote of their costs; else those that AWS has forgotten are asked.
        folder: In whose part of the bucket they are asked; one's own if empty, and a course's for what was launched for it.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: No region answered.
    """
    reading = timeline_of(context.ledger.facts())
    lacking = unwritten(context, reading)
    regions = {region_of(launch.zone) for launch in open_launches(reading)} | set(lacking.values())
    if not regions or (not at_once and not lacking and context.cache.get(_REFRESHED)):
        if is_heard:  # what was guessed before may end sooner by what was heard now
            close_forgotten(context, {}, owner="", is_heard=True)
        return
    # Whose an unwritten launch was, the journal does not say: it may be one for a class.
    now, owner = context.now(), "" if lacking else _whose(context, reading)
    histories = ask_each(
        sorted(regions),
        lambda region: history_of(context.cloud, region, owner=owner, now=now),
    ).or_raise()
    found = [one for history in histories.values() for one in history.facts]
    context.ledger.append(found if owner else _launched_here(context, reading, found))
    close_forgotten(context, _there(histories), owner=owner, is_heard=is_heard, folder=folder)
    context.cache.put(_REFRESHED, value=True, lasting=timedelta(minutes=10))


def complete(context: Context, region: str, instance_id: str) -> None:
    """
    Let the ledger know what an instance costs: one whose launch or disk nobody could write down is read from the account.

    Nothing is asked when the ledger knows both. Call it before an instance is ended: EC2 forgets it within the hour.

    Raises:
        StoreError: The ledger cannot be read or written.
        GpulabError: AWS did not answer.
    """
    known = context.ledger.facts(FactKind.LAUNCHED, FactKind.VOLUME)
    has_launch = any(one.subject == instance_id for one in known)
    if has_launch and any(one.details.get("instance_id") == instance_id for one in known):
        return
    found = history_of(context.cloud, region, owner=context.owner, now=context.now())
    context.ledger.append(found.facts)


def complete_others(context: Context, instances: Iterable[Instance]) -> None:
    """
    Let the ledger know what instances cost that were launched for others, by a command that was killed or from another computer.

    Nothing is asked when the ledger knows them all, their disks included. What else the account holds is not in our books.

    Raises:
        StoreError: The ledger cannot be read or written.
        GpulabError: AWS did not answer.
    """
    facts = context.ledger.facts(FactKind.LAUNCHED, FactKind.VOLUME)
    has_disk = {one.details.get("instance_id") for one in facts}
    known = {one.subject for one in facts if one.subject in has_disk}
    lacking: dict[str, set[str]] = {}
    for one in instances:
        if one.id not in known:
            lacking.setdefault(one.place.region, set()).add(one.id)
    for region, ids in lacking.items():
        found = history_of(context.cloud, region, owner="", now=context.now())
        context.ledger.append(_of(ids, found.facts))


def unwritten(
    context: Context, reading: LedgerReading, *, since: timedelta = timedelta(0)
) -> Mapping[str, str]:
    """
    Name the launches of these days, made or still open, that the journal knows and the ledger does not, with the region of each.

    Args:
        since: How long ago they must have been written: a command that runs now writes its own.

    Raises:
        StoreError: The journal cannot be read.
    """
    story, now = context.journal.read(), context.now()
    written = {launch.launch_id for launch in reading.launches.values()}
    unknown: list[Made | Intent] = [
        made for made in story.made if made.instance_id not in reading.launches
    ]
    unknown += [intent for intent in story.open_intents if intent.launch_id not in written]
    return {one.launch_id: one.region for one in unknown if since <= now - one.at < _LOOKED_FOR}


def _there(histories: Mapping[str, History]) -> dict[str, frozenset[str]]:
    """Name the instances, and what else they have, that each region still knows."""
    return {r: frozenset(one.subject for one in found.facts) for r, found in histories.items()}


def _whose(context: Context, reading: LedgerReading) -> str:
    """Say whose instances must be read to judge what is open: one's own, or `""` where a class was launched for others."""
    others = {launch.owner for launch in open_launches(reading)} - {"", context.owner}
    return "" if others else context.owner


def _launched_here(
    context: Context, reading: LedgerReading, found: Iterable[Fact]
) -> Iterator[Fact]:
    """Leave out what somebody else launched in a shared account: it is not in our books."""
    facts, story = list(found), context.journal.read()
    launches = {m.launch_id for m in story.made} | {i.launch_id for i in story.open_intents}
    ids = set(reading.launches) | {
        one.subject
        for one in facts
        if one.details.get("launch_id") in launches or one.details.get("owner") == context.owner
    }
    yield from _of(ids, facts)


def _of(ids: Container[str], facts: Iterable[Fact]) -> Iterator[Fact]:
    """Leave out what is of other instances; prices are anybody's."""
    for one in facts:
        if (
            one.kind is FactKind.PRICE
            or one.subject in ids
            or one.details.get("instance_id") in ids
        ):
            yield one


def _unknown_of(
    told: Iterable[Fact], known: Container[str], regions: Container[str], now: datetime
) -> Iterator[str]:
    """Say what nobody can tell any more of launches that only the instances themselves remember."""
    for one in told:
        if one.kind is not FactKind.LAUNCHED or one.subject in known:
            continue
        zone = one.details.get("zone", "")
        if region_of(zone) not in regions:
            yield f"{one.subject} ran in {zone or 'no zone'}, whose region was not asked"
        elif one.details.get("market") == Market.SPOT and now - one.at > PRICES_KEPT:
            yield f"{one.subject}: AWS has forgotten the spot prices of its time; the one of its launch is taken"
