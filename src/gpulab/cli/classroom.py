"""The option `--course`, and reading what it names, for `gpulab course` and `gpulab fleet`. Refuses files with problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.course import Course, Problem
    from gpulab.store.courses import Classroom

Command = TypeVar("Command", bound=Callable[..., Any])


def course_option(command: Command) -> Command:
    """Add `--course`."""
    return click.option(
        "--course",
        "course_folder",
        metavar="FOLDER",
        help="Folder of course.toml and roster.csv.  [default: $GPULAB_COURSE, else the current folder or one above]",
    )(command)


def read(context: Context, course_folder: str | None) -> Classroom:
    """
    Read the course a command is about, problems and all; a profile that was asked for stands for those its files name.

    Raises:
        WrongUsage: There is none.
    """
    from gpulab.fleet.seats import through
    from gpulab.store.courses import find_course, read_classroom

    folder = find_course(course_folder, environment=context.environment, here=Path.cwd())
    found = read_classroom(context.home, folder)
    profile = context.profile_name or context.environment.get("GPULAB_PROFILE")
    if found.course is None or not profile:
        return found
    course, students = through(found.course, found.roster.students, profile=profile)
    return replace(found, course=course, roster=replace(found.roster, students=students))


def read_sound(context: Context, course_folder: str | None) -> tuple[Classroom, Course]:
    """
    Read the course a command is about, and refuse to act on files with problems.

    Raises:
        WrongUsage: There is none, or something is wrong with it; every problem was said.
    """
    found = read(context, course_folder)
    refuse_problems(context, found.problems)
    assert found.course is not None
    return found, found.course


def refuse_problems(context: Context, problems: tuple[Problem, ...]) -> None:
    """
    Say every problem and refuse to go on.

    Raises:
        WrongUsage: There is at least one.
    """
    from gpulab.view.course import problem_lines

    if not problems:
        return
    for line in problem_lines(problems):
        context.console.say(line)
    raise WrongUsage(summary(problems), hint="Correct them; `gpulab course check` looks again")


def summary(problems: tuple[Problem, ...]) -> str:
    """Count problems by file: `2 problems in course.toml, 1 in roster.csv`."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.file] = counts.get(problem.file, 0) + 1
    parts = [f"{n:,} in {file}" for file, n in counts.items()]
    word = "problem" if len(problems) == 1 else "problems"
    first, *rest = parts
    return ", ".join([first.replace(" in ", f" {word} in ", 1), *rest])
