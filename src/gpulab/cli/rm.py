"""`gpulab rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument, yes_option
from gpulab.errors import AwsError, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="rm")
@name_argument(is_required=True)
@yes_option
@json_option
@click.pass_obj
def command(context: Context, name: str, yes: bool, as_json: bool) -> None:
    """
    Delete kept work.

    Names what will be deleted and asks. It cannot be undone. While an instance of the name is up, or may be, nothing is deleted.

    \b
    Example:
      gpulab rm week4
    """
    from gpulab.launch.running import instances, keep
    from gpulab.view.copies import file_count, size
    from gpulab.view.words import local_time

    work = keep.find(context.launch, name)
    sought = instances.find_alive(context.launch, name)
    if sought.instance is not None:
        raise WrongUsage(
            f"{name} is up, and what it saves belongs to the kept work",
            hint=f"`gpulab stop {name}` first",
        )
    if sought.doubts:
        raise AwsError(
            f"{name} may be up, and what it saves belongs to the kept work: {'; '.join(sought.doubts)}",
            hint="Repeat the command once AWS answers; nothing was deleted",
        )
    when = local_time(work.saved_at, now=context.now()) if work.saved_at else "an unknown time"
    said = f"the kept work of {work.name}: {file_count(work.files)}, {size(work.bytes)}, saved {when}, in {work.where}"
    if not yes and not context.console.confirm(f"Delete {said}? It cannot be undone."):
        context.console.say("Nothing was deleted")
        return
    keep.forget(context.launch, work)
    if as_json:
        context.console.show_json({"deleted": work})
    else:
        context.console.show(f"Deleted {said}")
