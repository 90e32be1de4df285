"""`gpulab logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import name_argument

if TYPE_CHECKING:
    from gpulab.cli.context import Context


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
@click.pass_obj
def command(
    context: Context, name: str | None, follow: bool, from_console: bool, raw: bool
) -> None:
    """
    Read what the instance wrote while it set itself up.

    \b
    Example:
      gpulab logs --follow
      gpulab logs week4 --console
    """
    from gpulab.launch.running import agent, instances

    instance = instances.find(context.launch, name)
    write = context.console.out.write if raw else context.console.show
    if from_console:
        write(instances.console(context.launch, instance))
        return
    for line in agent.log(instances.host(context.launch, instance), follow=follow):
        write(f"{line}\n" if raw else line)
