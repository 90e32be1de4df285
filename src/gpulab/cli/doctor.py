"""`gpulab doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option
from gpulab.errors import ProblemsFound

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="doctor")
@json_option
@click.option("--check", is_flag=True, help="Exit with 5 when something failed.")
@click.pass_obj
def command(context: Context, as_json: bool, check: bool) -> None:
    """
    Check, at no cost, all that a launch needs.

    Credentials and their expiry, the account's plan, permissions (by dry runs), the four GPU quotas, the spot role, the clock,
    this computer's address and its ssh. Each line is ok, a warning or failed, with what to do.

    \b
    Example:
      gpulab doctor
      gpulab doctor --json | jq '.checks[] | select(.state == "failed")'
    """
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
    if check and failed:
        raise ProblemsFound(f"{len(failed)} of {len(found)} checks failed")
