"""`gpulab doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option
from gpulab.errors import ProblemsFound, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="doctor")
@json_option
@click.option(
    "--policy", is_flag=True, help="Print the IAM policy to ask a teacher for, and check nothing."
)
@click.option(
    "--for",
    "commands",
    multiple=True,
    metavar="COMMAND",
    help="With --policy: only what this command of gpulab needs; repeatable.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="With --policy: an instance type to allow instead of the single GPUs of the profile; repeatable.",
)
@click.pass_obj
def command(
    context: Context,
    as_json: bool,
    policy: bool,
    commands: tuple[str, ...],
    types: tuple[str, ...],
) -> None:
    """
    Check, at no cost, all that a launch needs.

    Credentials and their expiry, the account's plan, permissions (by dry runs), the four GPU quotas, the spot role, the clock,
    this computer's address and its ssh. Each line is ok, a warning or failed, with what to do. Exits with 5 when something failed.

    With --policy it asks nobody and prints the least rights your work needs, as JSON to paste into the IAM console: for your owner
    id, your regions and your GPU. Docs: docs/iam/README.md.

    \b
    Example:
      gpulab doctor
      gpulab doctor --policy > policy.json
      gpulab doctor --policy --for up --for stop --type g5.xlarge
      gpulab doctor --json | jq '.checks[] | select(.state == "failed")'
    """
    if policy:
        _show_policy(context, commands, types)
        return
    if commands or types:
        raise WrongUsage(
            "`--for` and `--type` belong to `--policy`", hint="`gpulab doctor --policy --for up`"
        )
    from gpulab.launch.upkeep import doctor

    found = []
    for item in doctor.checks(context.launch):
        found.append(item)
        if not as_json:
            context.console.show(f"{item.state:<8} {item.name}: {item.text}")
            if item.hint:
                context.console.show(f"         {item.hint}")
    failed = [item for item in found if item.state == "failed"]
    if as_json:
        context.console.show_json({"checks": found})
    elif not failed:
        context.console.say("Nothing stands in the way: `gpulab up`")
    if failed:
        names = ", ".join(item.name for item in failed)
        raise ProblemsFound(
            f"{len(failed)} of {len(found)} checks failed: {names}",
            hint="" if as_json else "The failed lines say what to do",
        )


def _show_policy(context: Context, commands: tuple[str, ...], types: tuple[str, ...]) -> None:
    from gpulab.launch.upkeep import rights

    context.console.show_json(rights.least(context.profile, commands=commands, types=types))
