"""`gpulab push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import complete_names, json_option, valid_name
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="push")
@click.argument(
    "words", nargs=-1, required=True, metavar="[NAME] SOURCE", shell_complete=complete_names
)
@click.option(
    "--to",
    "destination",
    default="work",
    show_default=True,
    metavar="FOLDER",
    help="Folder on the instance, below the login folder or absolute.",
)
@click.option(
    "--lab",
    "is_lab",
    is_flag=True,
    help="Into the folder of the lab's notebooks, instead of `--to`.",
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
    words: tuple[str, ...],
    destination: str,
    is_lab: bool,
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Copy files to the instance.

    Copies the file SOURCE, or what is in the folder SOURCE; files that are only on the instance stay. Every file is compared by its
    hash afterwards.
    Without NAME it is the only instance there is.

    \b
    Example:
      gpulab push ./data
      gpulab push week4 ./data
      gpulab push week4 mnist.npz
      gpulab push week4 solution.ipynb --lab
      gpulab push week4 . --to work/project --exclude .git
    """
    from gpulab.launch.running import instances, lab_folder
    from gpulab.remote import copying
    from gpulab.view.copies import copy_text, progress_text

    name, source = _name_and_source(words)
    if is_lab and destination != "work":
        raise WrongUsage("`--lab` and `--to` exclude each other", hint="Leave one of them out")
    instance = instances.find(context.launch, name)
    if is_lab:
        destination = f"work/{lab_folder.of_instance(context.launch, instance)}"
    host = instances.host(context.launch, instance)
    with context.console.step(f"Copying {source} to {instance.name}:{destination}") as step:
        report = copying.push(
            host,
            source.parent if source.is_file() else source,
            destination,
            only=[source.name] if source.is_file() else (),
            exclude=exclude,
            on_progress=lambda p: step.detail(progress_text(p)),
        )
    context.console.show_json(report) if as_json else context.console.show(copy_text(report))


def _name_and_source(words: tuple[str, ...]) -> tuple[str | None, Path]:
    """
    Tell NAME from SOURCE, which comes last.

    Raises:
        WrongUsage: There are more words, or SOURCE is neither a file nor a folder here.
    """
    *names, last = words
    if len(names) > 1:
        raise WrongUsage(f"`{words[2]}` is one word too many", hint="`gpulab push [NAME] SOURCE`")
    source = Path(last)
    if not source.is_dir() and not source.is_file():
        raise WrongUsage(f"`{last}` does not exist here", hint="`gpulab push [NAME] SOURCE`")
    return (valid_name(names[0]) if names else None), source
