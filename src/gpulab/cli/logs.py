"""`gpulab logs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.instance import Instance


@click.command(name="logs")
@name_argument()
@click.option("--follow", "-f", is_flag=True, help="Keep reading until Ctrl-C.")
@click.option(
    "--console",
    "from_console",
    is_flag=True,
    help="The boot text as AWS keeps it; works without ssh.",
)
@click.option("--raw", is_flag=True, help="Print the text as it came; it may drive your terminal.")
@json_option
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    follow: bool,
    from_console: bool,
    raw: bool,
    as_json: bool,
) -> None:
    """
    Read what the instance wrote while it set itself up.

    With `--follow --json` one object on each line.

    \b
    Example:
      gpulab logs --follow
      gpulab logs week4 --console
    """
    from gpulab.launch.running import instances

    if raw and as_json:
        raise WrongUsage("`--raw` and `--json` are two ways to print; take one")
    instance = instances.find(context.launch, name)
    lines = _lines(context, instance, follow=follow, from_console=from_console)
    if as_json and not follow:
        source = "console" if from_console else "agent"
        context.console.show_json({"id": instance.id, "from": source, "lines": list(lines)})
        return
    for line in lines:
        if raw:
            context.console.out.write(f"{line}\n")
        else:
            context.console.show(json.dumps({"line": line}) if as_json else line)


def _lines(
    context: Context, instance: Instance, *, follow: bool, from_console: bool
) -> Iterator[str]:
    from gpulab.launch.running import agent, instances

    if from_console:
        yield from instances.console(context.launch, instance).splitlines()
    else:
        yield from agent.log(instances.host(context.launch, instance), follow=follow)
