"""Cases: which there are, and playing one in a process of its own."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crash import faults, full_disk, journals
from crash.judging import Violation, judge, left_over, money
from crash.plays import NAME, UP, Play
from crash.recovering import account, recover
from crash.seams import Broken
from crash.stage import Ran, Stage

#: Where folders of cases are fastest: in memory, where there is such a place.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_LIMIT_S = 300
#: A sample up to this size has few breaks.
_FEW = 60


@dataclass(frozen=True)
class Case:
    """One break of one command, and one way back."""

    play: str
    broken: Broken
    recovery: str

    @property
    def name(self) -> str:
        """Everything about it in one line."""
        return f"{self.play}: {self.broken.kind} {self.broken.detail} at {self.broken.at}, then {self.recovery}"


@dataclass
class Result:
    """
    What came of a case.

    Attributes:
        broke: Whether the break was met at all.
        recovery_s: Simulated seconds of the way back, without the pauses of a person.
        calls: AWS calls of the whole case.
    """

    case: Case
    broke: bool
    violations: list[Violation] = field(default_factory=list)
    recovery_s: float = 0.0
    calls: int = 0


def cases_of(play: Play, boundaries: Sequence[str]) -> list[Case]:
    """Every case of a play, in order."""
    broken = [
        *faults.breaks(boundaries, has_rival=bool(play.rival)),
        *(full_disk.breaks() if play.fills_disk else ()),
    ]
    return [
        Case(play.name, one, how)
        for number, one in enumerate(broken)
        for how in faults.recoveries_of(one, number)
        if not (play.is_known_here_only and how in faults.ELSEWHERE)
    ]


def sample(cases: Sequence[Case], count: int) -> list[Case]:
    """
    Choose so many cases, the same each time, with every kind of break at every kind of boundary in turn, and every kind of AWS's errors.

    Each break comes with all its ways back, which is cheaper; in a small sample with one at first, so that it has more breaks.
    """
    chance = random.Random(7)
    table = faults.error_table()
    groups: dict[tuple[str, str, str], dict[Broken, list[Case]]] = {}
    for case in cases:
        broken = case.broken
        kind = table[broken.detail][0].__name__ if broken.kind == "error" else ""
        group = groups.setdefault((broken.kind, broken.at.split(" ")[0], kind), {})
        group.setdefault(case.broken, []).append(case)
    order = [list(groups[key].values()) for key in sorted(groups)]
    for group in order:
        chance.shuffle(group)
    chance.shuffle(order)
    turns = [ways for turn in itertools.zip_longest(*order) for ways in turn if ways]
    if count <= _FEW:
        first = [(ways, number % len(ways)) for number, ways in enumerate(turns)]
        turns = [[ways[at]] for ways, at in first]
        turns += [ways[:at] + ways[at + 1 :] for ways, at in first]
    return list(itertools.chain.from_iterable(turns))[:count]


def rehearse() -> None:
    """Play a short day in a world that is thrown away: what the simulated AWS loads at its first calls is loaded for all that follow."""
    stage = _empty_stage()
    for words in (("init", "--yes"), UP, ("sweep",), ("stop", NAME)):
        stage.run(*words)
    stage.close()


def make_stage(play: Play) -> Stage:
    """Bring a stage to where a play begins; the caller closes it."""
    stage = _empty_stage(has_first_files=play.has_first_files)
    play.prepare(stage)
    return stage


def _empty_stage(*, has_first_files: bool = True) -> Stage:
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir=_MEMORY if _MEMORY.is_dir() else None))
    stage = Stage(folder, has_first_files=has_first_files)
    stage.new_computer("laptop")
    return stage


def record(stage: Stage, play: Play) -> tuple[list[str], int]:
    """
    Play it once without a break.

    Returns:
        The boundaries it crosses, in order, and its AWS calls.

    Raises:
        RuntimeError: It does not even succeed unbroken.
    """

    def good(own: Stage) -> Any:
        play.first(own)
        own.is_recording = True
        ran = own.run(*play.words)
        problems = play.done(own) + [
            v.text for v in judge(own, play, Broken("none"), "again", ran, [ran])
        ]
        problems += [ran.err] if ran.code != play.code else []
        return {"boundaries": ran.boundaries, "calls": ran.calls, "problems": problems}

    said = act(stage, good)
    if said.get("problems") or "boundaries" not in said:
        raise RuntimeError(f"{play.name} fails unbroken: {said}")
    return said["boundaries"], said["calls"]


def play_all(
    stage: Stage, play: Play, cases: Iterable[Case], *, jobs: int, until: float | None = None
) -> Iterator[Result]:
    """
    Play cases, so many at once, each in a fork of the stage; results come as they end.

    Args:
        until: No further one begins after this moment of the monotonic clock.
    """
    gc.collect()
    gc.freeze()
    groups = [list(group) for _, group in itertools.groupby(cases, lambda case: case.broken)]
    if stage.sandboxes is not None:  # which cannot be copied
        groups = [[case] for group in groups for case in group]

    def one(group: Sequence[Case]) -> Any:
        return lambda own: _play_group(own, play, group)

    doings = (one(group) for group in groups if until is None or time.monotonic() < until)
    for number, said in act_all(stage, doings, jobs=jobs):
        each = said.get("results") or [said] * len(groups[number])
        yield from map(_result, groups[number], each)


def act(stage: Stage, doing: Any) -> dict[str, Any]:
    """Do something in a fork of the stage, and return what it says."""
    return next(act_all(stage, [doing], jobs=1))[1]


def act_all(
    stage: Stage, doings: Iterable[Any], *, jobs: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Do things in forks of the stage, so many at once; the number of each and what it says come as they end."""
    waiting, running = iter(enumerate(doings)), dict[int, tuple[int, int]]()
    while True:
        while len(running) < jobs and (following := next(waiting, None)) is not None:
            number, doing = following
            pid, pipe = _fork(stage, doing)
            running[pid] = (number, pipe)
        if not running:
            return
        pid, _ = os.wait()
        if pid in running:
            number, pipe = running.pop(pid)
            yield number, _read(pipe)


def _play_group(stage: Stage, play: Play, cases: Sequence[Case]) -> dict[str, Any]:
    """Break the command once, and go every way back from there, each in a fork of its own unless it is the only one."""
    broken = cases[0].broken
    play.first(stage)
    if broken.kind == "two at once":
        stage.rival = play.words
    elif broken.kind == faults.OTHER:
        stage.rival = play.rival
    skew = float(broken.detail) if broken.kind == "clock" else 0.0
    if broken.kind == full_disk.KIND:
        full_disk.fill(stage, int(broken.detail))
    first = stage.run(*play.words, broken=broken, skew_minutes=skew)
    if broken.kind == full_disk.KIND:
        full_disk.make_room(stage)
    if broken.kind == journals.KIND:
        journals.tear(stage, int(broken.detail))
    if len(cases) == 1:
        return {"results": [_way_back(stage, play, cases[0], first)]}

    def one(case: Case) -> Any:
        return lambda own: _way_back(own, play, case, first)

    return {"results": [act(stage, one(case)) for case in cases]}


def _way_back(stage: Stage, play: Play, case: Case, first: Ran) -> dict[str, Any]:
    try:
        return _judged(stage, play, case, first)
    except Exception:
        return {"failed": traceback.format_exc()}


def _judged(stage: Stage, play: Play, case: Case, first: Ran) -> dict[str, Any]:
    broken = case.broken
    after = recover(stage, play, case.recovery)
    violations = judge(stage, play, broken, case.recovery, first, [*stage.rivals, *after])
    spent = account(stage, play, case.recovery)
    violations += money(stage, spent, broken) if play.counted_by else []
    if case.recovery == "sweep":
        violations += left_over(stage)
    return {
        "broke": broken.kind in ("clock", full_disk.KIND) or stage.was_broken,
        "violations": [asdict(v) for v in violations],
        "recovery_s": sum(ran.seconds for ran in after),
        "calls": first.calls + sum(ran.calls for ran in (*after, *spent)),
    }


def _fork(stage: Stage, act: Any) -> tuple[int, int]:
    """Do something in a fork, on a copy of the stage's folders; what it returns comes through the pipe."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    os.close(ours)
    said: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=stage.base))
    try:
        signal.alarm(_LIMIT_S)
        stage.move(folder)
        said = act(stage)
    except BaseException:
        said = {"failed": traceback.format_exc()}
    finally:
        if stage.sandboxes is not None:
            stage.sandboxes.end(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with os.fdopen(theirs, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)


def _read(pipe: int) -> dict[str, Any]:
    with os.fdopen(pipe) as file:
        text = file.read()
    return dict(json.loads(text)) if text else {"failed": "the case's process died"}


def _result(case: Case, said: dict[str, Any]) -> Result:
    if "failed" in said:
        return Result(case, broke=True, violations=[Violation("harness", said["failed"][-1500:])])
    violations = [Violation(**v) for v in said["violations"]]
    return Result(case, said["broke"], violations, said["recovery_s"], said["calls"])
