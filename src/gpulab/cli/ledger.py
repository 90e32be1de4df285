"""`gpulab ledger`: the record of what was spent, read, exported, imported and rebuilt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, listing_options
from gpulab.errors import SomeFailed, WrongUsage
from gpulab.store.ledger import Ledger
from gpulab.view.words import counted

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.group()
def command() -> None:
    """
    Read, export, import or rebuild the record of what was spent.

    \b
    Example:
      gpulab ledger show
      gpulab ledger export > facts.jsonl
    """


@command.command()
@listing_options
@click.pass_obj
def show(context: Context, as_json: bool, as_csv: bool) -> None:
    """
    List the facts in the order in which they were written.

    \b
    Example:
      gpulab ledger show --csv
    """
    from gpulab.spending.facts import timeline_of
    from gpulab.view.report_ledger import FACT_COLUMNS, asked_text, fact_rows

    facts = _ledger(context).facts()
    rows = fact_rows(facts)
    if as_json:
        context.console.show_json({"facts": rows})
    elif as_csv:
        context.console.show_csv(rows, FACT_COLUMNS)
    elif rows:
        cells = [[row[column] for column in FACT_COLUMNS] for row in rows]
        context.console.show_table(cells, FACT_COLUMNS)
        if said := asked_text(timeline_of(facts).asked):
            context.console.say(said)
    else:
        context.console.say("the ledger is empty")


@command.command()
@click.argument("file", metavar="[FILE]", default="-")
@click.pass_obj
def export(context: Context, file: str) -> None:
    """
    Write every fact as one line of JSON, to FILE or stdout.

    \b
    Example:
      gpulab ledger export facts.jsonl
    """
    from gpulab.store.fact_lines import export_lines
    from gpulab.store.files import write_atomically

    facts = _ledger(context).facts()
    text = "".join(f"{line}\n" for line in export_lines(facts))
    if file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(Path(file), text.encode())
        context.console.say(f"{counted(len(facts), 'fact')} written to {file}")


@command.command("import")
@click.argument("file", metavar="FILE")
@click.pass_obj
def import_(context: Context, file: str) -> None:
    """
    Add the facts of FILE (`-` for stdin); those already known stay as they are.

    \b
    Example:
      gpulab ledger import facts.jsonl
    """
    from gpulab.cli.cost import content_of
    from gpulab.store.fact_lines import import_lines

    facts = import_lines(content_of(file))
    new = _ledger(context).append(facts)
    context.console.say(f"{counted(len(facts), 'fact')} read, {new:,} new")


@command.command()
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Look here; repeatable.  [default: the profile's regions, or the course's]",
)
@click.option(
    "--everyone", is_flag=True, help="All owners of a shared account, not only your own instances."
)
@click.option(
    "--course",
    "course_folder",
    metavar="FOLDER",
    help="A whole class, in every account of its roster: the folder of course.toml and roster.csv.",
)
@json_option
@click.pass_obj
def rebuild(
    context: Context,
    regions: tuple[str, ...],
    everyone: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Add what the account and the kept work remember, and say what nobody could tell.

    After a lost laptop, or when an instance ended while this computer was off. Repeatable; nothing is counted twice. Of a course, exits
    with 4 when an account could not be asked.

    \b
    Example:
      gpulab ledger rebuild
      gpulab ledger rebuild --course .
    """
    from gpulab.launch.money import rebuilding

    if course_folder is not None:
        if everyone:
            raise WrongUsage(
                "`--course` has everybody of the course already",
                hint="Leave `--everyone` out: with it, without `--course`, a shared account's other courses count too",
            )
        _rebuild_class(context, course_folder, regions, as_json=as_json)
        return
    found = rebuilding.rebuild(
        context.launch, regions or context.profile.regions, of_everyone=everyone
    )
    if as_json:
        context.console.show_json(found)
        return
    context.console.say(f"{counted(found.facts, 'fact')} found, {found.new:,} new")
    for text in found.unknown:
        context.console.say(f"not known: {text}")


def _rebuild_class(
    context: Context, course_folder: str, regions: tuple[str, ...], *, as_json: bool
) -> None:
    """Complete the ledgers of all accounts of a course."""
    from gpulab.cli import classroom
    from gpulab.cli.fleet_options import open_accounts
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets import bookkeeping, books
    from gpulab.view.bookkeeping import recalled_json, recalled_lines

    room, course = classroom.read_sound(context, course_folder)
    accounts, students = open_accounts(context, course), room.roster.students
    refs, left = books.accounts_of(accounts, students, secret=room.secret)
    seats = [s for lab in course.labs for s in seats_of(course, lab, students, secret=room.secret)]
    every = (*refs, *left)
    with context.console.step(f"ask {counted(len(every), 'account')}"):
        found = tuple(bookkeeping.recall(accounts, every, seats, regions=regions or course.regions))
    if as_json:
        context.console.show_json(recalled_json(found))
    else:
        for line in recalled_lines(found):
            context.console.say(line)
    failed = sum(one.trouble is not None for one in found)
    if failed:
        raise SomeFailed(
            f"{failed:,} of {counted(len(found), 'account')} could not be asked",
            hint="Each cause is named above, with what to do; rebuild again afterwards",
        )


def _ledger(context: Context) -> Ledger:

    return Ledger(context.folder.ledger)
