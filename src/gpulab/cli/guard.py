"""`gpulab guard`: what the account does by itself against running costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import Amount, json_option, yes_option
from gpulab.errors import ProblemsFound, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.guard import GuardCheck

_EMAIL = re.compile(r"[^\s@,;<>]+@[^\s@,;<>]+\.[^\s@,;<>]+")


@click.group(invoke_without_command=True)
@json_option
@click.option("--check", is_flag=True, help="Exit with 5 when a guard is not armed.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, check: bool) -> None:
    """
    Show and arm what the account does by itself against running costs.

    A budget that counts before credits, its e-mails at 50, 80 and 100 %, a policy that forbids launches when it is spent, and the
    scheduled end of each instance. Each is read back from AWS. AWS counts cost 8 to 12 h late or more, so the budget forbids the
    next launch; what ends an instance in time is its own timer, its own budget and its scheduled end.

    \b
    Example:
      gpulab guard
      gpulab guard arm --budget 60 --email ann@example.org
    """
    if ctx.invoked_subcommand is None:
        _show(ctx.obj, as_json=as_json, check=check)


@command.command("show")
@json_option
@click.option("--check", is_flag=True, help="Exit with 5 when a guard is not armed.")
@click.pass_obj
def show(context: Context, as_json: bool, check: bool) -> None:
    """
    Show which guards are armed, as AWS says it.

    \b
    Example:
      gpulab guard show
      gpulab guard show --check
    """
    _show(context, as_json=as_json, check=check)


@command.command("arm")
@click.option(
    "--budget",
    type=Amount(),
    metavar="USD",
    help="For the account's calendar year, USD, before credits.  [default: the profile's budget]",
)
@click.option("--email", metavar="ADDRESS", required=True, help="Who is told at 50, 80 and 100 %.")
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="NAME",
    help="IAM user who may launch nothing more at 100 %; repeatable.  [default: you]",
)
@click.option(
    "--role", "roles", multiple=True, metavar="NAME", help="The same for an IAM role; repeatable."
)
@click.option("--check", is_flag=True, help="Exit with 5 when a guard is not armed.")
@yes_option
@json_option
@click.pass_obj
def arm(
    context: Context,
    budget: Decimal | None,
    email: str,
    users: tuple[str, ...],
    roles: tuple[str, ...],
    check: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Arm what the account allows, read it back, and say what is not armed and why.

    Makes one AWS budget, one policy and one role, after asking. Two such budgets are free in an account; AWS takes $0.10 a day for
    each further one that acts. Running it again changes what you name.

    \b
    Example:
      gpulab guard arm --email ann@example.org
      gpulab guard arm --budget 60 --email ann@example.org --user ann --user bo
    """
    from gpulab.launch.upkeep import guards
    from gpulab.model.guard import Principals

    limit = budget or context.profile.budget_usd
    if not limit:
        raise WrongUsage(
            "how much the account may spend is not known",
            hint="Name it with `--budget 60`, or `gpulab init --budget 60`",
        )
    if not _EMAIL.fullmatch(email):
        raise WrongUsage(
            f"`{email}` is not an e-mail address", hint="`--email ann@example.org`, one address"
        )
    question = f"Make a budget of ${limit:.2f} that tells {email} and forbids launches when it is spent, in this account?"
    if not (yes or context.console.confirm(question)):
        context.console.say("Nothing was changed")
        return
    with context.console.step("Arming the account's guards"):
        found = guards.arm(
            context.launch,
            limit_usd=limit,
            email=email,
            targets=Principals(tuple(sorted(set(users))), tuple(sorted(set(roles)))),
        )
    _tell(context, found, as_json=as_json, check=check)


@command.command("disarm")
@yes_option
@json_option
@click.pass_obj
def disarm(context: Context, yes: bool, as_json: bool) -> None:
    """
    Allow launches again and remove the budget, its policy and its role.

    The scheduled ends of what runs stay: each belongs to its instance.

    \b
    Example:
      gpulab guard disarm
    """
    from gpulab.launch.upkeep import guards

    question = f"Remove the budget {guards.budget_name(context.launch)} and all it does?"
    if not (yes or context.console.confirm(question)):
        context.console.say("Nothing was changed")
        return
    done = guards.disarm(context.launch)
    if as_json:
        context.console.show_json({"done": done})
        return
    for line in done:
        context.console.show(line)


def _show(context: Context, *, as_json: bool, check: bool) -> None:
    from gpulab.launch.upkeep import guards

    _tell(context, guards.checks(context.launch), as_json=as_json, check=check)


def _tell(context: Context, found: Sequence[GuardCheck], *, as_json: bool, check: bool) -> None:
    from gpulab.launch.upkeep.guards import DELAY

    if as_json:
        context.console.show_json({"guards": found, "notes": [DELAY]})
    else:
        for item in found:
            state = "armed" if item.is_armed else "not armed"
            context.console.show(f"{state:<9}  {item.name}: {item.text}")
            if item.hint:
                context.console.show(f"           {item.hint}")
        context.console.say(f"note: {DELAY}")
    missing = [item for item in found if not item.is_armed]
    if check and missing:
        raise ProblemsFound(
            f"{len(missing)} of {len(found)} guards are not armed: {', '.join(i.name for i in missing)}",
            hint="" if as_json else "The lines above say what to do",
        )
