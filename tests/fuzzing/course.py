"""Bad rosters, course plans, lab environments and their locks: what a teacher types or a spreadsheet writes. And notebooks that students hand in."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from tests.fuzzing.edits import MARK, as_json, either
from tests.fuzzing.files import emptied
from tests.fuzzing.oracle import Target, Wrong

from gpulab.bootstrap.environments import load_environment
from gpulab.course.notebook import read_notebook
from gpulab.course.plan import read_course
from gpulab.course.roster import read_roster
from gpulab.fleet.seats import seats_of, unreachable
from gpulab.store.hand_in import export
from gpulab.view.course import course_json, course_text, problem_lines
from gpulab.view.notebook import notebook_html

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


def _hand_in(given: bytes) -> None:
    """A student's notebook, as `gpulab fleet collect --pages` copies it and draws its page."""
    folder = emptied("hand-in")
    (folder / "s1").mkdir()
    (folder / "s1" / "week4.ipynb").write_bytes(given)

    def page(raw: bytes, title: str) -> str:
        return notebook_html(read_notebook(raw), title=title)

    (told,) = export(folder / "s1", folder / "pages", "s1", render=page)
    drawn = folder / "pages" / "s1" / "week4.ipynb.html"
    if told.file != "s1/week4.ipynb" or bool(told.trouble) == drawn.exists():
        raise Wrong(f"neither a page nor a reason, or both: {told}")
    if (folder / "pages" / "s1" / "week4.ipynb").read_bytes() != given:
        raise Wrong("a copy for grading that is not what was handed in")
    if drawn.exists() and _ACTIVE.search(drawn.read_text("utf-8")):
        raise Wrong("a page with something of the student's that a browser runs")


# What the page's own template never has, and the student's words only in escaped form.
_ACTIVE = re.compile(r"<(script|iframe|svg|object|embed|form|link|base)\b", re.IGNORECASE)
_PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
_HANDED_IN = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"language": "python"}, "language_info": {"name": "python"}},
    "cells": [
        {
            "cell_type": "markdown",
            "source": ["# Week 4\n", "`x`"],
            "attachments": {"a.png": {"image/png": _PNG}},
        },
        {
            "cell_type": "code",
            "execution_count": 1,
            "source": "print(1)",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": _PNG, "text/plain": "x"}},
                {
                    "output_type": "execute_result",
                    "data": {"text/html": "<b>1</b>", "text/plain": ["1"]},
                },
                {
                    "output_type": "error",
                    "ename": "E",
                    "evalue": "e",
                    "traceback": ["\x1b[31mE\x1b[0m"],
                },
            ],
        },
        {"cell_type": "raw", "source": "<script>alert(1)</script>"},
    ],
}

# Its first lines, up to the end of a package's.
_LOCK = re.split(rb"\n(?=\S)", (_SHIPPED / "tf2-small" / "cpu.lock").read_bytes()[:1500])
_LOCK_LINES = b"\n".join(_LOCK[:-1]) + b"\n"

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
        exits=(),
        names=(),
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
        exits=(),
        names=(),
    ),
    Target(
        "environment",
        "bootstrap",
        _environment,
        (
            b'title = "T"\nserver = "cpu"\n\n%%\n' + _LOCK_LINES,
            b'title = "T"\nbase = "tf2"\n\n%%\n' + _LOCK_LINES,
        ),
        words=(b"installed_gib", b"experimental", b"base", b"# locked-on: ", b"# download-mib: "),
        exits=(2,),
        names=(r"environments/mine/(environment\.toml|cpu\.lock)",),
    ),
    Target(
        "hand-in",
        "course",
        either([_HANDED_IN], _hand_in, as_json),
        (as_json(_HANDED_IN), MARK),
        exits=(),
        names=(),
        words=(b"<script>", b"text/html", b"image/jpeg", b"\\ud800", b"[[[[[[[["),
    ),
)
