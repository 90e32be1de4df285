"""
What instances wrote of their own costs: in the account's bucket, and beside the work that was fetched to this computer.

Refuses to believe an instance about anything but itself: whoever works on one can write what they like there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpulab.aws import told_costs as told
from gpulab.aws.told_costs import MOST_BYTES, ToldCosts
from gpulab.aws.workspace import Bucket
from gpulab.errors import GpulabError, NotAllowed, NotFound, WrongUsage
from gpulab.launch.account.storage import our_bucket
from gpulab.launch.context import Context
from gpulab.launch.money.whose import Served, Whose
from gpulab.model.fact import Fact, FactKind, Source, root_disk_of
from gpulab.store.fact_lines import import_lines

# Where an instance without a bucket writes them, below the work folder.
_IN_WORK = ".gpulab/ledger"
_AT_ONCE = 8
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
# A full disk cuts one line short; a file of such lines is no agent's.
_MOST_WRONG = 9
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


def told_costs(
    context: Context,
    *,
    folder: str = "",
    of_everyone: bool = False,
    besides: Container[str] = frozenset(),
    owners: Container[str] = (),
) -> Told:
    """
    Read everything that instances wrote of their costs; what cannot be read is named, and the rest counts.

    Args:
        folder: Whose part of the bucket; one's own if empty.
        of_everyone: All students and courses of a shared account's bucket instead.
        besides: Instances of which enough is known.
        owners: Of whom any instance of the course is, where its account is a student's own.

    Raises:
        StoreError: The ledger cannot be read.
    """
    mine = folder or context.owner
    facts: list[Fact] = []
    problems: list[str] = []
    whose = Whose(context, owners=owners)
    with _going_on(problems):
        for path in _fetched(context, mine, whose, problems):
            with _going_on(problems):
                one = told.by_id(mine, path.stem)
                _sort(context, one, _head(path), facts, problems, served=whose.of(one))
    with _going_on(problems):
        if context.profile.keep_bucket:
            bucket = our_bucket(context)
            folders = _folders(context, bucket, problems) if of_everyone else (mine,)
            for one, content in _objects(context, bucket, folders, besides, problems):
                _sort(context, one, content, facts, problems, served=whose.of(one))
    return Told(tuple(facts), (*problems, *whose.problems))


def told_by(
    context: Context, instance_ids: Collection[str], *, folder: str = ""
) -> tuple[Fact, ...]:
    """
    Read what some instances wrote into the bucket; of what is not there, may not be read or is not theirs to tell, nothing.

    Args:
        folder: Whose part of the bucket; one's own if empty.
    """
    if not context.profile.keep_bucket:
        return ()
    mine = folder or context.owner
    bucket, found, whose = our_bucket(context), list[Fact](), Whose(context)
    if mine.startswith(told.COURSE):
        listed: tuple[ToldCosts, ...] = ()
        with contextlib.suppress(GpulabError):
            listed = told.listing(context.cloud, bucket, mine)
        chosen = [one for one in listed if one.instance_id in instance_ids]
    else:
        chosen = [told.by_id(mine, instance_id) for instance_id in instance_ids]
    for one in chosen:
        content, _ = _read(context, bucket, one)
        _sort(context, one, content, found, [], served=whose.of(one))
    return tuple(found)


@contextlib.contextmanager
def _going_on(problems: list[str]) -> Iterator[None]:
    """Name what cannot be read and go on: one file of one student must not hide what all others wrote."""
    try:
        yield
    except (GpulabError, OSError) as error:
        problems.append(f"what instances wrote of their costs could not be read: {error}")


def _fetched(context: Context, mine: str, whose: Whose, problems: list[str]) -> Iterator[Path]:
    """
    Name what lies in the work that came to this computer, of the instances whose work it is.

    A class's teacher has everybody's here, and a file of one student may bear the id of another's instance, or of none.
    """
    for path in sorted(context.folder.work.glob(f"*/{_IN_WORK}/*.jsonl")):
        name = path.relative_to(context.folder.work).parts[0]
        one = told.by_id(mine, path.stem)
        served = whose.of(one)
        is_another_s = served is None and whose.owner_of(name) not in ("", mine)
        if is_another_s or (served is not None and served.name not in ("", name)):
            problems.append(f"{path.name} in the work of {name} is not its own; it is left out")
        elif not path.is_file():
            problems.append(f"{path.name} in the work of {name} is no file; it is left out")
        else:
            yield path


def _objects(
    context: Context,
    bucket: Bucket,
    folders: Iterable[str],
    besides: Container[str],
    problems: list[str],
) -> Iterator[tuple[ToldCosts, bytes]]:
    for folder in folders:
        found: tuple[ToldCosts, ...] = ()
        with _going_on(problems):
            found = told.listing(context.cloud, bucket, folder)
        listed = [one for one in found if one.instance_id not in besides]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = pool.map(lambda one: _read(context, bucket, one), listed)
            for one, (content, problem) in zip(listed, read, strict=True):
                problems += [problem] if problem else []
                yield one, content


def _folders(context: Context, bucket: Bucket, problems: list[str]) -> tuple[str, ...]:
    try:
        return told.folders(context.cloud, bucket)
    except NotAllowed as error:
        problems.append(f"what others' instances wrote of their costs: {error.message}")
        return (context.owner,)


def _read(context: Context, bucket: Bucket, one: ToldCosts) -> tuple[bytes, str]:
    """Read one object; of one that is not there, nothing is missing."""
    try:
        return told.read(context.cloud, bucket, one), ""
    except NotFound:
        return b"", ""
    except GpulabError as error:
        return b"", f"{one.instance_id}.jsonl: {error.message}"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def _sort(
    context: Context,
    one: ToldCosts,
    content: bytes,
    facts: list[Fact],
    problems: list[str],
    *,
    served: Served | None = None,
) -> None:
    """
    Take what an instance may tell; one line that a full disk has cut short does not take the others with it.

    Args:
        served: Whom it serves, by another word than its own; an instance of a course of which nobody knows it is not heard.
    """
    if content and one.is_of_course and served is None:
        text = "nobody has written down whose instance it was; it is left out"
        problems.append(f"{one.instance_id}.jsonl: {text}")
        return
    wrong: list[str] = []
    strange = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            found = import_lines(line)
        except WrongUsage as error:
            wrong.append(error.message.replace("line 1", f"line {number}", 1))
            if len(wrong) == _MOST_WRONG:
                break
            continue
        likely = [x for x in found if _is_own(x, one, served) and not _is_ahead(x, context.now())]
        facts += likely
        strange += len(found) - len(likely)
    name = f"{one.instance_id}.jsonl"
    if wrong:
        rest = "; the rest is not read" if len(wrong) == _MOST_WRONG else ""
        problems.append(f"{name}: {wrong[0]}{rest}")
    if strange:
        text = f"{strange:,} facts are not of this instance, or cannot be; they are left out"
        problems.append(f"{name}: {text}")


def _is_own(fact: Fact, one: ToldCosts, served: Served | None) -> bool:
    """Whether a fact is about the instance that tells it, in its owner's name and of its own time."""
    owner, is_launch = fact.details.get("owner", ""), fact.kind is FactKind.LAUNCHED
    if one.is_of_course:
        is_owner_s = served is not None and (owner in served.owners or not (owner or is_launch))
    else:
        is_owner_s = owner in ("", one.folder)
    since = served.since if served else None
    return (
        is_owner_s
        and (since is None or fact.at >= since - _CLOCKS_DIFFER)
        and fact.source is Source.AGENT
        and fact.kind in _ITS_OWN
        and fact.subject in (one.instance_id, root_disk_of(one.instance_id))
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
