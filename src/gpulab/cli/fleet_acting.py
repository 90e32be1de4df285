"""`gpulab fleet ls, watch, stop, extend, exec, push, collect`: the class while it works. Parses, calls, shows; one result each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli import classroom
from gpulab.cli.classroom import course_option
from gpulab.cli.context import Context
from gpulab.cli.fleet_options import choose, choosing_options, failed_option, finish, open_accounts
from gpulab.cli.interrupted import OfLab
from gpulab.cli.options import (
    end_options,
    json_option,
    listing_options,
    parse_duration,
    tomorrow_note,
    until_moment,
    yes_option,
)
from gpulab.errors import Interrupted, WrongUsage

if TYPE_CHECKING:
    from gpulab.fleets.accounts import Accounts
    from gpulab.fleets.kept import Home
    from gpulab.fleets.members import Member
    from gpulab.model.course import Lab
    from gpulab.model.fleet import Outcome
    from gpulab.model.instance import Instance
    from gpulab.view.fleet_members import MemberRow


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@choosing_options
@click.option("--quick", is_flag=True, help="Do not ask the instances themselves.")
@course_option
@listing_options
@click.pass_obj
def ls(
    context: Context,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    quick: bool,
    course_folder: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """
    List a lab's students: who is up, what they do, what it has cost.

    AWS is asked once for each account and region, not once for each student.

    \b
    Example:
      gpulab fleet ls week4
      gpulab fleet ls week4 --group g7 --quick
      gpulab fleet ls week4 --csv > week4.csv
    """
    from gpulab.view.fleet_members import COLUMNS, row_json, rows_text, totals_text, trouble_lines

    accounts, lab, found = _members(
        context, course_folder, lab_id, only, groups, is_failed=False, with_former=True
    )
    rows = _rows(accounts, found, quick=quick)
    if as_json:
        context.console.show_json({"lab": lab.id, "members": [row_json(row) for row in rows]})
    elif as_csv:
        context.console.show_csv([row_json(row) for row in rows], COLUMNS)
    else:
        context.console.show(rows_text(rows, now=context.now()))
        for line in (totals_text(rows), *trouble_lines(rows)):
            context.console.say(line)


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@choosing_options
@click.option(
    "--every",
    default=15,
    show_default=True,
    type=click.IntRange(5, 3600),
    metavar="SECONDS",
    help="Seconds between two looks.",
)
@course_option
@click.pass_obj
def watch(
    context: Context,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    every: int,
    course_folder: str | None,
) -> int:
    """
    Watch a lab live: who is up, starting, failed and why, idle, GPU use, dollars, minutes left.

    \b
    Example:
      gpulab fleet watch week4
      gpulab fleet watch week4 --every 30
    """
    import shutil

    from gpulab.fleets.members import members
    from gpulab.view.fleet_members import live_text

    accounts, lab, found = _members(
        context, course_folder, lab_id, only, groups, is_failed=False, with_former=True
    )
    seats = tuple(m.seat for m in found if m.seat)
    left = tuple({m.account.key: m.account for m in found if m.is_former}.values())
    is_first = True
    try:
        while True:
            rows = _rows(accounts, found, quick=False)
            now = context.now()
            title = f"{accounts.course.id} {lab.id}, {now.astimezone():%H:%M:%S}; Ctrl-C ends this screen, nothing else"
            height = shutil.get_terminal_size().lines if context.console.is_watched else 100_000
            text = live_text(rows, title=title, now=now, height=height)
            context.console.redraw(text, is_first=is_first)
            is_first = False
            context.sleep(every)
            is_all = not (only or groups)
            found = members(accounts, lab, seats, with_extras=is_all, former=left)
    except KeyboardInterrupt:
        context.console.say()
        return Interrupted.exit_code


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@choosing_options
@failed_option
@click.option("--no-save", is_flag=True, help="Do not save; what was not kept before is lost.")
@yes_option
@course_option
@json_option
@click.pass_obj
def stop(
    context: Context,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    no_save: bool,
    yes: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Save everybody's work and end their instances.

    The work of each is copied to this computer and compared before the instance is ended; one that cannot be saved runs on.

    \b
    Example:
      gpulab fleet stop week4
      gpulab fleet stop week4 --only 's17*' --yes
      gpulab fleet stop week4 --failed --no-save
    """
    from gpulab.fleets import acting
    from gpulab.view.words import counted

    accounts, lab, found = _members(
        context, course_folder, lab_id, only, groups, is_failed, with_former=True
    )
    live = [m for m in found if m.instance or m.error]
    if not live:
        context.console.say(f"Nothing of {lab.id} runs")
    lost = " WITHOUT saving: what was not kept before is lost" if no_save else ""
    question = f"End {counted(len(live), 'instance')}{lost}?"
    if live and not yes and not context.console.confirm(question):
        context.console.say("Nothing was ended")
        return
    _finish(context, accounts, lab, acting.stop(accounts, live, save=not no_save), as_json=as_json)


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@end_options
@choosing_options
@failed_option
@course_option
@json_option
@click.pass_obj
def extend(
    context: Context,
    lab_id: str,
    hours: timedelta | None,
    by: timedelta | None,
    until: str | None,
    idle: timedelta | None,
    yes: bool,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Move the end of a lab's instances and of the tickets' keys; without a time, to the lab's own end and its grace.

    Refused for each student for whom the time until then may cost more than is left of the term's budget.

    Ends that come sooner than before are asked about; `--yes` agrees to it. With `--idle` the ends stay, and the idle limit is another.

    A student whose tunnel is open goes on. Who opens a ticket after its old end needs a new one: `gpulab fleet handout` again.

    \b
    Example:
      gpulab fleet extend week4
      gpulab fleet extend week4 --until 17:30
      gpulab fleet extend week4 --hours 1
      gpulab fleet extend week4 --by 30m --group g7
      gpulab fleet extend week4 --idle 3h
    """
    from gpulab.fleets import acting

    if [hours, by, until, idle].count(None) < 3:
        raise WrongUsage(
            "`--hours`, `--by`, `--until` and `--idle` exclude each other",
            hint="Leave all but one of them out",
        )
    accounts, lab, found = _members(context, course_folder, lab_id, only, groups, is_failed)
    if idle is not None:
        minutes = max(1, int(idle.total_seconds() // 60))
        _finish(
            context,
            accounts,
            lab,
            acting.limit_idle(accounts, _up(found), minutes),
            as_json=as_json,
        )
        return
    new_end, said = _new_end(context, accounts, lab, hours=hours, by=by, until=until)
    chosen = _up(found)
    context.console.say(said)
    if not _agreed(context, chosen, new_end, yes=yes):
        context.console.say("No end was moved")
        return
    _finish(
        context, accounts, lab, acting.extend(accounts, chosen, new_end=new_end), as_json=as_json
    )


@click.command(name="exec", cls=OfLab, context_settings={"ignore_unknown_options": True})
@click.argument("lab_id", metavar="LAB")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@choosing_options
@failed_option
@click.option(
    "--timeout",
    default="60s",
    show_default=True,
    metavar="SPAN",
    help="How long the command may take on each.",
)
@course_option
@json_option
@click.pass_obj
def exec_(
    context: Context,
    lab_id: str,
    words: tuple[str, ...],
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    timeout: str,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Run one command on each student's instance, many at once; one quoted word is a line of shell, pipe and all.

    An instance that serves nobody in the roster is left out, and named.

    \b
    Example:
      gpulab fleet exec week4 -- nvidia-smi -L
      gpulab fleet exec week4 'du -sh work/*'
      gpulab fleet exec week4 --only 's17*' -- git -C work/notebooks pull
      gpulab fleet exec week4 --failed --timeout 5m -- gpulab-agent status
    """
    from gpulab.fleets import acting

    span = parse_duration(timeout)
    if span is None:
        raise WrongUsage(f"`{timeout}` is not a duration such as 90s or 5m")
    accounts, lab, found = _members(context, course_folder, lab_id, only, groups, is_failed)
    said: dict[str, tuple[int, str]] = {}

    def take(member: Member, exit_code: int, text: str) -> None:
        said[member.name] = (exit_code, text)
        if not as_json:
            lines = "".join(f"{member.label}: {line}\n" for line in text.splitlines())
            context.console.show((lines or f"{member.label}:\n").rstrip("\n"))

    command = ["bash", "-c", words[0]] if len(words) == 1 else list(words)
    chosen = _of_the_roster(context, accounts, lab, found)
    outcomes = acting.run(accounts, chosen, command, timeout_s=span.total_seconds(), take=take)
    _finish(context, accounts, lab, outcomes, as_json=as_json, said=said)


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--into",
    default="",
    metavar="FOLDER",
    help="Folder below their work folder.  [default: the work folder]",
)
@choosing_options
@failed_option
@course_option
@json_option
@click.pass_obj
def push(
    context: Context,
    lab_id: str,
    source: Path,
    into: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Send a file, or what is in a folder, to each student's work folder; nothing is deleted there.

    An instance that serves nobody in the roster is left out, and named.

    \b
    Example:
      gpulab fleet push week4 handouts
      gpulab fleet push week4 solution.ipynb
      gpulab fleet push week4 data --into data --group g7
    """
    from gpulab.fleets import acting

    if into.startswith("/") or ".." in Path(into).parts:
        raise WrongUsage(f"`{into}` leads out of the work folder", hint="Such as `--into data`")
    accounts, lab, found = _members(context, course_folder, lab_id, only, groups, is_failed)
    chosen = _of_the_roster(context, accounts, lab, found)
    outcomes = acting.push(accounts, chosen, source, into=into)
    _finish(context, accounts, lab, outcomes, as_json=as_json)


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--anonymous",
    is_flag=True,
    help="Name the folders by opaque ids, for peer grading.  [default: by the roster's ids]",
)
@click.option(
    "--hand-in",
    "hand_in",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Also write everybody's notebooks there, each with a page to read beside it, for grading.",
)
@choosing_options
@failed_option
@course_option
@json_option
@click.pass_obj
def collect(
    context: Context,
    lab_id: str,
    folder: Path,
    anonymous: bool,
    hand_in: Path | None,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Bring everybody's work home, a folder for each student, compared by hash.

    Of whoever has no instance any more, or one that does not answer, it is what `stop` saved here or the instance kept in the account's bucket.

    Running it again fetches what is new; what came from an instance itself is never replaced by an older copy. Exits with 4 when somebody's work could not be brought home; `--failed` tries those again.

    With --hand-in, each notebook is copied as the student saved it, and a page beside it shows its cells, texts and pictures. Nothing that a
    notebook holds runs in that page.

    \b
    Example:
      gpulab fleet collect week4 handed-in/week4
      gpulab fleet collect week4 collected/week4 --hand-in to-grade/week4 --anonymous
      gpulab fleet collect week4 handed-in/week4 --failed
    """
    from gpulab.fleets import acting

    accounts, lab, found = _members(context, course_folder, lab_id, only, groups, is_failed)
    live = [m for m in found if m.instance or m.error]
    gone = [m for m in found if not (m.instance or m.error)]
    homes: Mapping[str, Home] = {}
    if gone:
        with context.console.step(f"look for kept work of {len(gone):,} who are not up"):
            homes = acting.homes(accounts, lab, gone)
    if not live and not homes:
        raise WrongUsage(
            f"nobody is up in {lab.id}, and no work of it is saved on this computer or kept in a bucket",
            hint="`gpulab fleet stop` saves it on the computer where it is typed",
        )
    outcomes: Iterator[Outcome] = itertools.chain(
        acting.collect(accounts, live, folder, is_anonymous=anonymous),
        acting.collect_kept(accounts, gone, homes, folder, is_anonymous=anonymous),
    )
    if hand_in is not None:
        members = {member.name: member for member in found}
        names = {n: acting.folder_name(m, is_anonymous=anonymous) for n, m in members.items()}
        outcomes = _handing_in(context, outcomes, names, folder, hand_in)
    _finish(context, accounts, lab, outcomes, as_json=as_json)


@click.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--no-notebooks", is_flag=True, help="Do not bring the lab's notebooks to the instances."
)
@choosing_options
@failed_option
@course_option
@json_option
@click.pass_obj
def handout(
    context: Context,
    lab_id: str,
    folder: Path,
    no_notebooks: bool,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Write a ticket for each student, a page of each to print and a table for a mail merge; bring the lab's notebooks.

    A ticket opens one student's instance and nothing else, without any rights in AWS; its key ends with the lab. The student types
    `gpulab open --ticket FILE`. The folder is private: tickets are keys. Page and table hold everybody whose ticket lies there, also
    where `--only` or `--failed` chose a few.

    \b
    Example:
      gpulab fleet handout week4 tickets/week4
      gpulab fleet handout week4 tickets/week4 --failed
    """
    from gpulab.fleets.handout import hand_out, handed_before
    from gpulab.store.files import write_atomically
    from gpulab.view.handout import Handed, handout_html, merge_csv

    accounts, lab, found = _members(context, course_folder, lab_id, only, groups, is_failed)
    handed: dict[str, Handed] = {}
    outcomes = tuple(
        hand_out(
            accounts,
            lab,
            _of_the_roster(context, accounts, lab, found),
            folder,
            with_notebooks=not no_notebooks,
            take=lambda member, ticket, name: handed.update(
                {member.name: Handed(member, ticket, name)}
            ),
        )
    )
    everyone = _everyone(context, course_folder, lab)
    earlier = handed_before(everyone, folder, now=context.now())
    before = {member.name: Handed(member, ticket, name) for member, ticket, name in earlier}
    ordered = [one for m in everyone if (one := handed.get(m.name) or before.get(m.name))]
    page = handout_html(ordered, title=f"{accounts.course.name}: {lab.title}")
    write_atomically(folder / "handout.html", page.encode())
    write_atomically(folder / "merge.csv", merge_csv(ordered, lab=lab.id).encode("utf-8-sig"))
    context.console.say(f"{len(ordered):,} tickets, handout.html and merge.csv in {folder}")
    _finish(context, accounts, lab, iter(outcomes), as_json=as_json)


def _handing_in(
    context: Context,
    outcomes: Iterator[Outcome],
    names: dict[str, str],
    collected: Path,
    into: Path,
) -> Iterator[Outcome]:
    """Write the pages of whoever's work came home, one after the other, and say which notebooks have none."""
    from gpulab.course.notebook import read_notebook
    from gpulab.store.hand_in import export
    from gpulab.view.notebook import notebook_html
    from gpulab.view.words import in_line

    def render(raw: bytes, title: str) -> str:
        return notebook_html(read_notebook(raw), title=title)

    pages, troubles = 0, []
    for outcome in outcomes:
        who = names[outcome.name]
        for notebook in (
            () if outcome.is_failed else export(collected / who, into, who, render=render)
        ):
            pages += not notebook.trouble
            troubles += [f"{notebook.file} has no page: {notebook.trouble}"] * bool(
                notebook.trouble
            )
        yield outcome
    for line in troubles:
        context.console.say(in_line(line))
    context.console.say(f"{pages:,} notebooks with a page each in {into}")


def _members(
    context: Context,
    course_folder: str | None,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    is_failed: bool,
    *,
    with_former: bool = False,
) -> tuple[Accounts, Lab, tuple[Member, ...]]:
    """
    Look who is up, of those whom the options choose.

    Args:
        with_former: Whether the accounts that nobody in the roster has any more are looked into, where everybody is chosen.
    """
    from gpulab.fleet.lab import lab_of
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets.former import former
    from gpulab.fleets.members import members, refuse_nobody
    from gpulab.store.courses import failed_names

    sound, course = classroom.read_sound(context, course_folder)
    lab = lab_of(course, lab_id)
    everyone = seats_of(course, lab, sound.roster.students, secret=sound.secret)
    seats = choose(everyone, only=only, groups=groups)
    if is_failed:
        names = failed_names(context.home, course.id, lab.id)
        seats = tuple(seat for seat in seats if seat.name in names)
    accounts = open_accounts(context, course)
    is_all = not (only or groups or is_failed)
    refs = {seat.account for seat in everyone}
    left = former(accounts, refs, secret=sound.secret, lab=lab.id) if is_all and with_former else ()
    found = members(accounts, lab, seats, with_extras=is_all, former=left)
    for error in accounts.damaged.values():
        context.console.say(
            f"What ended by itself is not in the books: {error.message}. {error.hint}"
        )
    refuse_nobody(found)
    return accounts, lab, found


def _everyone(context: Context, course_folder: str | None, lab: Lab) -> tuple[Member, ...]:
    """Name all whom a lab is for, in the roster's order; AWS is not asked."""
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets.members import Member

    sound, course = classroom.read_sound(context, course_folder)
    seats = seats_of(course, lab, sound.roster.students, secret=sound.secret)
    return tuple(Member(seat.account, seat, None) for seat in seats)


def _up(found: tuple[Member, ...]) -> tuple[Member, ...]:
    """Leave out who has nothing running: there is nothing to do for them, and nothing failed; an unread account did fail."""
    from gpulab.fleets.members import refuse_nobody

    live = tuple(m for m in found if m.instance or m.error)
    refuse_nobody(live)
    return live


def _of_the_roster(
    context: Context, accounts: Accounts, lab: Lab, found: tuple[Member, ...]
) -> tuple[Member, ...]:
    """
    Leave out, and name, what serves nobody in the roster: a solution is for the class, not for who has left it.

    Raises:
        WrongUsage: Nobody is left; where instances are up all the same, they may carry the ids of another key.
    """
    from gpulab.store.courses import secret_file

    live = _up(found)
    extras = [m.label for m in live if m.seat is None]
    if extras:
        context.console.say(
            f"Left out, since nobody in the roster has it: {', '.join(extras)}; `gpulab fleet up --prune` saves its work and ends it"
        )
    chosen = tuple(m for m in live if m.seat is not None)
    if not chosen:
        key = secret_file(context.home, accounts.course.id)
        raise WrongUsage(
            f"nobody in the roster has an instance in {lab.id}",
            hint=f"Another key gives every student another id: if {key} is not the class's, copy it from the computer that started the class",
        )
    return chosen


def _rows(accounts: Accounts, found: tuple[Member, ...], *, quick: bool) -> tuple[MemberRow, ...]:
    from gpulab.fleets import acting
    from gpulab.model.instance import State
    from gpulab.model.status import AgentStatus
    from gpulab.view.fleet_members import rows_of

    statuses: dict[str, AgentStatus] = {}
    silences: dict[str, str] = {}
    running = [m for m in found if m.instance and m.instance.state is State.RUNNING]
    if not quick:

        def take(member: Member, status: AgentStatus) -> None:
            statuses[member.name] = status

        for outcome in acting.statuses(accounts, running, take=take):
            if outcome.trouble is not None:
                silences[outcome.name] = outcome.trouble.message
    return rows_of(found, statuses, silences)


def _new_end(
    context: Context,
    accounts: Accounts,
    lab: Lab,
    *,
    hours: timedelta | None,
    by: timedelta | None,
    until: str | None,
) -> tuple[Callable[[Instance], datetime], str]:
    """Return where the end of each instance moves, and that in words: with `--hours` it depends on the end that one has."""
    from gpulab.fleet.lab import extension_of
    from gpulab.view.words import local_time, span

    now = context.now()
    if hours is not None:
        later = f"Each end moves to {span(hours)} later than planned"
        return (lambda instance: (instance.expires_at or now) + hours), later
    if by is not None:
        moment = now + by
    elif until is not None:
        moment = until_moment(until, now=now)
        if note := tomorrow_note(until, moment, now=now):
            context.console.say(note)
    else:
        profile = context.home.config().profile(accounts.course.accounts.profile)
        moment = extension_of(lab, now=now, longest=profile.lifetime_limit)
    return (lambda _: moment), f"The end moves to {local_time(moment, now=now)}"


def _agreed(
    context: Context,
    chosen: tuple[Member, ...],
    new_end: Callable[[Instance], datetime],
    *,
    yes: bool,
) -> bool:
    """Ask where ends would come sooner than before: `--by 30m` an hour before the end takes half an hour away."""
    from gpulab.view.words import counted

    ends = [
        (m.instance.expires_at, new_end(m.instance))
        for m in chosen
        if m.instance and m.instance.expires_at
    ]
    sooner = sum(before - after > timedelta(minutes=1) for before, after in ends)
    if not sooner or yes:
        return True
    hint = "Add `--yes` to agree beforehand; `--hours` counts from the end that each has"
    question = f"{counted(sooner, 'instance')} would end sooner than before. Move the ends?"
    return context.console.confirm(question, hint=hint)


def _finish(
    context: Context,
    accounts: Accounts,
    lab: Lab,
    outcomes: Iterator[Outcome],
    *,
    as_json: bool,
    said: dict[str, tuple[int, str]] | None = None,
) -> None:
    """Tell outcomes as they come, remember who failed, and end with the sum."""
    from gpulab.view.fleet import outcome_line

    found = []
    for outcome in outcomes:
        found.append(outcome)
        if said is None:
            context.console.say(outcome_line(len(found), outcome))
    finish(context, accounts.course.id, lab.id, tuple(found), as_json=as_json, said=said)
