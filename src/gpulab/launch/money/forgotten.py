"""
The ends of instances that EC2 has forgotten: from what AWS remembers for longer, from their own words, or guessed and said to be.

A guess is hardly too early, and gives way to whatever is learnt later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpulab.aws.history import spot_price_facts
from gpulab.aws.spot_ends import ends_of
from gpulab.aws.told_costs import COURSE
from gpulab.errors import GpulabError, NotAllowed
from gpulab.launch.context import Context
from gpulab.launch.money import asked_ends
from gpulab.launch.money.told_costs import told_by, told_by_themselves
from gpulab.model.fact import Fact, FactKind, Source, ended
from gpulab.model.market import Market
from gpulab.planning.catalogue import instance_types
from gpulab.spending.facts import LaunchRecord, LedgerReading, timeline_of

_SURELY_THERE = timedelta(minutes=10)
# An agent that reaches its bucket tells every five minutes how long it has run; half a minute old, and a moment on the way. Two words in
# turn may be lost where S3 refuses for some minutes: what is estimated too low is money that nobody expects.
_NEXT_WORD = timedelta(minutes=16)
# An agent that is told to go off keeps the work first, and tells what it cost.
_LAST_WORD_WITHIN = timedelta(minutes=1)


def close_forgotten(
    context: Context,
    there: Mapping[str, Container[str]],
    *,
    owner: str,
    is_heard: bool,
    folder: str = "",
) -> tuple[int, tuple[Fact, ...]]:
    """
    Close in the ledger what EC2 does not know any more: it ended when its spot request says, or as it said itself, or else soon after
    its last word, or at its planned end at the latest. What was closed by such a guess is closed sooner where a word has come to light.

    A fresh instance may be missing for some seconds, so it is left open; so is what nobody asked for, since it is another owner's.

    Args:
        there: The instances that EC2 still knows, by region; of other regions nothing is known.
        owner: Whose they are; `""` for everybody's.
        is_heard: Whether the ledger has all that instances wrote of their costs; else the forgotten ones are asked for it.
        folder: In whose part of the bucket they are asked; if empty one's own, or its course's.

    Returns:
        How many facts were new, and the guesses among them.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: AWS did not answer.
    """
    gone = _gone(context, there, owner=owner)
    told = _told_ends(context, gone)
    ids = {one.instance_id for one in gone}
    launched = [f for f in context.ledger.facts(FactKind.LAUNCHED) if f.subject in ids]
    prices, _ = forgotten_prices(context, launched, there)
    new = context.ledger.append([*told.values(), *prices])
    silent = [one.instance_id for one in gone if one.instance_id not in told]
    if not is_heard:
        if not silent:
            return new, ()
        told_now = _words_of(context, [one for one in gone if one.instance_id in silent], folder)
        new += context.ledger.append(told_now)
    facts, now = context.ledger.facts(), context.now()
    reading = timeline_of(facts)
    heard = _last_words(reading, facts)
    if not is_heard:
        # What was heard long ago is not the last word of an instance that could not be asked now.
        answered = {one.subject for one in told_now}
        heard = {one: at for one, at in heard.items() if one in answered}
    words = _Words(heard, asked_ends.noted(context))
    still_open = {one.instance_id: one for one in open_launches(reading)}
    left = [still_open[instance] for instance in silent if instance in still_open]
    guesses = (
        *(_likely_end(one, words, now) for one in left),
        *_sooner(reading, facts, words, now),
    )
    return new + context.ledger.append(guesses), guesses


def forgotten_prices(
    context: Context, launched: Iterable[Fact], regions: Container[str]
) -> tuple[list[Fact], list[str]]:
    """
    Read what spot cost from some launches on: of instances that EC2 does not show any more, nobody has looked since.

    One place for each instance, and of a type that instances alone tell of only what there is: whoever works on one can write a thousand
    places there, and each costs calls.

    Args:
        launched: Facts; other kinds and what ran in other regions are left out.

    Returns:
        The prices, and sentences about what could not be read.
    """
    since: dict[tuple[str, str], datetime] = {}
    prices: list[Fact] = []
    unread: list[str] = []
    for one in _one_each(launched):
        zone, kind = one.details.get("zone", ""), one.details.get("instance_type", "")
        if one.details.get("market") != Market.SPOT or region_of(zone) not in regions:
            continue
        if one.source is Source.AGENT and not _is_type(kind):
            unread.append(
                f"{one.subject}: its spot prices are not asked for, it is of no known type"
            )
            continue
        since[zone, kind] = min(since.get((zone, kind), one.at), one.at)
    for (zone, kind), begin in sorted(since.items()):
        try:
            prices += spot_price_facts(
                context.cloud, region_of(zone), zone, kind, begin=begin, end=context.now()
            )
        except GpulabError as error:  # an instance may call its zone what it likes
            unread.append(f"the spot prices of {kind} in {zone}: {error.message}")
    return prices, unread


def _one_each(launched: Iterable[Fact]) -> Iterable[Fact]:
    """Take one launch of each instance: the first that somebody else has seen, or else its own word of it."""
    found: dict[str, Fact] = {}
    for one in launched:
        if one.kind is FactKind.LAUNCHED:
            other = found.setdefault(one.subject, one)
            found[one.subject] = min(other, one, key=lambda f: (f.source is Source.AGENT, f.at))
    return found.values()


def _is_type(name: str) -> bool:
    return any(kind.name == name for kind in instance_types())


def open_launches(reading: LedgerReading) -> list[LaunchRecord]:
    """List what the ledger believes to be running."""
    lives = reading.timeline.instances
    return [reading.launches[i.id] for i in lives if i.runs[-1].ends_at is None]


def region_of(zone: str) -> str:
    """Return the region of a zone."""
    return zone.rstrip("abcdefghijklmnopqrstuvwxyz")


def _gone(
    context: Context, there: Mapping[str, Container[str]], *, owner: str
) -> list[LaunchRecord]:
    reading, now = timeline_of(context.ledger.facts()), context.now()
    return [
        launch
        for launch in open_launches(reading)
        if (known := there.get(region_of(launch.zone))) is not None
        and (not owner or launch.owner in ("", owner))
        and launch.instance_id not in known
        and now - launch.launched_at > _SURELY_THERE
    ]


def _sooner(
    reading: LedgerReading, facts: Iterable[Fact], words: _Words, now: datetime
) -> Iterator[Fact]:
    """Guess again where a guess is all there is, as another computer may have had to do without what is known here."""
    ends: dict[str, list[Fact]] = {}
    for one in facts:
        if one.kind is FactKind.ENDED:
            ends.setdefault(one.subject, []).append(one)
    for instance_id, found in ends.items():
        launch = reading.launches.get(instance_id)
        if launch and instance_id in words.heard and all(map(is_guessed, found)):
            likely = _likely_end(launch, words, now)
            if likely.at < min(one.at for one in found):
                yield likely


def is_guessed(one: Fact) -> bool:
    """Whether an end is a guess of ours, as AWS has forgotten it."""
    return one.source is Source.LAPTOP and one.details.get("reason", "").startswith("gone; ")


def _last_words(reading: LedgerReading, facts: Iterable[Fact]) -> dict[str, datetime]:
    """Say when those agents were heard last that would have gone on telling."""
    telling = told_by_themselves(facts)
    heard: dict[str, datetime] = {}
    for used in reading.usage:
        if used.instance_id in telling:
            heard[used.instance_id] = max(used.until, heard.get(used.instance_id, used.until))
    return heard


def _words_of(context: Context, silent: Iterable[LaunchRecord], folder: str) -> list[Fact]:
    """Ask in the bucket what instances said of their costs: a student's where the student's lie, a class's where its course's do."""
    places: dict[str, list[str]] = {}
    for launch in silent:
        place = folder or (f"{COURSE}{launch.course}" if launch.course else context.owner)
        places.setdefault(place, []).append(launch.instance_id)
    return [one for place, ids in places.items() for one in told_by(context, ids, folder=place)]


def _told_ends(context: Context, gone: Iterable[LaunchRecord]) -> dict[str, Fact]:
    """Ask what AWS remembers for longer than an instance; whoever may not ask knows no more than before."""
    ids: dict[str, list[str]] = {}
    for launch in gone:
        if launch.market is Market.SPOT:
            ids.setdefault(region_of(launch.zone), []).append(launch.instance_id)
    found: dict[str, Fact] = {}
    for region, chosen in ids.items():
        with contextlib.suppress(NotAllowed):
            found |= {end.subject: end for end in ends_of(context.cloud, region, chosen)}
    return found


@dataclass(frozen=True)
class _Words:
    """
    What is known of instances whose end is not, by id.

    Attributes:
        heard: When an agent that would have gone on telling was heard last.
        asked: When this computer asked AWS for the end.
    """

    heard: Mapping[str, datetime]
    asked: Mapping[str, datetime]


def _likely_end(launch: LaunchRecord, words: _Words, now: datetime) -> Fact:
    """
    Take an end that is hardly too early: its planned one, or the moment at which another word of its agent must have come.

    Who was asked to end and was heard no more ended then; whoever had not would have told more.
    """
    at, last = launch.expires_at or now, words.heard.get(launch.instance_id)
    asked_at = words.asked.get(launch.instance_id)
    reason = "gone; its end is not known, its planned end is taken"
    if last is not None and asked_at is not None and last <= asked_at + _LAST_WORD_WITHIN:
        at = max(last, asked_at)
        reason = f"gone; its end is not known, it was to end at {at:%Y-%m-%d %H:%M} UTC and was heard no more"
    elif last is not None and not last <= at <= last + _NEXT_WORD:
        at = last + _NEXT_WORD
        reason = (
            f"gone; its end is not known, its agent was heard last at {last:%Y-%m-%d %H:%M} UTC"
        )
    return ended(
        launch.instance_id, at=max(launch.launched_at, min(now, at)), by=None, reason=reason
    )
