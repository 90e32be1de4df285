"""
Completing the ledger from the account: what EC2 remembers, and what the instances left beside the kept work.

Repeatable: a fact that is known already stays as it is. Says what nobody could tell.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.history import History, history_of
from gpulab.aws.regions import ask_each
from gpulab.aws.spot_ends import ends_of
from gpulab.errors import GpulabError, NotAllowed, WrongUsage
from gpulab.launch.account.storage import our_bucket, prefix
from gpulab.launch.context import Context
from gpulab.model.fact import Fact, FactKind, Source, ended
from gpulab.model.market import Market
from gpulab.spending.facts import LaunchRecord, LedgerReading, timeline_of
from gpulab.store.fact_lines import import_lines

# Where the agent writes its facts, below the work folder.
_AGENTS_FACTS = ".gpulab/ledger/"
_REFRESHED = "ledger/refreshed"
_SURELY_THERE = timedelta(minutes=10)
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
    kept, problems = _kept_facts(context)
    new = context.ledger.append([*facts, *kept])
    gone = _gone(context, histories, owner=owner)
    new += context.ledger.append(gone)
    unknown += [
        f"{one.subject} is gone; its planned end is taken for its end"
        for one in gone
        if one.source is not Source.AWS
    ]
    return Rebuilt(len(facts) + len(kept), new, (*unknown, *problems))


def refresh(context: Context, *, at_once: bool = False) -> None:
    """
    Ask the account about what the ledger believes to be running, at most every ten minutes; nothing is asked when nothing is open.

    An instance that ended while this computer was off would otherwise be charged until now, and one whose launch was cut off before
    the ledger knew of it would never be.

    Args:
        at_once: Ask although it was asked a moment ago, because something is known to have ended.

    Raises:
        StoreError: The ledger cannot be written.
        GpulabError: No region answered.
    """
    reading = timeline_of(context.ledger.facts())
    unwritten = _unwritten(context, reading)
    regions = {_region(launch.zone) for launch in _open(reading)} | unwritten
    if not regions or (not at_once and not unwritten and context.cache.get(_REFRESHED)):
        return
    now, owner = context.now(), _whose(context, reading)
    histories = ask_each(
        sorted(regions),
        lambda region: history_of(context.cloud, region, owner=owner, now=now),
    ).or_raise()
    found = [one for history in histories.values() for one in history.facts]
    context.ledger.append(found if owner else _launched_here(context, reading, found))
    context.ledger.append(_gone(context, histories, owner=owner))
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


def _unwritten(context: Context, reading: LedgerReading) -> set[str]:
    """Name the regions where the journal knows a launch of these days, made or still open, that the ledger does not."""
    story, now = context.journal.read(), context.now()
    unknown = [(m.region, m.at) for m in story.made if m.instance_id not in reading.launches]
    unknown += [(intent.region, intent.at) for intent in story.open_intents]
    return {region for region, at in unknown if now - at < _LOOKED_FOR}


def _open(reading: LedgerReading) -> list[LaunchRecord]:
    lives = reading.timeline.instances
    return [reading.launches[i.id] for i in lives if i.runs[-1].ends_at is None]


def _region(zone: str) -> str:
    return zone.rstrip("abcdefghijklmnopqrstuvwxyz")


def _whose(context: Context, reading: LedgerReading) -> str:
    """Say whose instances must be read to judge what is open: one's own, or `""` where a class was launched for others."""
    others = {launch.owner for launch in _open(reading)} - {"", context.owner}
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
    for one in facts:
        if (
            one.kind is FactKind.PRICE
            or one.subject in ids
            or one.details.get("instance_id") in ids
        ):
            yield one


def _gone(context: Context, histories: Mapping[str, History], *, owner: str) -> list[Fact]:
    """
    Close what EC2 does not know any more: it ended when its spot request says, or else at its planned end at the latest.

    A fresh instance may be missing for some seconds, so it is left open; so is what nobody asked for, since it is another owner's.
    """
    now = context.now()
    there = {fact.subject for history in histories.values() for fact in history.facts}
    gone = [
        launch
        for launch in _open(timeline_of(context.ledger.facts()))
        if _region(launch.zone) in histories
        and (not owner or launch.owner in ("", owner))
        and launch.instance_id not in there
        and now - launch.launched_at > _SURELY_THERE
    ]
    told = _told_ends(context, gone)
    return [told.get(launch.instance_id) or _planned_end(launch, now) for launch in gone]


def _told_ends(context: Context, gone: Iterable[LaunchRecord]) -> dict[str, Fact]:
    """Ask what AWS remembers for longer than an instance; whoever may not ask knows no more than before."""
    ids: dict[str, list[str]] = {}
    for launch in gone:
        if launch.market is Market.SPOT:
            ids.setdefault(_region(launch.zone), []).append(launch.instance_id)
    found: dict[str, Fact] = {}
    for region, chosen in ids.items():
        with contextlib.suppress(NotAllowed):
            found |= {end.subject: end for end in ends_of(context.cloud, region, chosen)}
    return found


def _planned_end(launch: LaunchRecord, now: datetime) -> Fact:
    return ended(
        launch.instance_id,
        at=max(launch.launched_at, min(now, launch.expires_at or now)),
        by=None,
        reason="gone; its end is not known, its planned end is taken",
    )


def _kept_facts(context: Context) -> tuple[list[Fact], list[str]]:
    """Read what the agents wrote; a file that cannot be read is named, and the rest counts."""
    facts: list[Fact] = []
    problems: list[str] = []
    try:
        for path in _agents_files(context):
            try:
                facts += import_lines(path.read_bytes())
            except WrongUsage as error:
                problems.append(f"{path.name}: {error.message}")
    except (GpulabError, OSError) as error:
        problems.append(f"the kept work could not be read: {error}")
    return facts, problems


def _agents_files(context: Context) -> Iterator[Path]:
    yield from sorted(context.folder.work.glob(f"*/{_AGENTS_FACTS}*.jsonl"))
    if not context.profile.keep_bucket:
        return
    bucket = our_bucket(context)
    with tempfile.TemporaryDirectory() as folder:
        for name in workspace.names(context.cloud, bucket, owner=context.owner):
            manifest = workspace.read_manifest(context.cloud, bucket, prefix(context, name))
            files = manifest.files if manifest else ()
            for number, file in enumerate(f for f in files if f.path.startswith(_AGENTS_FACTS)):
                place = Path(folder) / f"{number}.jsonl"
                workspace.download(context.cloud, bucket, file, place)
                yield place
