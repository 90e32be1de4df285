"""
`gpulab up`: look, decide, show, ask, do, write down. Repeating it after any interruption leads to one instance, never to two.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from gpulab.errors import GpulabError
from gpulab.launch.context import Context
from gpulab.launch.events import (
    AlreadyUp,
    Declined,
    Event,
    Planned,
    Question,
    StartPlan,
    Warned,
)
from gpulab.launch.money.facts import record_disks, record_found
from gpulab.launch.money.rebuilding import complete
from gpulab.launch.offers.route import Route
from gpulab.launch.protocol import resuming, scheduled_end
from gpulab.launch.protocol.attempts import Attempts
from gpulab.launch.protocol.attempts import until_running as wait_until_running
from gpulab.launch.running.booting import until_ready
from gpulab.model.instance import Instance, LaunchPlan, LaunchRequest

Confirm = Callable[[Question], bool]


def plan(context: Context, request: LaunchRequest) -> LaunchPlan:
    """
    Decide what would be tried first and what it would cost; reads only.

    Raises:
        GpulabError: A refusal (see `plan_launch`), or AWS does not answer.
    """
    return Route(context, request).next_plan()


def up(context: Context, request: LaunchRequest, *, confirm: Confirm) -> Iterator[Event]:
    """
    Start an instance of a name, or find the one that is up, and wait until JupyterLab answers.

    Args:
        confirm: Asks the user before money is spent: `StartPlan`, and `BuyOnDemand` when no spot place had one.

    Yields:
        What happens; the last event is `Ready`, or `Declined`.

    Raises:
        Refused: By a limit, before any money; or another gpulab is launching the name.
        GpulabError: Nothing runs, or nobody knows (`Ambiguous`): the same command again settles it.
    """
    found = yield from until_running(context, request, confirm=confirm)
    if found is not None:
        instance, is_new = found
        yield from until_ready(context, instance, is_new=is_new, wanted=request.notebooks)


def until_running(
    context: Context, request: LaunchRequest, *, confirm: Confirm
) -> Generator[Event, None, tuple[Instance, bool] | None]:
    """
    The first half of `up`: until EC2 says `running`.

    Returns:
        The instance, and whether it was launched just now; `None` when the user declined.

    Raises:
        GpulabError: As `up`.
    """
    with context.journal.launching(request.name):
        return (yield from _launched_or_found(context, request, confirm))


def _launched_or_found(
    context: Context, request: LaunchRequest, confirm: Confirm
) -> Generator[Event, None, tuple[Instance, bool] | None]:
    resumed = yield from resuming.resume(context, request)
    if resumed is not None:
        return (yield from _found(context, resumed)), False
    route = Route(context, request)
    existing = route.already_up() or resuming.known_elsewhere(context, request)
    if existing is not None:
        yield AlreadyUp(context.now(), existing)
        return (yield from _found(context, existing)), False
    decided = route.next_plan()
    yield Planned(context.now(), decided)
    if not confirm(StartPlan(decided)):
        yield Declined(context.now())
        return None
    attempts = Attempts(context, decided, confirm=confirm, further=route.further)
    return (yield from attempts.run()), True


def _found(context: Context, instance: Instance) -> Generator[Event, None, Instance]:
    """Finish what an interrupted command may have left undone: the ledger, the scheduled end, and waiting for `running`."""
    yield from _written_down(context, lambda: record_found(context, instance))
    if instance.expires_at is not None:
        yield scheduled_end.told(context, scheduled_end.ensure(context, instance))
    try:
        running = yield from wait_until_running(context, instance)
    except GpulabError as error:
        hint = error.hint or f"`gpulab up {instance.name}` launches a new one"
        raise error.reworded(error.message, hint=hint) from error
    region = instance.place.region
    yield from _written_down(context, lambda: complete(context, region, instance.id))
    yield from _written_down(context, lambda: _record_disks(context, running))
    return running


def _record_disks(context: Context, instance: Instance) -> None:
    """Write down the disk as it was asked for, where the account has not shown it: EC2 names it before it lists it."""
    made = context.journal.read().made
    disk_gib = next((m.disk_gib for m in made if m.instance_id == instance.id), None)
    if disk_gib is not None:
        record_disks(context, instance, disk_gib=disk_gib)


def _written_down(context: Context, write: Callable[[], None]) -> Iterator[Event]:
    """Write into the ledger; one that cannot be written is told and stops nothing that already costs."""
    try:
        write()
    except GpulabError as error:
        yield Warned(context.now(), f"{error.message}; `gpulab ledger rebuild` adds it later")
