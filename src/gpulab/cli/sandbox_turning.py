"""What a person turns in a running sandbox: interruptions, full zones, prices, quotas, faults. Parses, asks and tells; decides nothing."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpulab.cli.options import Amount, Duration, json_option
from gpulab.errors import WrongUsage
from gpulab.view.words import counted

if TYPE_CHECKING:
    from gpulab.cli.context import Context

_ZONE = "Availability zone, such as us-east-1a."


@click.command()
@click.argument("name", metavar="NAME|ID")
@click.option(
    "--in",
    "delay",
    type=Duration(),
    default="2m",
    show_default=True,
    help="Simulated time from the notice to the end, such as 20s.",
)
@click.option(
    "--action",
    type=click.Choice(["terminate", "stop"]),
    default="terminate",
    show_default=True,
    help="What AWS does at the end.",
)
@click.option(
    "--rebalance-first",
    is_flag=True,
    help="Send a rebalance recommendation 2 min before the notice.",
)
@json_option
@click.pass_obj
def interrupt(
    context: Context,
    name: str,
    delay: timedelta,
    action: str,
    rebalance_first: bool,
    as_json: bool,
) -> None:
    """
    Interrupt a spot instance: a notice, then the end.

    \b
    gpulab sandbox interrupt lab --in 20s
    """
    answer = _ask(
        context,
        "interrupt",
        name=name,
        in_seconds=delay.total_seconds(),
        action=action,
        rebalance_first=rebalance_first,
    )
    seconds = f"{delay.total_seconds():.0f} s"
    start_of_it = "will have its notice in 120 s" if rebalance_first else "has its notice now"
    _tell(
        context,
        answer,
        f"{answer['id']} {start_of_it}, and {seconds} later AWS {action}s it.",
        as_json=as_json,
    )


@click.command()
@click.argument("instance_type", metavar="TYPE")
@click.argument("zone", metavar="ZONE")
@click.argument("slots", metavar="N")
@json_option
@click.pass_obj
def capacity(context: Context, instance_type: str, zone: str, slots: str, as_json: bool) -> None:
    """
    Set how many more instances of TYPE fit into ZONE.

    N is a number, or `any` for as many as wanted.

    \b
    gpulab sandbox capacity g4dn.xlarge us-east-1a 0
    """
    if slots != "any" and not (slots.isascii() and slots.isdigit() and len(slots) < 7):
        raise WrongUsage(f"`{slots}` is not a number of instances", hint="0 or more, or `any`")
    number = None if slots == "any" else int(slots)
    answer = _ask(context, "capacity", type=instance_type, zone=zone, slots=number)
    room = "as many as wanted" if number is None else f"{number} more"
    _tell(context, answer, f"{zone} has room for {room} of {instance_type}.", as_json=as_json)


@click.command()
@click.argument("instance_type", metavar="TYPE")
@click.argument("zone", metavar="ZONE")
@click.argument("usd", metavar="USD", type=Amount())
@json_option
@click.pass_obj
def price(context: Context, instance_type: str, zone: str, usd: Decimal, as_json: bool) -> None:
    """
    Set the spot price of TYPE in ZONE, USD per hour.

    \b
    gpulab sandbox price g4dn.xlarge us-east-1a 0.21
    """
    answer = _ask(context, "price", type=instance_type, zone=zone, usd=str(usd))
    words = f"From now on {instance_type} in {zone} costs ${usd:f} per hour (simulated)."
    _tell(context, answer, words, as_json=as_json)


@click.command()
@click.argument("code", metavar="CODE")
@click.argument("vcpus", metavar="VCPUS", type=click.IntRange(0, 1_000_000))
@click.option("--region", help="Only this region.  [default: all]")
@json_option
@click.pass_obj
def quota(context: Context, code: str, vcpus: int, region: str | None, as_json: bool) -> None:
    """
    Set an account quota by its AWS code.

    \b
    gpulab sandbox quota L-3819A6DF 0
    """
    answer = _ask(context, "quota", code=code, vcpus=vcpus, region=region)
    where = region or "every region"
    words = f"{answer['code']} ({answer['name']}) is {vcpus} in {where}."
    _tell(context, answer, words, as_json=as_json)


@click.command()
@click.argument("operation", metavar="OPERATION")
@click.option(
    "--size",
    type=click.FloatRange(0, 100_000),
    default=1,
    show_default=True,
    help="Calls that fit at once.",
)
@click.option(
    "--per-second",
    type=click.FloatRange(0, 100_000),
    default=0.1,
    show_default=True,
    help="Calls that come back in a simulated second.",
)
@json_option
@click.pass_obj
def throttle(
    context: Context, operation: str, size: float, per_second: float, as_json: bool
) -> None:
    """
    Limit the rate of one EC2 operation.

    Over it AWS answers RequestLimitExceeded. `gpulab sandbox mend` gives AWS's own limits back.

    \b
    gpulab sandbox throttle RunInstances --size 1 --per-second 0.1
    """
    answer = _ask(context, "throttle", operation=operation, size=size, per_second=per_second)
    words = f"{operation}: {size:g} at once, then {per_second:g} per second."
    _tell(context, answer, words, as_json=as_json)


@click.command()
@click.argument("operation", metavar="OPERATION")
@click.argument("code", metavar="CODE")
@click.option("--times", type=click.IntRange(1), help="So many calls fail.  [default: all]")
@click.option("--zone", help=f"Only calls for this place. {_ZONE}")
@json_option
@click.pass_obj
def fail(
    context: Context,
    operation: str,
    code: str,
    times: int | None,
    zone: str | None,
    as_json: bool,
) -> None:
    """
    Let calls of OPERATION fail with the AWS error CODE.

    The code `reply-lost` breaks the connection after the call took effect, `request-lost` before it.
    `gpulab sandbox mend` lifts every fault.

    \b
    gpulab sandbox fail RunInstances InsufficientInstanceCapacity --zone us-east-1a
    gpulab sandbox fail RunInstances reply-lost --times 1
    """
    answer = _ask(context, "fail", operation=operation, code=code, times=times, zone=zone)
    often = "every call" if times is None else f"the next {times}"
    where = f" in {zone}" if zone else ""
    _tell(context, answer, f"{operation}{where}: {often} fails with {code}.", as_json=as_json)


@click.command()
@json_option
@click.pass_obj
def mend(context: Context, as_json: bool) -> None:
    """
    Lift every fault and limit that `fail` and `throttle` have set.

    \b
    gpulab sandbox mend
    """
    _tell(context, _ask(context, "mend"), "No call fails on purpose any more.", as_json=as_json)


@click.command(name="apply")
@click.argument(
    "templates",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--account", metavar="NUMBER", help="Instead of the account a template is for.")
@json_option
@click.pass_obj
def apply_(
    context: Context, templates: tuple[Path, ...], account: str | None, as_json: bool
) -> None:
    """
    Play students who upload their enrolment template: its roles, and with a budget its guards, are made in their accounts.

    A template that was applied before is updated. AWS Budgets acts half a day late here, too, and sends no e-mail.

    \b
    gpulab course enrol templates
    gpulab sandbox apply templates/*.json
    """
    roles: list[str] = []
    for file in templates:
        answer = _ask(context, "apply", template=file.read_text("utf-8"), account=account)
        roles += answer["roles"]
    _tell(
        context, {"roles": roles}, f"There are {counted(len(roles), 'role')} now.", as_json=as_json
    )


def _ask(context: Context, what: str, **parameters: Any) -> Any:
    from gpulab.sandbox.control import ask, find, folder_of

    return ask(find(folder_of(context.environment)), what, **parameters)


def _tell(context: Context, answer: Any, words: str, *, as_json: bool) -> None:
    if as_json:
        context.console.show_json(answer)
    else:
        context.console.say(words)


COMMANDS = (interrupt, capacity, price, quota, throttle, fail, mend, apply_)
"""In the order of help."""
