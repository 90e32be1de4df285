"""`gpulab ls`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import listing_options
from gpulab.errors import CredentialsInvalid, GpulabError, Interrupted, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="ls")
@click.option("--watch", "-w", is_flag=True, help="Redraw every few seconds until Ctrl-C.")
@click.option(
    "--every",
    default=5,
    show_default=True,
    type=click.IntRange(2, 3600),
    metavar="SECONDS",
    help="Seconds between two looks of `--watch`.",
)
@click.option(
    "--all", "is_all", is_flag=True, help="Also what ended within the last hour, and kept work."
)
@click.option("--quick", is_flag=True, help="Do not ask the instances themselves.")
@listing_options
@click.pass_obj
def command(
    context: Context,
    watch: bool,
    every: int,
    is_all: bool,
    quick: bool,
    as_json: bool,
    as_csv: bool,
) -> int:
    """
    List your instances and what they cost.

    \b
    Example:
      gpulab ls
      gpulab ls -w
      gpulab ls --json | jq '.instances[].name'
    """
    if watch:
        return _watch(context, every, is_all=is_all, quick=quick, as_json=as_json, as_csv=as_csv)
    _show(context, is_all=is_all, quick=quick, as_json=as_json, as_csv=as_csv)
    return 0


def _show(context: Context, *, is_all: bool, quick: bool, as_json: bool, as_csv: bool) -> None:
    from gpulab.launch.running import keep, overview
    from gpulab.view.budget import budget_json, budget_text
    from gpulab.view.instances import COLUMNS, row_json, rows_text, totals_text
    from gpulab.view.keeping import kept_text

    with context.console.patience("Looking at your instances"):
        seen = overview.look(context.launch, with_ended=is_all, ask_instances=not quick)
        kept = keep.kept(context.launch) if is_all else ()
    rows = seen.rows
    if as_json:
        context.console.show_json(
            {
                "instances": [row_json(row) for row in rows],
                "kept": kept,
                "budget": budget_json(seen.budget),
                "notes": seen.notes,
            }
        )
    elif as_csv:
        context.console.show_csv([row_json(row) for row in rows], COLUMNS)
    elif rows:
        console = context.console
        console.show(rows_text(rows, now=context.now(), columns=console.width()))
        context.console.say(totals_text(rows))
    elif not seen.notes:
        context.console.say(_nothing_text(is_all=is_all))
    if seen.budget is not None and not (as_json or as_csv):
        context.console.say(budget_text(seen.budget))
    for note in seen.notes:
        context.console.say(f"note: {note}")
    if is_all and not (as_json or as_csv):
        context.console.show(("\n" if rows else "") + kept_text(kept, now=context.now()))


def _watch(
    context: Context, every: int, *, is_all: bool, quick: bool, as_json: bool, as_csv: bool
) -> int:
    """Look again and again until Ctrl-C; a look that fails is said and does not end it."""
    is_plain = as_json or as_csv or not context.console.is_watched
    is_first = True
    try:
        while True:
            if is_plain:
                _show(context, is_all=is_all, quick=quick, as_json=as_json, as_csv=as_csv)
            else:
                context.console.redraw(_screen(context, every, is_all, quick), is_first=is_first)
            is_first = False
            context.sleep(every)
    except KeyboardInterrupt:
        context.console.say()
        return Interrupted.exit_code


def _screen(context: Context, every: int, is_all: bool, quick: bool) -> str:
    from gpulab.launch.running import keep, overview
    from gpulab.view.budget import budget_text
    from gpulab.view.instances import rows_text, totals_text
    from gpulab.view.keeping import kept_text

    now = context.now()
    parts = [
        f"{now.astimezone():%H:%M:%S}, every {every} s; Ctrl-C ends watching, not the instances",
        "",
    ]
    try:
        seen = overview.look(context.launch, with_ended=is_all, ask_instances=not quick)
        if seen.rows:
            columns = context.console.width()
            parts += [rows_text(seen.rows, now=now, columns=columns), totals_text(seen.rows)]
        parts += [budget_text(seen.budget)] if seen.budget else []
        parts += [f"note: {note}" for note in seen.notes]
        parts += [] if seen.rows or seen.notes else [_nothing_text(is_all=is_all)]
        parts += ["", kept_text(keep.kept(context.launch), now=now)] if is_all else []
    except (WrongUsage, CredentialsInvalid):
        raise
    except GpulabError as error:
        parts.append(f"{error.message}; looking again")
    return "\n".join(parts)


def _nothing_text(*, is_all: bool) -> str:
    if is_all:
        return "Nothing of yours runs"
    return "Nothing of yours runs, and nothing costs but kept work (`gpulab ls --all`)"
