"""`gpulab sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import listing_options, yes_option
from gpulab.errors import SomeFailed

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="sweep")
@click.option(
    "--apply",
    "is_applied",
    is_flag=True,
    help="Delete what was found; without it nothing is changed.",
)
@yes_option
@listing_options
@click.pass_obj
def command(context: Context, is_applied: bool, yes: bool, as_json: bool, as_csv: bool) -> None:
    """
    Find everything of yours that costs, in all regions.

    Looks for everything that carries gpulab's tags: instances, volumes, addresses, spot requests, snapshots, images, schedules,
    security groups and keys. What is not tagged is never touched; work without a verified copy is never deleted.

    \b
    Example:
      gpulab sweep
      gpulab sweep --apply
    """
    from gpulab.launch.upkeep import sweep
    from gpulab.view.leftovers import COLUMNS, leftover_row, leftovers_text, outcome_text

    with context.console.step("Looking in all enabled regions"):
        left = sweep.look(context.launch)
    rows = [leftover_row(item) for item in left.found]
    if as_csv:
        context.console.show_csv(rows, COLUMNS)
    elif not as_json:
        context.console.show(leftovers_text(left))
    outcomes = []
    if is_applied and left.found and _may(context, len(left.found), yes):
        for outcome in sweep.apply(context.launch, left.found):
            outcomes.append(outcome)
            context.console.say(outcome_text(outcome))
    if as_json:
        context.console.show_json(
            {
                "found": rows,
                "kept": left.untouchable,
                "unread_regions": left.unread,
                "outcomes": outcomes,
            }
        )
    failed = [o for o in outcomes if not o.is_done]
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {len(outcomes)} could not be deleted",
            hint="Run `gpulab sweep --apply` again in some minutes",
        )


def _may(context: Context, count: int, yes: bool) -> bool:
    if yes or context.console.confirm(f"Delete these {count}?"):
        return True
    context.console.say("Nothing was deleted")
    return False
