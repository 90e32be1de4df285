"""
The commands for a whole class: three students in one account, whose instances keep their work in its bucket under their own ids.

Each student's files name whose they are, so that work in a wrong place is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from crash.guest_bucket import CannotKeepError
from crash.plays import (
    NOBODY,
    End,
    Play,
    ends_agree,
    initialised,
    live,
    must,
    push_arrived,
    put_mine,
    scheduled,
)
from crash.stage import CONFIG, Stage
from crash.work import FILES, body_of, places
from gpulab.fleet.ticket import read_ticket

UP = ("fleet", "up", "w1", "--now", "--yes", "--cidr", "203.0.113.0/24")
STOP = ("fleet", "stop", "w1", "--yes")
COLLECT = ("fleet", "collect", "w1", "handed-in")
UNTIL = "2026-11-16T17:00:00Z"
STUDENTS = 3
#: Everybody's launch has taken effect then, so that a journal cut off has the most to lose.
_LAST_LAUNCH = f"aws ec2:RunInstances #{STUDENTS}"
#: Over an hour: EC2 has forgotten what ended then.
FORGOTTEN_S = 4500
COURSE = """\
[course]
id = "crash"
name = "Crash"
first_day = 2026-09-07
last_day = 2026-12-07
regions = ["us-east-1"]
[accounts]
kind = "shared"
profile = "default"
role_name = "gpulab-course"
[[labs]]
id = "w1"
date = 2026-09-07
starts = "13:00"
ends = "17:00"
environment = "tf2-small"
instance_type = "g4dn.xlarge"
"""


def plays() -> tuple[Play, ...]:
    """Every play of a class, in the order of the report."""
    course = ("course", "enrol", "templates")
    return (
        _play(
            "fleet up",
            UP,
            _class,
            STUDENTS,
            _all_keep,
            weight=2,
            rival=STOP,
            fills_disk=True,
            torn_at=_LAST_LAUNCH,
        ),
        _play("fleet up, work in the bucket", UP, _class_over, STUDENTS, has_come_back, rival=STOP),
        *while_it_runs(_play, _class_up),
        _play(
            "fleet collect, work in the bucket",
            COLLECT,
            _class_over,
            0,
            collected,
            is_done_anywhere=True,
        ),
        _play(
            "course close",
            ("course", "close", "--yes"),
            _class_partly_over,
            0,
            _is_closed,
            is_done_anywhere=True,
            rival=UP,
        ),
        _play(
            "fleet up --prune",
            (*UP, "--prune"),
            _class_that_somebody_left,
            STUDENTS - 1,
            _all_keep,
        ),
        _play(
            "fleet handout",
            ("fleet", "handout", "w1", "tickets"),
            _class_up,
            STUDENTS,
            _handed_out,
            is_done_anywhere=True,
        ),
        _play(
            "fleet collect --hand-in",
            (*COLLECT, "--hand-in", "to-grade"),
            _class_up,
            STUDENTS,
            _handed_in,
        ),
        _play(
            "course close --purge-roster",
            ("course", "close", "--purge-roster", "--yes"),
            _class_partly_over,
            0,
            _is_purged,
            is_done_anywhere=True,
        ),
        _play("course enrol", course, class_of_own_accounts, 0, _has_templates),
        Play(
            "ledger rebuild, costs in the bucket",
            ("ledger", "rebuild", "--everyone"),
            _laptop_lost,
            0,
            has_first_files=False,
            counted_by=("ledger", "rebuild", "--everyone"),
            rebuilt_by=("ledger", "rebuild", "--everyone"),
        ),
    )


def while_it_runs(play: Callable[..., Play], begin: Callable[[Stage], None]) -> tuple[Play, ...]:
    """
    Return the plays of what a teacher does to a class that is up, whoever's the accounts are.

    Args:
        play: Makes a play of a name, the words, how the stage is prepared, how many are alive at the end, and what is missing then.
        begin: Brings a class up, with work on every instance.
    """

    def with_files_to_push(stage: Stage) -> None:
        begin(stage)
        put_mine(stage)

    stopped = End(0, came_home, NOBODY)
    extend, push = ("fleet", "extend", "w1", "--until", UNTIL), ("fleet", "push", "w1", "mine")
    return (
        play("fleet stop", STOP, begin, 0, came_home, rival=COLLECT),
        play(
            "fleet collect",
            COLLECT,
            begin,
            STUDENTS,
            collected,
            rival=STOP,
            or_else=End(0, collected),
        ),
        play("fleet extend", extend, begin, STUDENTS, ends_agree, rival=STOP, or_else=stopped),
        play(
            "fleet push",
            push,
            with_files_to_push,
            STUDENTS,
            push_arrived,
            rival=STOP,
            or_else=stopped,
        ),
    )


def _play(
    name: str,
    words: tuple[str, ...],
    prepare: Any,
    alive: int,
    done: Any,
    *,
    weight: int = 1,
    is_done_anywhere: bool = False,
    rival: tuple[str, ...] = (),
    or_else: End | None = None,
    fills_disk: bool = False,
    torn_at: str = "",
) -> Play:
    return Play(
        name,
        words,
        prepare,
        alive,
        done,
        has_first_files=False,
        counted_by=("credit", "--fresh"),
        rebuilt_by=("ledger", "rebuild", "--everyone"),
        is_kept_here=not is_done_anywhere,
        has_key=True,
        needs_key=prepare in (_class_over, _class_partly_over) or done is _handed_out,
        weight=weight,
        rival=rival,
        or_else=or_else,
        fills_disk=fills_disk,
        torn_at=torn_at,
    )


# -- how the stage stands before ------------------------------------------------------------------------------------------------


def _class(stage: Stage) -> None:
    initialised(stage)
    stage.world.set_quota("L-3819A6DF", "us-east-1", 5000)
    folder = stage.home.parent / "course"
    folder.mkdir()
    (folder / "course.toml").write_text(COURSE)
    rows = [f"s{n},N{n},s{n}@student.example,," for n in range(STUDENTS)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group,account", *rows]) + "\n")


def _class_up(stage: Stage) -> None:
    """Everybody has an instance and has worked on it."""
    _class(stage)
    up_and_worked_on(stage)


def up_and_worked_on(stage: Stage, *codes: int) -> None:
    """
    Launch a class's instances and write everybody's files on them.

    Args:
        codes: Exit codes the launch may have; 0 when not given.
    """
    must(stage.run(*UP), *codes)
    stage.advance(600)
    said = json.loads(must(stage.run("fleet", "ls", "w1", "--json"), *codes).out)
    stage.labels = {one["name"]: one["label"] for one in said["members"]}
    for one in live(stage):
        guest = stage.guests.by_id[one.id]
        guest.restore()
        for path in FILES:
            guest.write(path, body_of(path, guest.name))
    stage.advance(300)


def _class_over(stage: Stage) -> None:
    """Every instance has ended by its own timer, its work is in the bucket, and EC2 has forgotten it."""
    _class_up(stage)
    stage.advance(5 * 3600 + FORGOTTEN_S)


def _class_partly_over(stage: Stage) -> None:
    """AWS has taken one instance back an hour ago and has forgotten it; the others run."""
    _class_up(stage)
    take_first_back(stage)


def take_first_back(stage: Stage) -> None:
    """Let AWS interrupt the first student's instance, and forget it."""
    first = min(live(stage), key=lambda one: str(one.tags["gpulab:name"]))
    taken_at = stage.world.now() + timedelta(seconds=120)
    stage.guests.by_id[first.id].heed_notice(taken_at)
    stage.world.interrupt(first.id)
    stage.advance(120 + FORGOTTEN_S)


def _class_that_somebody_left(stage: Stage) -> None:
    """The last of the roster has left it, while their instance runs and has work."""
    _class_up(stage)
    remove_last(stage)


def remove_last(stage: Stage) -> None:
    """Take the last student out of the roster."""
    roster = stage.home.parent / "course" / "roster.csv"
    roster.write_text("".join(roster.read_text().splitlines(keepends=True)[:-1]))


def _laptop_lost(stage: Stage) -> None:
    """A class is over and forgotten, and the computer that launched it is gone."""
    _class_over(stage)
    stage.new_computer("new-laptop", CONFIG)
    initialised(stage)


def class_of_own_accounts(stage: Stage) -> None:
    """Each student has an account of their own, in which nobody has let the course in yet."""
    _class(stage)
    folder = stage.home.parent / "course"
    own = COURSE.replace('kind = "shared"', 'kind = "own"')
    (folder / "course.toml").write_text(own)
    rows = [f"s{n},N{n},s{n}@student.example,,11110000000{n}" for n in range(STUDENTS)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group,account", *rows]) + "\n")


# -- what must be true after --------------------------------------------------------------------------------------------------


def _all_keep(stage: Stage) -> list[str]:
    """Every instance can keep its work, and whoever comes after finds whose it is."""
    problems = can_keep(stage)
    written = _seats(stage)
    for one in live(stage):
        guest = stage.guests.by_id[one.id]
        if guest.bucket is None:
            continue  # said when it was launched: the role could not be made
        if written.get(one.id) != (guest.name, guest.bucket.prefix):
            problems.append(f"{one.id} of {guest.name} is written down as {written.get(one.id)}")
    return problems


def can_keep(stage: Stage) -> list[str]:
    """Let every instance keep its work, and say which cannot."""
    problems = []
    for guest in (stage.guests.by_id[one.id] for one in live(stage)):
        try:
            if guest.bucket is not None:
                guest.save()
        except CannotKeepError as error:
            problems.append(f"{guest.name} cannot keep its work: {error}")
    return problems


def _seats(stage: Stage) -> dict[str, tuple[str, str]]:
    """Read the names and prefixes that are written down in the bucket, by instance."""
    found = {}
    for key, body in stage.objects():
        if "/.seats/" in key:
            for row in json.loads(body)["seats"]:
                found[row["instance"]] = (row["name"], row["prefix"])
    return found


def has_come_back(stage: Stage) -> list[str]:
    """What was kept before is on the instances."""
    return _all_keep(stage) + lacking(stage)


def lacking(stage: Stage) -> list[str]:
    """Say what was kept before and is not on the instance of its name."""
    problems = []
    for one in live(stage):
        guest = stage.guests.by_id[one.id]
        there = guest.files()
        missing = [path for path in FILES if there.get(path) != body_of(path, guest.name)]
        problems += [f"{guest.name} lacks {path} of before" for path in missing]
    return problems


def came_home(stage: Stage) -> list[str]:
    """What stood on an instance lies in the work folder of its name."""
    homes = [folder for folder, _ in places(stage) if folder.is_relative_to(stage.home)]
    return [
        f"not brought home: {path} of {name}"
        for name in stage.labels
        for path in FILES
        if not any(is_its_own(f / path, path, name) for f in homes if f.name == name)
    ]


def collected(stage: Stage) -> list[str]:
    """What stood on an instance lies in the folder of its student."""
    return [
        f"not collected: {path} of {label}"
        for name, label in stage.labels.items()
        for path in FILES
        if not is_its_own(stage.home.parent / "handed-in" / label / path, path, name)
    ]


def is_its_own(place: Any, path: str, name: str) -> bool:
    """Whether a file is there and is what the student of that name wrote."""
    return place.is_file() and place.read_bytes() == body_of(path, name)


def _handed_in(stage: Stage) -> list[str]:
    """Everybody's notebook lies in the folder for grading, as it was saved."""
    folder = stage.home.parent / "to-grade"
    return collected(stage) + [
        f"not handed in: the notebook of {label}"
        for name, label in stage.labels.items()
        if not is_its_own(folder / label / FILES[0], FILES[0], name)
    ]


def _handed_out(stage: Stage) -> list[str]:
    """Everybody has a ticket that opens the instance of that name, and stands on the page and in the table."""
    folder = stage.home.parent / "tickets"
    tickets = sorted(folder.glob("*.ticket"))
    problems = [] if len(tickets) == STUDENTS else [f"{len(tickets)} tickets"]
    for path in tickets:
        ticket = read_ticket(path.read_bytes(), file=path.name)
        label = stage.labels.get(ticket.name, "")
        if label not in path.name or ticket.name not in _names(stage):
            problems.append(f"{path.name} is for {ticket.name}")
    rows = _text(folder / "merge.csv").strip().splitlines()[1:]
    problems += [] if len(rows) == STUDENTS else [f"{len(rows)} rows in the table"]
    is_whole = _text(folder / "handout.html").rstrip().endswith("</html>")
    return problems + ([] if is_whole else ["the page is not whole"])


def _names(stage: Stage) -> set[str]:
    return {str(one.tags["gpulab:name"]) for one in live(stage)}


def _text(path: Path) -> str:
    return path.read_text("utf-8-sig") if path.is_file() else ""


def _is_purged(stage: Stage) -> list[str]:
    """Nobody can be told from an opaque id any more."""
    roster = stage.home.parent / "course" / "roster.csv"
    keys = [p for p in (stage.home / "courses").rglob("*key*") if p.is_file()]
    return _is_closed(stage) + [f"{path.name} is left" for path in (roster, *keys) if path.exists()]


def _is_closed(stage: Stage) -> list[str]:
    """Nothing of the course is left in the account but the kept work."""
    iam = stage.client("iam")
    roles = [row["RoleName"] for row in iam.list_roles()["Roles"]]
    profiles = [
        row["InstanceProfileName"] for row in iam.list_instance_profiles()["InstanceProfiles"]
    ]
    left = sorted(name for name in (*roles, *profiles) if "course-crash" in name)
    return [*(f"{name} is left" for name in left), *is_cleared(stage)]


def is_cleared(stage: Stage) -> list[str]:
    """Nothing that launches have set up is left in any account, and all kept work is."""
    left = set(scheduled(stage))
    for ec2 in stage.clients("ec2"):
        groups = ec2.describe_security_groups()["SecurityGroups"]
        names = [row["GroupName"] for row in groups]
        names += [row["KeyName"] for row in ec2.describe_key_pairs()["KeyPairs"]]
        left |= {name for name in names if "course-crash" in name}
    problems = [f"{name} is left" for name in sorted(left)]
    manifests = [key for key, _ in stage.objects() if key.endswith("/manifest.json")]
    written = sum(guest.bucket is not None for guest in stage.guests.by_id.values())
    if len(manifests) < written:
        problems.append(f"the kept work of {written - len(manifests)} instances is gone")
    return problems


def _has_templates(stage: Stage) -> list[str]:
    folder = stage.home.parent / "templates"
    problems = []
    for n in range(STUDENTS):
        try:
            made = json.loads((folder / f"s{n}.template.json").read_text())["Resources"]
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"the template of s{n} is not whole: {error!r}")
        else:
            problems += [] if "CourseRole" in made else [f"the template of s{n} has no role"]
    seen = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    # A killed write leaves its hidden half, which nobody takes for a template.
    extra = sum(not name.startswith(".") for name in seen) - STUDENTS
    return problems + ([f"{extra} other files lie beside the templates"] if extra > 0 else [])
