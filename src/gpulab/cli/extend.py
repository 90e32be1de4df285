"""`gpulab extend`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import (
    end_options,
    json_option,
    name_argument,
    tomorrow_note,
    until_moment,
)
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="extend")
@name_argument()
@end_options
@json_option
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    hours: timedelta | None,
    by: timedelta | None,
    until: str | None,
    idle: timedelta | None,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Move an instance's end.

    Both ends are moved: the timer on the instance and the schedule in the account. Refused where the time until then may cost more
    than is left of the term's budget. An end that comes sooner than before is asked about; `--yes` agrees to it.
    With `--idle` the end stays, and the idle limit is another.

    \b
    Example:
      gpulab extend --hours 1
      gpulab extend week4 --until 19:00
      gpulab extend week4 --by 30m
      gpulab extend week4 --idle 3h
    """
    if [hours, by, until, idle].count(None) != 3:
        raise WrongUsage(
            "name one of `--hours`, `--by`, `--until` and `--idle`",
            hint="`gpulab extend --hours 1`",
        )
    if idle is not None:
        _limit_idle(context, name, idle, as_json=as_json)
        return
    from gpulab.launch.running import extend, instances
    from gpulab.view.words import local_time, money, span

    now = context.now()
    instance = instances.find(context.launch, name)
    if until is not None:
        moment = until_moment(until, now=now)
        if note := tomorrow_note(until, moment, now=now):
            context.console.say(note)
    elif by is not None:
        moment = now + by
    else:
        assert hours is not None
        moment = (instance.expires_at or now) + hours
    sooner = (instance.expires_at or moment) - moment
    if sooner > timedelta(minutes=1) and not yes:
        question = f"{instance.name} would end {span(sooner)} sooner than before, at {local_time(moment, now=now)}. Move it?"
        hint = (
            "Add `--yes` to agree beforehand, or name a later time; `gpulab show` says when it ends"
        )
        if not context.console.confirm(question, hint=hint):
            context.console.say("Its end was not moved")
            return
    moved = extend.extend_within_budget(context.launch, instance, moment)
    if as_json:
        context.console.show_json(moved)
        return
    ends = local_time(moved.until, now=now)
    change = f", {span(sooner)} sooner than before" if sooner > timedelta(minutes=1) else ""
    cost = f"; at most {money(moved.at_most_usd)} more until then" if moved.at_most_usd else ""
    context.console.show(
        f"{instance.name} now ends {ends}, in {span(moved.until - now)}{change}{cost}"
    )
    for text in moved.notes:
        context.console.say(f"note: {text}")


def _limit_idle(context: Context, name: str | None, idle: timedelta, *, as_json: bool) -> None:
    from gpulab.launch.running import extend, instances
    from gpulab.view.words import span

    instance = instances.find(context.launch, name)
    minutes = max(1, int(idle.total_seconds() // 60))
    changed = extend.limit_idle(context.launch, instance, minutes)
    if as_json:
        context.console.show_json(changed)
        return
    context.console.show(
        f"{instance.name} now ends after {span(timedelta(minutes=minutes))} without activity"
    )
    for text in changed.notes:
        context.console.say(f"note: {text}")
