"""What Ctrl-C leaves behind, said by the command that was interrupted: what goes on costing, what goes on with it, what ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from gpulab.errors import Interrupted

if TYPE_CHECKING:
    from gpulab.launch.events import Event


@contextlib.contextmanager
def explained(hint: Callable[[], str]) -> Iterator[None]:
    """
    Let Ctrl-C say what it leaves behind.

    Args:
        hint: Asked at that moment only, as it depends on how far the command came.

    Raises:
        Interrupted: Ctrl-C was pressed.
    """
    try:
        yield
    except (KeyboardInterrupt, click.Abort) as pressed:
        raise Interrupted("interrupted", hint=hint()) from pressed


def left_by_up(name: str, told: Sequence[Event]) -> str:
    """Say what an interrupted `gpulab up` leaves: nothing that costs, what may run, or what does."""
    from gpulab.launch import events
    from gpulab.view.words import per_hour

    goes_on, ends = f"`gpulab up {name}` goes on", f"`gpulab stop {name}` ends it"
    is_asked = False
    for event in reversed(told):
        match event:
            case events.Attempting(offer=offer):
                cost = f"at {per_hour(offer.usd_per_hour)}, disk and address beside it"
                where = f"in {offer.place.zone}"
                return f"{name} may have been launched {where} and cost {cost}: {goes_on}, {ends}"
            case events.Launched(instance=instance, offer=offer):
                cost = f"{per_hour(offer.usd_per_hour)}, disk and address beside it"
                return f"{name} ({instance.id}) runs and costs {cost}: {goes_on}, {ends}"
            case events.AlreadyUp(instance=instance) | events.Resumed(instance=instance):
                return f"{name} ({instance.id}) runs and costs: {goes_on}, {ends}"
            case events.PlaceRefused() | events.Planned():
                return f"nothing was launched; {goes_on}"
            case events.Repeating() | events.WaitingFor(what="open launch"):
                is_asked = True
    if is_asked:
        # A launch of an earlier command was asked for again, or looked for.
        return f"{name} may have been launched by an earlier command and cost: {goes_on}, {ends}"
    return f"{goes_on}; `gpulab ls` shows what runs"


def left_by_stop(names: Sequence[str]) -> str:
    """Say what an interrupted `gpulab stop` leaves: what AWS has not been asked to end runs on."""
    if not names:
        return "AWS has ended it; `gpulab ls` shows what else runs"
    again = ", ".join(f"`gpulab stop {name}`" for name in names)
    return f"{', '.join(names)} may run on and cost: {again} saves and ends it; `gpulab ls` shows what runs"


def left_by_ticket() -> str:
    """Say what is left when the tunnel of a ticket is closed."""
    return "Only the tunnel is closed: the instance goes on, and the same command opens it again"


class OfLab(click.Command):
    """A command about a whole lab: Ctrl-C says how to look at that lab's instances, which `gpulab ls` does not show."""

    def invoke(self, ctx: click.Context) -> object:
        """Run it."""
        with explained(lambda: left_by_fleet(str(self.name), ctx.params["lab_id"])):
            return super().invoke(ctx)


def left_by_fleet(command: str, lab: str) -> str:
    """Say what an interrupted command on a class leaves: what runs goes on and costs."""
    again = f"`gpulab fleet {command} {lab}` goes on"
    ends = "" if command == "stop" else f", `gpulab fleet stop {lab}` ends all"
    return f"what runs goes on and costs: `gpulab fleet ls {lab}` shows it, {again}{ends}"
