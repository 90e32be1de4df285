"""`gpulab extend`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import Duration, json_option, name_argument, until_moment
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="extend")
@name_argument()
@click.option(
    "--hours",
    "duration",
    type=Duration(),
    metavar="SPAN",
    help="How much longer than now planned: 2, 90m, 1h30m.",
)
@click.option("--until", metavar="TIME", help="The new end: 19:00 local time, or a full ISO time.")
@json_option
@click.pass_obj
def command(
    context: Context, name: str | None, duration: timedelta | None, until: str | None, as_json: bool
) -> None:
    """
    Move an instance's end.

    Both ends are moved: the timer on the instance and the schedule in the account. Refused where the time until then may cost more
    than is left of the term's budget.

    \b
    Example:
      gpulab extend --hours 1
      gpulab extend week4 --until 19:00
    """
    if (duration is None) == (until is None):
        raise WrongUsage("name either `--hours` or `--until`", hint="`gpulab extend --hours 1`")
    from gpulab.launch.running import extend, instances
    from gpulab.view.words import local_time, money, span

    now = context.now()
    instance = instances.find(context.launch, name)
    if until is not None:
        moment = until_moment(until, now=now)
    else:
        assert duration is not None
        moment = (instance.expires_at or now) + duration
    moved = extend.extend_within_budget(context.launch, instance, moment)
    if as_json:
        context.console.show_json(moved)
        return
    ends = local_time(moved.until, now=now)
    cost = f"; at most {money(moved.at_most_usd)} more until then" if moved.at_most_usd else ""
    context.console.show(f"{instance.name} now ends {ends}, in {span(moved.until - now)}{cost}")
    for text in moved.notes:
        context.console.say(f"note: {text}")
