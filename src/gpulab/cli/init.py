"""`gpulab init`."""

from __future__ import annotations

import os
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import Amount, json_option, yes_option
from gpulab.errors import CredentialsInvalid, WrongUsage
from gpulab.model.typed import typed

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.view.console import Console


@click.command(name="init")
@click.option(
    "--aws-profile", metavar="NAME", help="Profile of the AWS CLI's configuration to use."
)
@click.option(
    "--paste",
    is_flag=True,
    help="Take the credentials that a class page shows: paste the whole block, [default] aws_access_key_id=..., when asked, or pipe it in.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Regions in order of preference; repeatable.",
)
@click.option(
    "--credit",
    type=Amount(),
    metavar="USD",
    help="What your credit was, USD, where AWS does not say it.",
)
@click.option(
    "--budget",
    type=Amount(),
    metavar="USD",
    help="Most to spend in the term, USD: `up` refuses what does not fit.",
)
@click.option("--course", metavar="ID", help="The course this is for.")
@click.option(
    "--no-resources", is_flag=True, help="Create nothing in the account: no bucket, no roles."
)
@yes_option
@json_option
@click.pass_obj
def command(
    context: Context,
    aws_profile: str | None,
    paste: bool,
    regions: tuple[str, ...],
    credit: Decimal | None,
    budget: Decimal | None,
    course: str | None,
    no_resources: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Set up this computer and the account, once.

    Writes the profile to the configuration, makes your ssh key, and, after asking, a private bucket for your work and the two roles
    that let an instance save to it and let the account end it on schedule. What the account does not allow is said, and done without.
    Running it again changes only what you name.

    \b
    Example:
      gpulab init
      gpulab init --aws-profile course --region eu-north-1 --credit 100 --budget 60
      gpulab init --paste
      pbpaste | gpulab init --paste --yes
    """
    from gpulab.cli.context import context_of
    from gpulab.launch.upkeep import init

    if paste and aws_profile is not None:
        raise WrongUsage(
            "`--paste` and `--aws-profile` exclude each other", hint="Leave one of them out"
        )
    name = (
        context.profile_name
        or context.environment.get("GPULAB_PROFILE")
        or context.home.config().default_profile
    )
    option = context.home.config().option(name)
    pasted = _pasted(context.console) if paste else None
    changes = init.profile_changes(
        context.home,
        name,
        aws_profile=aws_profile,
        pasted=pasted,
        regions=regions,
        credit_usd=credit,
        budget_usd=budget,
        course=course,
    )
    fresh = context_of(context.environment, profile_name=name)
    try:
        who = init.who(fresh.launch)
    except CredentialsInvalid as error:
        raise error.reworded(error.message, hint=_credentials(option)) from error
    console = context.console
    console.say(f"Account {who.account_id}, as {who.name}")
    may = not no_resources and (yes or as_json or _asks(fresh))
    with console.step("Preparing this computer and the account"):
        done = init.set_up(fresh.launch, fresh.home, with_resources=may)
    if as_json:
        console.show_json(
            {"profile": name, "account": who.account_id, "changes": changes, "set_up": done}
        )
        return
    for line in done.lines:
        console.show(line)
    doctor, up, guard = (typed(words, profile=option) for words in ("doctor", "up", "guard"))
    console.say(
        f"Next: {doctor}, then {up}; {guard} shows what AWS itself can do against running costs"
    )


def _credentials(profile: str) -> str:
    return (
        f"{typed('init --paste', profile=profile)} takes the credentials of a class page, `--aws-profile NAME` a profile of the AWS CLI"
        " (log in there first, such as with `aws sso login`); `gpulab sandbox start` needs none"
    )


def _pasted(console: Console) -> str:
    """Read what is pasted or piped in; a person at a terminal is told how the block ends, and would wait for ever otherwise."""
    if console.ask is not None:
        end = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
        console.say(f"Paste the block, then Enter and {end}")
    return sys.stdin.read(65537)


def _asks(context: Context) -> bool:
    return context.console.confirm(
        "Create a private bucket for your work and two narrow roles in this account? They cost nothing while empty."
    )
