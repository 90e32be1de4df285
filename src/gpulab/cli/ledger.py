"""`gpulab ledger`: the record of what was spent, read, exported, imported and rebuilt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, listing_options
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
    help="Look here; repeatable.  [default: the profile's regions]",
)
@click.option(
    "--everyone", is_flag=True, help="All owners of a shared account, not only your own instances."
)
@json_option
@click.pass_obj
def rebuild(context: Context, regions: tuple[str, ...], everyone: bool, as_json: bool) -> None:
    """
    Add what the account and the kept work remember, and say what nobody could tell.

    After a lost laptop, or when an instance ended while this computer was off. Repeatable; nothing is counted twice.

    \b
    Example:
      gpulab ledger rebuild
    """
    from gpulab.launch.money import rebuilding

    found = rebuilding.rebuild(
        context.launch, regions or context.profile.regions, of_everyone=everyone
    )
    if as_json:
        context.console.show_json(found)
        return
    context.console.say(f"{counted(found.facts, 'fact')} found, {found.new:,} new")
    for text in found.unknown:
        context.console.say(f"not known: {text}")


def _ledger(context: Context) -> Ledger:

    return Ledger(context.folder.ledger)
