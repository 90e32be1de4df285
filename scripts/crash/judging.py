"""What must hold after a recovery, whatever broke: the invariants, each with a kind of its own for the report."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from crash import full_disk, work
from crash.faults import ELSEWHERE, OTHER, error_table
from crash.guests import TOKEN
from crash.plays import End, Play, live
from crash.seams import Broken
from crash.stage import Ran, Stage
from gpulab.errors import NoCapacity, NotAllowed, NotFound, NotOffered
from gpulab.launch.money.forgotten import is_guessed
from gpulab.model.fact import Fact, FactKind
from gpulab.model.timeline import InstanceLife
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import spent_between
from gpulab.store.ledger import Ledger

CODES = frozenset({0, 1, 2, 3, 4, 5, 130})
_SECRETS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|FwoGZXIvYXdzE|" + re.escape(TOKEN))
_DOUBTFUL = re.compile(r"(i-[0-9a-f]+) ended within a minute of its launch")
#: How a launch is told that was refused at place after place; what is gone is told by what stays: a snapshot in use, an instance that runs.
_EVERYWHERE_SAYS = {
    NoCapacity: ("no place had an instance free",),
    NotOffered: ("no zone sells it",),
    NotAllowed: ("the role cannot be assumed",),
    NotFound: ("not deleted", "runs on", "run on"),
}
_A_MINUTE = timedelta(minutes=1)
#: A computer whose disk is full can note nothing of what it asks AWS.
_NOTHING_WRITTEN = ("disk full", full_disk.KIND)
#: Two words of its agent may be lost, and one be under way: docs/money.md.
_GUESSED_LATE = timedelta(minutes=17)
_APART_USD = Decimal("0.002")
_APART = Decimal("0.01")


@dataclass(frozen=True)
class Violation:
    """One invariant that did not hold."""

    kind: str
    text: str


def judge(
    stage: Stage, play: Play, broken: Broken, how: str, first: Ran, after: Sequence[Ran]
) -> list[Violation]:
    """Look at everything after a recovery."""
    found = [
        *_said(first, broken, play, is_broken=True),
        *(v for ran in after for v in _said(ran, broken, play)),
        *_advice(first, broken, play),
        *_double(stage),
        *_untagged(stage),
        *_secrets(stage, [first, *after]),
    ]
    is_elsewhere = how in ELSEWHERE
    if how != "sweep":
        ends = [End(play.alive, play.done, play.again_codes)]
        if broken.kind == OTHER and play.or_else is not None:
            ends.append(play.or_else)
        tried = [_ended(stage, play, end, after, is_elsewhere=is_elsewhere) for end in ends]
        found += min(tried, key=len)
    found += _work(stage, play, is_elsewhere=is_elsewhere)
    return found


def _said(ran: Ran, broken: Broken, play: Play, *, is_broken: bool = False) -> Iterable[Violation]:
    text, words = ran.out + ran.err, " ".join(ran.words)
    if ran.is_hung:
        yield Violation("hang", f"`{words}` did not end")
        return
    if "Traceback (most" in text or "unexpected way" in text or ran.code == 70:
        yield Violation("traceback", f"`{words}`: {text[-600:]}")
        return
    if ran.code is None:
        return
    if ran.code not in CODES:
        yield Violation("exit code", f"`{words}` ended with {ran.code}: {ran.err[-300:]}")
    if ran.code not in (0, 130) and not ("error: " in ran.err and "hint: " in ran.err):
        yield Violation("advice", f"`{words}` ended with {ran.code} and no hint: {ran.err[-300:]}")
    if is_broken and broken.kind == "interrupt" and ran.code not in (0, 130, play.code):
        yield Violation(
            "exit code", f"`{words}` interrupted ended with {ran.code}: {ran.err[-300:]}"
        )


def _advice(ran: Ran, broken: Broken, play: Play) -> Iterable[Violation]:
    """The words for what broke must be those of the table, and nothing else's; a command that ends as it does unbroken need not say any."""
    if ran.code is None or ran.code in (0, play.code):
        return
    if broken.kind == "error":
        kind, says = error_table()[broken.detail]
        # A command with several parts tells each part's cause and ends with 4; a class's seat that was refused everywhere names the places.
        said = (says, *_EVERYWHERE_SAYS.get(kind, ()))
        if ran.code not in (kind.exit_code, 4) or not any(text in ran.err for text in said):
            why = f"{broken.detail} must end with {kind.exit_code} and say {says!r}"
            yield Violation("advice", f"{why}: {ran.code}, {ran.err[-300:]}")
    elif broken.kind == "expired" and "credentials" not in ran.err:
        yield Violation("advice", f"expired credentials told as: {ran.err[-300:]}")
    elif broken.kind == "clock" and "clock is 20 min" not in ran.err:
        yield Violation("advice", f"a wrong clock told as: {ran.err[-300:]}")
    elif broken.kind in ("disk full", full_disk.KIND) and not re.search(
        "No space|full|space", ran.err
    ):
        yield Violation("advice", f"a full disk told as: {ran.err[-300:]}")
    elif broken.kind not in ("interrupt", "two at once", OTHER) and ran.code == 2:
        yield Violation("advice", f"{broken.kind} told as wrong usage: {ran.err[-300:]}")


def _ended(
    stage: Stage, play: Play, end: End, after: Sequence[Ran], *, is_elsewhere: bool
) -> list[Violation]:
    """Say what is wrong if this is where it was to end."""
    problems = () if is_elsewhere and play.is_kept_here else end.done(stage)
    missing = [Violation("not done", text) for text in problems]
    return [*_recovered(stage, play, end, after), *missing]


def _recovered(stage: Stage, play: Play, end: End, after: Sequence[Ran]) -> Iterable[Violation]:
    last = [ran for ran in after if ran.words == play.words][-1]
    if last.code not in end.again_codes:
        yield Violation("not recovered", f"again ended with {last.code}: {last.err[-400:]}")
    names = Counter(i.tags.get("gpulab:name") for i in live(stage))
    if sum(names.values()) != end.alive:
        text = f"{dict(names)} alive, wanted {end.alive}"
        is_double = any(count > 1 for count in names.values())
        yield Violation("double launch" if is_double else "wrong number alive", text)


def _double(stage: Stage) -> Iterable[Violation]:
    """Never two instances of one launch at one time, and never two of one name."""
    lives: dict[str, list[tuple[object, object]]] = defaultdict(list)
    for one in stage.world.instances_by_id.values():
        lives[one.tags.get("gpulab:launch", "")].append(
            (one.launched_at, one.terminated_at or stage.world.now())
        )
    for launch, spans in lives.items():
        spans.sort()
        if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):  # type: ignore[operator]
            yield Violation("double launch", f"launch {launch or '(untagged)'} ran twice at once")


def _untagged(stage: Stage) -> Iterable[Violation]:
    there = stage.world.instances("pending", "running")
    rows = [(r["InstanceId"], r.get("Tags", [])) for r in there]
    rows += [row for ec2 in stage.clients("ec2") for row in _billable(ec2)]
    for name, tags in rows:
        keys = {t["Key"] for t in tags}
        if not keys & {"gpulab:launch", "gpulab:bake"} or "gpulab:owner" not in keys:
            yield Violation("untagged", f"{name} has {sorted(keys)}")


def _billable(ec2: Any) -> list[tuple[str, list[dict[str, str]]]]:
    """List what else may bill in an account, with its tags."""
    return [
        *((r["VolumeId"], r.get("Tags", [])) for r in ec2.describe_volumes()["Volumes"]),
        *((r["AllocationId"], r.get("Tags", [])) for r in ec2.describe_addresses()["Addresses"]),
        *(
            (r["SpotInstanceRequestId"], r.get("Tags", []))
            for r in ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
        ),
        *(
            (r["SnapshotId"], r.get("Tags", []))
            for r in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        ),
    ]


def _secrets(stage: Stage, rans: Sequence[Ran]) -> Iterable[Violation]:
    keys = [k.secret for k in stage.world.credentials.keys.values()]
    for ran in rans:
        text = ran.out + ran.err
        if _SECRETS.search(text) or any(secret in text for secret in keys):
            yield Violation("secret", f"`{' '.join(ran.words)}` printed a secret")


def _work(stage: Stage, play: Play, *, is_elsewhere: bool) -> Iterable[Violation]:
    """What stood on a machine stands on it still, or in a kept copy under its name; nobody's is another's."""
    yield from (Violation("mixed", text) for text in work.mixed(stage))
    if play.keeps_work:
        yield from (
            Violation("lost work", text) for text in work.lost(stage, is_elsewhere=is_elsewhere)
        )
        yield from (Violation("lost work", text) for text in work.versions_gone(stage))


def money(stage: Stage, accounted: Sequence[Ran], broken: Broken) -> list[Violation]:
    """
    Compare the ledger of the computer in use with the simulated bill.

    Args:
        accounted: What brought the ledger up to date. An instance of which it says that it may have cost nothing may be charged or not: AWS
            tells nobody which. Where nothing could be written when an instance was ended, the end that the ledger itself calls a guess may be
            too late, never too early.
    """
    profiles = stage.home / "profiles"
    facts = [f for path in sorted(profiles.rglob("ledger.sqlite")) for f in Ledger(path).facts()]
    reading = timeline_of(facts)
    bill = stage.world.bill()
    known = set(reading.launches)
    billed = {line.resource_id for line in bill.lines if line.kind == "instance" and line.usd}
    ours = spent_between(reading.timeline, None, stage.world.now())
    missing = billed - known
    if missing:
        usd = sum(bill.of(one) for one in missing)
        return [
            Violation("dollars unknown", f"{len(missing)} instances, ${usd:.4f}, not in the ledger")
        ]
    owners = {one: launch.owner for one, launch in reading.launches.items() if launch.owner}
    others = [
        one.id
        for one in stage.world.instances_by_id.values()
        if owners.get(one.id, one.tags.get("gpulab:owner")) != one.tags.get("gpulab:owner")
    ]
    if others:
        return [Violation("mixed", f"the ledger gives the cost of {others} to somebody else")]
    doubtful = set(_DOUBTFUL.findall("".join(ran.out + ran.err for ran in accounted)))
    doubtful |= {one.id for one in stage.world.instances_by_id.values() if _has_hardly_been(one)}
    lives = tuple(life for life in reading.timeline.instances if life.id not in doubtful)
    if broken.kind in _NOTHING_WRITTEN:
        guessed = _guessed(facts)
        lives = tuple(_sooner(life) if life.id in guessed else life for life in lives)
    surely = spent_between(replace(reading.timeline, instances=lives), None, stage.world.now())
    apart = max(surely - bill.total_usd, bill.total_usd - ours)
    if apart > _APART_USD and apart > _APART * bill.total_usd:
        return [Violation("ledger differs", f"ledger ${ours:.4f}, bill ${bill.total_usd:.4f}")]
    return []


def _guessed(facts: Sequence[Fact]) -> set[str]:
    """Name the instances of whose end the ledger has a guess only."""
    ends = [one for one in facts if one.kind is FactKind.ENDED]
    return {one.subject for one in ends} - {one.subject for one in ends if not is_guessed(one)}


def _sooner(life: InstanceLife) -> InstanceLife:
    """End an instance as much sooner as a guess may be too late."""
    *before, last = life.runs
    if last.ends_at is None:
        return life
    sooner = max(last.begins_at, last.ends_at - _GUESSED_LATE)
    return replace(life, runs=(*before, replace(last, ends_at=sooner)))


def _has_hardly_been(one: Any) -> bool:
    """Whether an instance was ended within a minute: whoever wrote that down could not know whether it ran."""
    return one.terminated_at is not None and one.terminated_at - one.launched_at < _A_MINUTE


def left_over(stage: Stage) -> list[Violation]:
    """After everybody's time is over and a sweep, nothing of ours may bill but what may hold the only copy of work."""
    found = [Violation("orphan", f"{one.id} still bills") for one in live(stage)]
    found += [
        Violation("orphan", f"{row['AllocationId']} still bills")
        for ec2 in stage.clients("ec2")
        for row in ec2.describe_addresses()["Addresses"]
    ]
    return found
