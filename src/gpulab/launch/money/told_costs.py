"""
What instances wrote of their own costs: in the account's bucket, and beside the work that was fetched to this computer.

Refuses to believe an instance about anything but itself: whoever works on one can write what they like there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.aws import workspace
from gpulab.aws.workspace import Bucket
from gpulab.errors import GpulabError, NotAllowed, WrongUsage
from gpulab.launch.account.storage import our_bucket
from gpulab.launch.context import Context
from gpulab.model.fact import Fact, FactKind, Source, root_disk_of
from gpulab.store.fact_lines import import_lines

# Where an instance without a bucket writes them, below the work folder.
_IN_WORK = ".gpulab/ledger"
_AT_ONCE = 8
# A year of an instance that is started every day has some two hundred kilobytes.
_MOST_BYTES = 1 << 20
_ITS_OWN = frozenset(
    {
        FactKind.LAUNCHED,
        FactKind.STARTED,
        FactKind.VOLUME,
        FactKind.ADDRESS,
        FactKind.USAGE,
        FactKind.ENDED,
    }
)
# Clocks of instances are compared with AWS's; this computer's is not.
_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True)
class Told:
    """
    What instances told.

    Attributes:
        problems: Sentences about what could not be read, or is not theirs to tell.
    """

    facts: tuple[Fact, ...]
    problems: tuple[str, ...]


def told_costs(context: Context, *, of_everyone: bool = False) -> Told:
    """
    Read everything that instances wrote of their costs; what cannot be read is named, and the rest counts.

    Args:
        of_everyone: All owners of a shared account's bucket, otherwise one's own instances only.
    """
    facts: list[Fact] = []
    problems: list[str] = []
    try:
        for whose, name, content in _contents(context, of_everyone=of_everyone, problems=problems):
            found, wrong = _lines(content, name)
            own = [one for one in found if _is_own(one, name.removesuffix(".jsonl"), whose)]
            likely = [one for one in own if not _is_ahead(one, context.now())]
            facts += likely
            problems += wrong
            if len(likely) < len(found):
                problems.append(
                    f"{name}: {len(found) - len(likely)} facts are not of this instance, or cannot be; they are left out"
                )
    except (GpulabError, OSError) as error:
        problems.append(f"what instances wrote of their costs could not be read: {error}")
    return Told(tuple(facts), tuple(problems))


def _contents(
    context: Context, *, of_everyone: bool, problems: list[str]
) -> Iterator[tuple[str, str, bytes]]:
    """Give the owner, the file's name and what is in it."""
    for path in sorted(context.folder.work.glob(f"*/{_IN_WORK}/*.jsonl")):
        yield context.owner, path.name, _head(path)
    if not context.profile.keep_bucket:
        return
    bucket = our_bucket(context)
    for owner in _owners(context, bucket, problems) if of_everyone else (context.owner,):
        listed = workspace.told_costs(context.cloud, bucket, owner=owner)
        small = [one for one in listed if one.size_bytes <= _MOST_BYTES]
        problems += [
            f"{one.key} has {one.size_bytes:,} bytes, which no instance writes; it is left out"
            for one in listed
            if one.size_bytes > _MOST_BYTES
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            bodies = pool.map(lambda one: workspace.read_costs(context.cloud, bucket, one), small)
            for one, body in zip(small, bodies, strict=True):
                yield owner, f"{one.instance_id}.jsonl", body


def _owners(context: Context, bucket: Bucket, problems: list[str]) -> tuple[str, ...]:
    try:
        return workspace.owners(context.cloud, bucket)
    except NotAllowed as error:
        problems.append(f"what others' instances wrote of their costs: {error.message}")
        return (context.owner,)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES)


def _lines(content: bytes, name: str) -> tuple[list[Fact], list[str]]:
    """Read line by line: one that a full disk has cut short does not take the others with it."""
    facts: list[Fact] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            facts += import_lines(line)
        except WrongUsage as error:
            problems.append(f"{name}: {error.message.replace('line 1', f'line {number}', 1)}")
    return facts, problems


def _is_own(one: Fact, instance_id: str, owner: str) -> bool:
    """Whether a fact is about the instance that tells it, in its owner's name."""
    return (
        one.source is Source.AGENT
        and one.kind in _ITS_OWN
        and one.subject in (instance_id, root_disk_of(instance_id))
        and one.details.get("owner", "") in ("", owner)
    )


def _is_ahead(one: Fact, now: datetime) -> bool:
    """Whether it tells of more time than has passed."""
    seconds = one.details.get("seconds", "0") if one.kind is FactKind.USAGE else "0"
    if not seconds.isdecimal() or len(seconds) > 9:
        return True
    return one.at + timedelta(seconds=int(seconds)) > now + _CLOCKS_DIFFER


def told_by_themselves(facts: Iterable[Fact]) -> frozenset[str]:
    """Name the instances whose agents told what they cost, and so go on telling as long as they live."""
    return frozenset(
        one.subject for one in facts if one.kind is FactKind.LAUNCHED and one.source is Source.AGENT
    )
