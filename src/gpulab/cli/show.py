"""`gpulab show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="show")
@name_argument()
@json_option
@click.pass_obj
def command(context: Context, name: str | None, as_json: bool) -> None:
    """
    Show everything about one instance.

    What it is, where, what it costs and has cost, when and by whom it will be ended, and what it is doing.

    \b
    Example:
      gpulab show
      gpulab show week4 --json
    """
    from gpulab.launch.running import instances, overview
    from gpulab.view.instances import row_json
    from gpulab.view.showing import show_text

    with context.console.patience("Asking AWS and the instance"):
        instance = instances.find(context.launch, name)
        details = instances.details(context.launch, instance)
    row = overview.row(context.launch, instance, status=details.status)
    if as_json:
        context.console.show_json({**row_json(row), "details": details})
    else:
        context.console.show(show_text(row, details, now=context.now()))
