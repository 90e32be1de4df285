"""
One launch call, made so that it happens at most once: written down first, repeated with the same token and the same bytes while the
answer is lost, and looked up when even that does not help. Never tries another place.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from gpulab.aws import instances
from gpulab.errors import Ambiguous, GpulabError, SetupMissing, StoreError, Throttled
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Repeating, Warned
from gpulab.launch.money.facts import record_intent
from gpulab.launch.protocol.outcome import LAUNCHED, made_by
from gpulab.model.instance import TAG_LAUNCH, Instance
from gpulab.planning.failover import Next, what_next
from gpulab.store.journal import Intent

# Five tries: at most 1 + 2 + 4 + 8 s of waiting, each shortened by up to half so that a class does not knock in step.
_TRIES = 5


def ask(
    context: Context, intent: Intent, *, is_setup_fresh: bool = False
) -> Generator[Event, None, Instance]:
    """
    Make the call of an intent that is already in the journal, and write down what came of it.

    Args:
        is_setup_fresh: Image, group or key pair were made moments ago; EC2 may not know them everywhere yet.

    Yields:
        `Repeating` before each repetition; `Warned` when ledger or journal could not take down what was done.

    Returns:
        The instance, made now or by an earlier call with the same token.

    Raises:
        Ambiguous, Throttled: Nobody knows, or nobody answers. The intent stays open; the next command resolves it.
        StoreError: AWS refused, and the journal could not take that down: the intent stays open.
        GpulabError: AWS refused; the intent is closed with AWS's code.
    """
    try:
        record_intent(context, intent)
    except StoreError as error:
        # The journal has it already, which is what a launch must not be without.
        yield Warned(context.now(), f"{error.message}; this attempt is not in the ledger")
    try:
        instance = yield from _repeated(context, intent, is_setup_fresh=is_setup_fresh)
    except (Ambiguous, Throttled):
        raise
    except GpulabError as error:
        if what_next(error) is not Next.ADOPT:
            _note_refusal(context, intent, error)
            raise
        found = look_up(context, intent)
        if found is None:
            raise Ambiguous(error.message, hint=error.hint, code=error.code) from error
        instance = found
    try:
        context.journal.conclude(intent, LAUNCHED, instance_id=instance.id, at=context.now())
    except StoreError as error:
        # It runs and costs: it must be armed, written into the ledger and shown. The intent stays open, and the next look settles it.
        text = (
            f"{instance.id} was launched, and the journal could not take that down: {error.message}"
        )
        yield Warned(context.now(), text)
    return instance


def _note_refusal(context: Context, intent: Intent, error: GpulabError) -> None:
    """
    Close the intent of a refused call.

    Raises:
        StoreError: It stays open, and whatever else were launched now would come beside what it is asked for again.
    """
    try:
        context.journal.conclude(intent, error.code or type(error).__name__, at=context.now())
    except StoreError as unwritten:
        raise unwritten.reworded(f"{error.message}; {unwritten.message}") from error


def look_up(context: Context, intent: Intent) -> Instance | None:
    """
    Find what an intent made: by its token, else by its launch.

    Returns:
        The instance, ended or not; `None` when AWS shows none, which proves nothing within the first minutes.
    """
    tokens = {"client-token": [intent.token]}
    for filters in (tokens, {f"tag:{TAG_LAUNCH}": [intent.launch_id]}):
        found = instances.find(context.cloud, intent.region, filters=filters)
        made = made_by(intent, found)
        if made is not None:
            return made
    return None


def pauses(context: Context) -> Iterator[float]:
    """Yield the seconds to wait before each repetition: 1, 2, 4, 8, each times 0.5 to 1."""
    for attempt in range(_TRIES - 1):
        yield 2**attempt * (0.5 + context.random.random() / 2)


def _repeated(
    context: Context, intent: Intent, *, is_setup_fresh: bool
) -> Generator[Event, None, Instance]:
    waits = pauses(context)
    while True:
        try:
            return instances.run(context.cloud, intent.region, intent.parameters, intent.user_data)
        except GpulabError as error:
            if what_next(error) is not Next.SAME_CALL and not _passes(error, is_setup_fresh):
                raise
            wait = next(waits, None)
            if wait is None:
                raise
            yield Repeating(context.now(), error, wait)
            context.sleep(wait)


def _passes(error: GpulabError, is_setup_fresh: bool) -> bool:  # noqa: FBT001 - two facts, one question
    """Whether what EC2 misses was made moments ago, so that it gets to know it; a role takes about ten seconds."""
    return isinstance(error, SetupMissing) and (
        is_setup_fresh or "Instance Profile" in error.detail
    )
