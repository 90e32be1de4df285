"""Bad rosters, course plans, lab environments and their locks: what a teacher types or a spreadsheet writes."""

from __future__ import annotations

from pathlib import Path

from tests.fuzzing.files import emptied
from tests.fuzzing.oracle import Target, Wrong

from gpulab.bootstrap.environments import load_environment
from gpulab.course.plan import read_course
from gpulab.course.roster import read_roster
from gpulab.fleet.seats import seats_of, unreachable
from gpulab.view.course import course_json, course_text, problem_lines

_EXAMPLE = Path(__file__).parents[2] / "courses" / "02456-2017"
_SHIPPED = Path(__file__).parents[2] / "ami" / "environments"
_SECRET = b"k" * 32
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d2G6s0cGCXq9vPvYcU8k7C1Hc3m5u1rZ4sBqYw1aX a@b"
_ROSTER = (_EXAMPLE / "roster.csv").read_bytes()
_PLAN = (_EXAMPLE / "course.toml").read_bytes()
_SMALL = b"""\
[course]
id = "c"
name = "C"
timezone = "Europe/Copenhagen"
first_day = 2026-09-07
last_day = 2026-12-07
regions = ["eu-west-1"]
budget_usd = "50.00"
[accounts]
kind = "shared"
profile = "p"
[limits]
max_instances = 3
max_usd = "12.00"
[[labs]]
id = "w1"
date = 2026-09-07
until = 2026-09-08
starts = 13:00:00
ends = "17:00"
by_group = true
notebooks = { repository = "https://x.example/a", commit = "0123456789012345678901234567890123456789", folder = "w1" }
[[hand_ins]]
id = "h"
due = 2026-09-14
labs = ["w1"]
"""


def _roster(given: bytes) -> None:
    found = read_roster(given, file="roster.csv", secret=_SECRET)
    if not found.students and not found.problems and given.strip():
        pass  # a header alone is a class of nobody
    for problem in found.problems:
        if not problem.text or problem.line < 0 or problem.file != "roster.csv":
            raise Wrong(f"a problem without its place: {problem}")
    problem_lines(found.problems)
    owners = [student.owner for student in found.students]
    if len(set(owners)) != len(owners):
        raise Wrong("two students have one opaque id")
    course, _ = read_course(_SMALL, file="course.toml")
    assert course is not None
    unreachable(course, found.students, secret=_SECRET, roster_file="roster.csv")
    seats_of(course, course.labs[0], found.students, secret=_SECRET)
    course_text(course, found.students)


def _plan(given: bytes) -> None:
    course, problems = read_course(given, file="course.toml")
    if (course is None) != bool(problems):
        raise Wrong(f"{'no course' if course is None else 'a course'}, and problems {problems}")
    for problem in problems:
        if not problem.text or problem.file != "course.toml":
            raise Wrong(f"a problem without its place: {problem}")
    problem_lines(problems)
    if course is not None:
        course_text(course, ())
        course_json(course, ())


def _environment(given: bytes) -> None:
    described, _, lock = given.partition(b"\n%%\n")
    folder = emptied("environments") / "mine"
    folder.mkdir()
    (folder / "environment.toml").write_bytes(described)
    if lock:
        (folder / "cpu.lock").write_bytes(lock)
    made = load_environment("mine", (folder.parent,))
    made.cpu.compact()
    if not isinstance(made.title, str) or not isinstance(made.experimental, str):
        raise Wrong("a description that is not text")


_LOCK = (_SHIPPED / "tf2-small" / "cpu.lock").read_bytes()[:1500].rpartition(b"\n    --hash")[0]

TARGETS = (
    Target(
        "roster",
        "course",
        _roster,
        (
            _ROSTER,
            f"id;name;e-mail;account;ssh key\r\ns1;Ærø;a@x.dk;123456789012;{_KEY}\r\n".encode(
                "utf-8-sig"
            ),
            b'id\tname\temail\n"s1"\t"A ""B"""\ta@x.dk\n',
        ),
        words=(
            b"ssh_public_key",
            b"role",
            b"arn:aws:iam::123456789012:role/x",
            b'"',
            b"\xef\xbb\xbf",
        ),
    ),
    Target(
        "course-plan",
        "course",
        _plan,
        (_SMALL, _PLAN),
        words=(
            b"[[labs]]",
            b"[defaults]",
            b"0001-01-01",
            b"9999-12-31",
            b"inf",
            b"0x",
            b"'''",
            b"\\u0000",
        ),
        large=190_000,
    ),
    Target(
        "environment",
        "bootstrap",
        _environment,
        (
            b'title = "T"\nserver = "cpu"\n\n%%\n' + _LOCK,
            b'title = "T"\nbase = "tf2"\n\n%%\n' + _LOCK,
        ),
        names=("environment.toml", "cpu.lock", "environment"),
        words=(b"installed_gib", b"experimental", b"base", b"# locked-on: ", b"# download-mib: "),
    ),
)
