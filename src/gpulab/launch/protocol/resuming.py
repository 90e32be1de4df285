"""
What earlier commands left open: launches whose answer was never written down. Found, or asked again with the same token; never doubled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator

from gpulab.aws import instances
from gpulab.errors import Ambiguous, GpulabError, NotFound, StoreError, Throttled
from gpulab.launch.context import Context
from gpulab.launch.events import AlreadyUp, Event, Resumed, WaitingFor, Warned
from gpulab.launch.money.facts import record_found
from gpulab.launch.protocol.asking import BEFORE_THE_TOKEN, ask, look_up
from gpulab.launch.protocol.outcome import (
    SHOWN,
    UNLISTED,
    is_open,
    is_unlisted,
    market_of,
    result_of,
)
from gpulab.model.instance import Instance, LaunchRequest
from gpulab.model.market import Market
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import types_for
from gpulab.store.journal import Intent, Made

# Between two looks for what a launch made that is not wanted any more.
_LOOK_S = 10.0


def resume(context: Context, request: LaunchRequest) -> Generator[Event, None, Instance | None]:
    """
    Resolve what is open before something new is launched under a name.

    Yields:
        `Resumed` for an instance found again, `AlreadyUp` for one that was launched moments ago; `Warned` for what stays open.

    Returns:
        The live instance of that name, if an earlier launch made one.

    Raises:
        GpulabError: AWS does not answer, so nobody knows; nothing new may be launched.
    """
    story = context.journal.read()
    if story.torn_lines:
        lines = ", ".join(map(str, story.torn_lines))
        yield Warned(context.now(), f"the journal has unreadable lines ({lines}); they are skipped")
    for intent in story.open_intents:
        if intent.name != request.name:
            yield from _settle_other(context, intent)
            continue
        instance = yield from _settle(context, intent, request)
        if instance is not None and instance.state.is_alive:
            yield Resumed(context.now(), instance)
            return instance
    young = _made_moments_ago(context, request.name)
    if young is not None:
        yield AlreadyUp(context.now(), young)
    return young


def look_back(context: Context) -> tuple[Intent, ...]:
    """
    Close open launches that can be settled by looking; launch nothing. For commands that only read.

    Returns:
        What stays open: too young to tell, or AWS did not answer.
    """
    left = []
    for intent in context.journal.read().open_intents:
        if context.journal.is_launching(intent.name):
            continue
        try:
            if not _is_settled_by_looking(context, intent):
                left.append(intent)
        except GpulabError:
            left.append(intent)
    return tuple(left)


def unlisted(
    context: Context, listed: Collection[str], *, regions: Collection[str]
) -> tuple[Instance, ...]:
    """
    Read what was launched moments ago and a listing has missed: it costs, and whoever stops it must find it.

    Args:
        listed: Ids of what was listed; nothing is asked when it holds all.
        regions: Those that answered.
    """
    now = context.now()
    young = (
        made
        for made in context.journal.read().made
        if is_unlisted(made, now=now) and made.region in regions and made.instance_id not in listed
    )
    read = (_read_patiently(context, made) for made in young)
    return tuple(i for i in read if i is not None and not i.state.is_over)


def known_elsewhere(context: Context, request: LaunchRequest) -> Instance | None:
    """
    Find a live instance of the name that this computer launched in a region other than the first.

    Asks AWS only if the journal's last launch of that name went elsewhere.
    """
    last = next((m for m in reversed(context.journal.read().made) if m.name == request.name), None)
    if last is None or last.region == request.regions[0]:
        return None
    try:
        found = instances.read(context.cloud, last.region, last.instance_id)
    except NotFound:
        return None
    return found if found.state.is_alive else None


def _settle_other(context: Context, intent: Intent) -> Generator[Event, None, None]:
    """Settle a launch of another name as far as looking goes."""
    if context.journal.is_launching(intent.name):
        return
    if not _is_settled_by_looking(context, intent):
        text = f"an interrupted launch of {intent.name} is still open; `gpulab up {intent.name}` settles it"
        yield Warned(context.now(), text)


def _settle(
    context: Context, intent: Intent, request: LaunchRequest
) -> Generator[Event, None, Instance | None]:
    """Find what an open launch of our name made; young ones are asked for again, with the same token and bytes."""
    found = look_up(context, intent)
    if found is None and not _is_wanted(intent, request):
        found = yield from _look_patiently(context, intent)
    elif is_open(intent, found, now=context.now()):
        return (yield from _asked_again(context, intent))
    try:
        _close(context, intent, found)
    except StoreError as error:
        if found is None or not found.state.is_alive:
            raise
        # It stays open and is found again; what runs and costs is not kept from its user.
        yield Warned(context.now(), error.message)
    return found


def _asked_again(context: Context, intent: Intent) -> Generator[Event, None, Instance | None]:
    try:
        return (yield from ask(context, intent, may_be_made=True))
    except (Ambiguous, Throttled, StoreError, *BEFORE_THE_TOKEN):
        raise
    except GpulabError as error:
        # Refused: then it was never made, and the way is free for a new plan.
        yield Warned(context.now(), f"the interrupted launch came to nothing: {error.message}")
        return None


def _is_settled_by_looking(context: Context, intent: Intent) -> bool:
    found = look_up(context, intent)
    if is_open(intent, found, now=context.now()):
        return False
    _close(context, intent, found)
    return True


def _look_patiently(context: Context, intent: Intent) -> Generator[Event, None, Instance | None]:
    """
    Look until EC2 must list what was made; for a wish that has changed, as what nobody wants any more is not asked for again.

    From now on, not from when it was written down: its last call may have been made minutes later, and a clock may have been set back.
    """
    begun = context.now()
    found = None
    while is_open(intent, found, now=context.now()) and context.now() - begun < UNLISTED:
        kind = intent.parameters["InstanceType"]
        yield WaitingFor(context.now(), "open launch", f"{kind} in {intent.region}")
        context.sleep(_LOOK_S)
        found = look_up(context, intent)
    return found


def _close(context: Context, intent: Intent, found: Instance | None) -> None:
    outcome, instance_id = result_of(found)
    if found is not None:
        # Its launcher was killed before the ledger knew; a ledger that cannot be written now is completed by `up` and `stop`.
        with contextlib.suppress(StoreError):
            record_found(context, found)
    context.journal.conclude(intent, outcome, instance_id=instance_id, at=context.now())


def _is_wanted(intent: Intent, request: LaunchRequest) -> bool:
    """
    Whether the launch that is open is still what the user asks for.

    One that was bought on demand was asked for, then or by its question, unless spot alone is asked for now.
    """
    wanted = {t.name for t in types_for(request, instance_types())}
    markets = request.markets if request.spot_only else (*request.markets, Market.ON_DEMAND)
    return (
        intent.parameters["InstanceType"] in wanted
        and intent.region in request.regions
        and market_of(intent) in markets
    )


def _made_moments_ago(context: Context, name: str) -> Instance | None:
    """Read an instance that was launched so recently that a listing may still miss it."""
    for made in reversed(context.journal.read().made):
        if made.name == name and is_unlisted(made, now=context.now()):
            instance = _read_patiently(context, made)
            if instance is not None:
                return instance if instance.state.is_alive else None
    return None


def _read_patiently(context: Context, made: Made) -> Instance | None:
    """Read an instance by its id, which EC2 may not know everywhere in its first seconds."""
    begun = context.now()
    while True:
        try:
            return instances.read(context.cloud, made.region, made.instance_id)
        except NotFound:
            # A clock that was set back since must not prolong it.
            if context.now() - min(made.at, begun) > SHOWN:
                return None
            context.sleep(2)
