"""`gpulab stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument, yes_option

if TYPE_CHECKING:
    from gpulab.model.instance import Instance

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="stop")
@name_argument()
@click.option("--all", "is_all", is_flag=True, help="Every instance of yours.")
@click.option("--no-save", is_flag=True, help="Do not save; what was not kept before is lost.")
@yes_option
@json_option
@click.pass_obj
def command(
    context: Context, name: str | None, is_all: bool, no_save: bool, yes: bool, as_json: bool
) -> None:
    """
    Save the work and end the instance.

    The work is saved and the copy compared, file by file, before the instance is ended. `gpulab up NAME` brings it back, in any zone.

    \b
    Example:
      gpulab stop
      gpulab stop week4 --json
      gpulab stop --all --yes
    """
    from gpulab.launch import browser, stop
    from gpulab.launch.events import Saved
    from gpulab.view.events import Teller, event_json

    found = _to_end(context, name, is_all=is_all)
    if not found:
        what = f"{name} is not up" if name else "Nothing of yours runs"
        context.console.say(f"{what}; nothing was ended")
    names = ", ".join(f"{i.name} ({i.id})" for i in found)
    risky = (is_all and len(found) > 1) or no_save
    if found and risky and not yes:
        lost = " WITHOUT saving: what was not kept before is lost" if no_save else ""
        if not context.console.confirm(f"End {names}{lost}?"):
            context.console.say("Nothing was ended")
            return
    told = []
    for instance in found:
        teller, kept = Teller(context.console), ""
        try:
            for event in stop.stop(context.launch, instance, save=not no_save):
                teller.tell(event)
                told.append(event_json(event))
                kept = event.where if isinstance(event, Saved) else kept
        finally:
            teller.close()
        browser.close(context.launch, instance)
        if kept:
            up, pull = f"`gpulab up {instance.name}`", f"`gpulab pull {instance.name}`"
            context.console.say(
                f"The work is in {kept}: {up} brings it back, {pull} copies it here"
            )
    if as_json:
        context.console.show_json({"events": told})


def _to_end(context: Context, name: str | None, *, is_all: bool) -> list[Instance]:
    """
    Find what is to be ended; nothing, when it has ended already.

    Raises:
        WrongUsage: Something else is up, more than one is, or not all could be read: that must not read as done.
    """
    from gpulab.launch import instances

    seen = instances.listing(context.launch)
    alive = [i for i in seen.instances if i.state.is_alive]
    if is_all:
        return alive
    fitting = [i for i in alive if name in (None, i.name, i.id)]
    launched = {m.name for m in context.launch.journal.read().made}
    if not fitting and not seen.notes and (not alive or name in launched):
        return []
    return [instances.find(context.launch, name)]
