"""`gpulab push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="push")
@name_argument()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to",
    "destination",
    default="work",
    show_default=True,
    metavar="FOLDER",
    help="Folder on the instance, below the login folder or absolute.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="NAME",
    help="Leave out files and folders of this name; repeatable.",
)
@json_option
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    source: Path,
    destination: str,
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Copy files to the instance.

    Copies what is in SOURCE; files that are only on the instance stay. Every file is compared by its hash afterwards.

    \b
    Example:
      gpulab push week4 ./data
      gpulab push week4 . --to work/project --exclude .git
    """
    from gpulab.launch import instances
    from gpulab.remote import copying
    from gpulab.remote.host import Host
    from gpulab.view.copies import copy_text, progress_text

    instance = instances.find(context.launch, name)
    host = Host(instances.target(context.launch, instance))
    with context.console.step(f"Copying {source} to {instance.name}:{destination}") as step:
        report = copying.push(
            host,
            source,
            destination,
            exclude=exclude,
            on_progress=lambda p: step.detail(progress_text(p)),
        )
    context.console.show_json(report) if as_json else context.console.show(copy_text(report))
