"""`gpulab stop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpulab.cli.interrupted import explained, left_by_stop
from gpulab.cli.options import json_option, name_argument, yes_option
from gpulab.errors import GpulabError, SomeFailed, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.instance import Instance


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
    if name and is_all:
        raise WrongUsage(
            f"`{name}` and `--all` exclude each other", hint=f"`gpulab stop {name}` ends that one"
        )
    found, unread = _to_end(context, name, is_all=is_all)
    if not found and unread:
        context.console.say("Nothing of yours runs where AWS answered; nothing was ended")
    elif not found:
        what = f"{name} is not up" if name else "Nothing of yours runs"
        context.console.say(f"{what}; nothing was ended")
    elif not _may(context, found, is_all=is_all, no_save=no_save, yes=yes):
        context.console.say("Nothing was ended")
        return
    told: list[dict[str, Any]] = []
    with explained(lambda: left_by_stop(_not_ended(found, told))):
        failed = _end_each(context, found, told, save=not no_save)
    if as_json:
        context.console.show_json({"events": told})
    _raise_failures(failed, count=len(found))
    if unread:
        raise SomeFailed(
            f"not everything could be looked at: {'; '.join(unread)}",
            hint="What runs there was not ended; stop again once it answers",
        )


def _to_end(
    context: Context, name: str | None, *, is_all: bool
) -> tuple[list[Instance], tuple[str, ...]]:
    """
    Find what is to be ended; nothing, when it has ended already. For all of them, also say what could not be read.

    Raises:
        WrongUsage: Something else is up, more than one is, or not all could be read: that must not read as done.
    """
    from gpulab.launch.running import instances

    seen = instances.listing(context.launch)
    alive = [i for i in seen.instances if not i.state.is_over]
    if is_all:
        return alive, seen.notes
    fitting = [i for i in alive if name in (None, i.name, i.id)]
    launched = {m.name for m in context.launch.journal.read().made}
    if not fitting and not seen.notes and (not alive or name in launched):
        return [], ()
    return [instances.find(context.launch, name)], ()


def _may(
    context: Context, found: Sequence[Instance], *, is_all: bool, no_save: bool, yes: bool
) -> bool:
    """Ask where more than one is ended, or work may be lost."""
    if yes or not (no_save or (is_all and len(found) > 1)):
        return True
    names = ", ".join(f"{i.name} ({i.id})" for i in found)
    lost = " WITHOUT saving: what was not kept before is lost" if no_save else ""
    return context.console.confirm(f"End {names}{lost}?")


def _not_ended(found: Sequence[Instance], told: Sequence[Mapping[str, Any]]) -> list[str]:
    ended = {event["instance"].id for event in told if event["event"] == "Ended"}
    return [i.name or i.id for i in found if i.id not in ended]


def _end_each(
    context: Context, found: Sequence[Instance], told: list[dict[str, Any]], *, save: bool
) -> list[GpulabError]:
    """End one after the other; one that cannot be ended does not keep the others running. `told` is added what happens."""
    from gpulab.launch.events import Saved
    from gpulab.launch.running import browser, stop
    from gpulab.view.events import Teller, event_json

    failed: list[GpulabError] = []
    for instance in found:
        teller, kept = Teller(context.console), ""
        try:
            for event in stop.stop(context.launch, instance, save=save):
                teller.tell(event)
                told.append(event_json(event))
                kept = event.where if isinstance(event, Saved) else kept
        except GpulabError as error:
            failed.append(error)
            continue
        finally:
            teller.close()
        browser.close(context.launch, instance)
        if kept:
            up, pull = f"`gpulab up {instance.name}`", f"`gpulab pull {instance.name}`"
            context.console.say(
                f"The work is in {kept}: {up} brings it back, {pull} copies it here"
            )
    return failed


def _raise_failures(failed: Sequence[GpulabError], *, count: int) -> None:
    if count == 1 and failed:
        raise failed[0]
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {count} were not ended: {'; '.join(e.message for e in failed)}",
            hint="; ".join(dict.fromkeys(e.hint for e in failed if e.hint)),
        )
