"""`gpulab course close`: the end of a term. Parses, calls, shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli import classroom
from gpulab.cli.classroom import course_option
from gpulab.cli.fleet_options import open_accounts
from gpulab.cli.options import json_option, yes_option
from gpulab.errors import SomeFailed

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.fleets.accounts import Accounts
    from gpulab.fleets.closing import Cleared, Standing
    from gpulab.model.course import Course
    from gpulab.model.fleet import AccountRef, Outcome
    from gpulab.store.courses import Classroom


@click.command(short_help="End the term: save, end, report, and remove what was set up.")
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the final report goes.  [default: closed/ in the course's folder]",
)
@click.option("--no-save", is_flag=True, help="Do not save; what was not kept before is lost.")
@click.option(
    "--purge-roster",
    is_flag=True,
    help="Delete the roster and the key of its opaque ids, once everything else is done.",
)
@click.option("--dry-run", is_flag=True, help="Show what is left and what would go; do nothing.")
@yes_option
@course_option
@json_option
@click.pass_obj
def close(
    context: Context,
    report_folder: Path | None,
    no_save: bool,
    purge_roster: bool,
    dry_run: bool,
    yes: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    End the term: save and end everything, write the final report, remove keys, groups, schedules and the course's roles.

    It asks first, and can be run again after anything: it goes on where it stopped. Saved work and the ledgers stay. Exits with 4 while
    something could not be ended or removed.

    \b
    Example:
      gpulab course close --dry-run
      gpulab course close
      gpulab course close --purge-roster
    """
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets import books, closing
    from gpulab.view.closing import question, standing_text

    if _was_purged(context, course_folder):
        return
    found, course = classroom.read_sound(context, course_folder)
    accounts = open_accounts(context, course)
    students = found.roster.students
    refs, left = books.accounts_of(accounts, students, secret=found.secret)
    seats = [s for lab in course.labs for s in seats_of(course, lab, students, secret=found.secret)]
    with contextlib.ExitStack() as locks:
        for held in _locks(accounts, course):
            locks.enter_context(held)
        with context.console.step(f"look at {len(refs) + len(left):,} accounts"):
            standing = closing.look(accounts, refs, seats, former=left)
        if not (purge_roster or as_json) and _is_still_closed(context, course, standing):
            return
        context.console.say(standing_text(course, standing, now=context.now()))
        if dry_run:
            context.console.say("Nothing was changed (`--dry-run`)")
            return
        if not yes and not context.console.confirm(question(standing, save=not no_save)):
            context.console.say("Nothing was changed")
            return
        outcomes = _end(context, accounts, standing, save=not no_save)
        if outcomes:
            standing = closing.look(accounts, refs, seats, former=left)
        cleared = tuple(closing.clear(accounts, standing))
        into = report_folder or found.folder / "closed"
        written = _report(context, accounts, found, (*refs, *left), into)
    is_done = not any(one.trouble for one in cleared)
    is_purged = is_done and _finish(context, found, course, purge=purge_roster, yes=yes)
    _tell(context, accounts, outcomes, cleared, written, is_purged=is_purged, as_json=as_json)
    if not is_done:
        failed = sum(one.trouble is not None for one in cleared)
        raise SomeFailed(
            f"{course.id} is not closed yet: something is left in {failed:,} of {len(cleared):,} accounts",
            hint="Each cause is named above, with what to do; close again afterwards",
        )


def _was_purged(context: Context, course_folder: str | None) -> bool:
    """Whether the course was closed and its roster deleted: then there is nothing left to look for; end what a kill left half done."""
    from gpulab.store import closing
    from gpulab.store.courses import ROSTER_FILE, course_id_of, find_course

    folder = find_course(course_folder, environment=context.environment, here=Path.cwd())
    course_id = course_id_of(folder)
    known = closing.closed(context.home, course_id) if course_id else None
    if known is None or not known.is_purged or (folder / ROSTER_FILE).exists():
        return False
    closing.purge(context.home, course_id, folder)
    context.console.say(
        f"{course_id} was closed {known.at:%Y-%m-%d %H:%M} UTC, and its roster deleted; nothing is left to do"
    )
    return True


def _is_still_closed(context: Context, course: Course, standing: Sequence[Standing]) -> bool:
    """Whether the course was closed before and nothing has come since: then say when, and that is all."""
    from gpulab.store import closing

    known = closing.closed(context.home, course.id)
    if known is None or not all(one.is_clear for one in standing):
        return False
    where = "its account" if len(standing) == 1 else f"its {len(standing):,} accounts"
    context.console.say(
        f"{course.id} was closed {known.at:%Y-%m-%d %H:%M} UTC; nothing is left in {where}"
    )
    return True


def _locks(accounts: Accounts, course: Course) -> Iterator[contextlib.AbstractContextManager[None]]:
    """Keep every lab from being launched meanwhile."""
    from gpulab.fleets.up import locked

    return (locked(accounts, lab) for lab in course.labs)


def _end(
    context: Context, accounts: Accounts, standing: Sequence[Standing], *, save: bool
) -> tuple[Outcome, ...]:
    from gpulab.fleets import closing
    from gpulab.view.fleet import outcome_line

    done = []
    for outcome in closing.end(accounts, standing, save=save):
        done.append(outcome)
        context.console.say(outcome_line(len(done), outcome))
    return tuple(done)


def _report(
    context: Context,
    accounts: Accounts,
    found: Classroom,
    refs: Sequence[AccountRef],
    folder: Path,
) -> list[str]:
    """Write the final report: for programs, as text, and as a page where the extra is installed. No name is in it."""
    from gpulab.fleets import books
    from gpulab.launch.money.reports import question_of
    from gpulab.reporting.report import report_of
    from gpulab.spending.facts import timeline_of
    from gpulab.store.files import write_atomically
    from gpulab.view.report_files import report_files

    course = accounts.course
    report = report_of(
        timeline_of(books.facts(accounts, refs)),
        question_of(course, now=context.now()),
        students=found.roster.students,
    )
    files = report_files(report, title=course.name)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [str(folder / name) for name in files]


def _finish(context: Context, found: Classroom, course: Course, *, purge: bool, yes: bool) -> bool:
    """Forget the tickets' keys, write down that the course is closed, and delete the roster where that was asked for."""
    from gpulab.store import closing
    from gpulab.store.courses import ROSTER_FILE
    from gpulab.view.closing import purge_question

    closing.forget_tickets(context.home, course.id)
    file = found.folder / ROSTER_FILE
    asked = purge_question(str(file), students=len(found.roster.students))
    is_purged = purge and (yes or context.console.confirm(asked))
    closing.remember_closed(context.home, course.id, at=context.now(), is_purged=is_purged)
    if is_purged:
        closing.purge(context.home, course.id, found.folder)
    return is_purged


def _tell(
    context: Context,
    accounts: Accounts,
    outcomes: Sequence[Outcome],
    cleared: Sequence[Cleared],
    written: list[str],
    *,
    is_purged: bool,
    as_json: bool,
) -> None:
    from gpulab.view.closing import closed_json, ended_text, leaves_lines

    course = accounts.course
    context.console.say(ended_text(outcomes, cleared))
    if as_json:
        said = closed_json(outcomes, cleared, report=written, is_purged=is_purged)
        context.console.show_json(said)
        return
    for file in written:
        context.console.show(f"report    {file}")
    work = context.home.folder(course.accounts.profile).work
    prefixes = tuple(f"{lab.id}-" for lab in course.labs)
    works = sum(folder.name.startswith(prefixes) for folder in work.iterdir())
    stays = leaves_lines(course, cleared, work=str(work), works=works, is_purged=is_purged)
    for line in stays:
        context.console.show(line)
