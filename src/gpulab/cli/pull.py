"""`gpulab pull`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="pull")
@name_argument()
@click.argument("destination", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--from",
    "source",
    default="work",
    show_default=True,
    metavar="FOLDER",
    help="Folder on the instance, below the login folder or absolute.",
)
@click.option(
    "--lab",
    "is_lab",
    is_flag=True,
    help="Only the folder of the lab's notebooks; DESTINATION is ./ITS-NAME by default.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="NAME",
    help="Leave out files and folders of this name; repeatable.",
)
@click.option(
    "--kept", "is_kept", is_flag=True, help="From the kept copy, even while the instance runs."
)
@json_option
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    destination: Path | None,
    source: str,
    is_lab: bool,
    exclude: tuple[str, ...],
    is_kept: bool,
    as_json: bool,
) -> None:
    """
    Copy files from the instance, or from the kept work.

    DESTINATION is a folder here, by default ./NAME; files that are only here stay. When the instance is gone, the kept copy is read.
    With `--lab` only the folder comes that the lab's notebooks were brought into.

    \b
    Example:
      gpulab pull week4
      gpulab pull week4 --lab
      gpulab pull week4 ./backup --exclude .ipynb_checkpoints
    """
    from gpulab.launch.running import instances, keep, lab_folder
    from gpulab.remote import copying
    from gpulab.view.copies import copy_text, progress_text

    if is_lab and source != "work":
        raise WrongUsage("`--lab` and `--from` exclude each other", hint="Leave one of them out")
    sought = instances.Sought(None) if is_kept else instances.find_alive(context.launch, name)
    instance = sought.instance
    if instance is None:
        for doubt in sought.doubts:
            context.console.say(f"What comes is the kept copy, and a newer one may run: {doubt}")
        work = keep.find(context.launch, name, up=sought.others)
        below = lab_folder.of_kept(context.launch, work) if is_lab else ""
        into = destination or Path(PurePosixPath(below).name or work.name)
        with context.console.step(f"Copying the kept work of {work.name} to {into}"):
            report = keep.fetch(context.launch, work, into, below=below)
    else:
        below = lab_folder.of_instance(context.launch, instance) if is_lab else ""
        source = f"work/{below}" if is_lab else source
        into = destination or Path(PurePosixPath(below).name or instance.name)
        host = instances.host(context.launch, instance)
        with context.console.step(f"Copying {instance.name}:{source} to {into}") as step:
            report = copying.pull(
                host,
                source,
                into,
                exclude=exclude,
                on_progress=lambda p: step.detail(progress_text(p)),
            )
    context.console.show_json(report) if as_json else context.console.show(copy_text(report))
