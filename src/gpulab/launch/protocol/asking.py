"""
One launch call, made so that it happens at most once: written down first, repeated with the same token and the same bytes while the
answer is lost, and looked up when even that does not help. Never tries another place.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from gpulab.aws import instances
from gpulab.errors import (
    Ambiguous,
    ClockSkewed,
    CredentialsInvalid,
    GpulabError,
    NotAllowed,
    SetupMissing,
    StoreError,
    Throttled,
)
from gpulab.launch.context import Context
from gpulab.launch.events import Event, Repeating, Warned
from gpulab.launch.money.facts import record_intent
from gpulab.launch.protocol.outcome import LAUNCHED, made_by
from gpulab.model.instance import TAG_LAUNCH, Instance
from gpulab.planning.failover import Next, what_next
from gpulab.store.journal import Intent

# Five tries: at most 1 + 2 + 4 + 8 s of waiting, each shortened by up to half so that a class does not knock in step.
_TRIES = 5


# These say nothing of what an earlier call did: AWS looks who asks before it looks at the token.
BEFORE_THE_TOKEN = (CredentialsInvalid, ClockSkewed, NotAllowed)


def ask(
    context: Context,
    intent: Intent,
    *,
    is_setup_fresh: bool = False,
    may_be_made: bool = False,
) -> Generator[Event, None, Instance]:
    """
    Make the call of an intent that is already in the journal, and write down what came of it.

    Args:
        is_setup_fresh: Image, group or key pair were made moments ago; EC2 may not know them everywhere yet.
        may_be_made: Whether an earlier command has made the call already, so that nobody knows what came of it.

    Yields:
        `Repeating` before each repetition; `Warned` when ledger or journal could not take down what was done.

    Returns:
        The instance, made now or by an earlier call with the same token.

    Raises:
        Ambiguous, Throttled: Nobody knows, or nobody answers. The intent stays open; the next command resolves it.
        CredentialsInvalid, NotAllowed, ...: AWS does not let us ask. The intent stays open where an earlier call may have taken effect.
        StoreError: AWS refused, and the journal could not take that down: the intent stays open.
        GpulabError: AWS refused; the intent is closed with AWS's code.
    """
    try:
        record_intent(context, intent)
    except StoreError as error:
        # The journal has it already, which is what a launch must not be without.
        yield Warned(context.now(), f"{error.message}; this attempt is not in the ledger")
    call = _Call(context, intent, is_setup_fresh=is_setup_fresh, may_be_made=may_be_made)
    try:
        instance = yield from call.repeated()
    except (Ambiguous, Throttled):
        raise
    except GpulabError as error:
        if what_next(error) is Next.ADOPT:
            instance = _adopted(context, intent, error)
        elif call.may_be_made and isinstance(error, BEFORE_THE_TOKEN):
            raise
        else:
            _note_refusal(context, intent, error)
            raise
    try:
        context.journal.conclude(intent, LAUNCHED, instance_id=instance.id, at=context.now())
    except StoreError as error:
        # It runs and costs: it must be armed, written into the ledger and shown. The intent stays open, and the next look settles it.
        text = (
            f"{instance.id} was launched, and the journal could not take that down: {error.message}"
        )
        yield Warned(context.now(), text)
    return instance


def _adopted(context: Context, intent: Intent, refusal: GpulabError) -> Instance:
    """
    Find what another call with the token made.

    Raises:
        Ambiguous: EC2 does not show it, or does not answer: whatever it says, this place has not refused.
    """
    message, hint = refusal.message, refusal.hint
    try:
        found = look_up(context, intent)
    except GpulabError as unseen:
        found, message, hint = None, f"{message}; {unseen.message}", unseen.hint or hint
    if found is None:
        raise Ambiguous(message, hint=hint, code=refusal.code) from refusal
    return found


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


class _Call:
    """
    The one call of an intent, and its repetitions.

    Attributes:
        may_be_made: Whether one whose answer nobody has may have taken effect.
    """

    def __init__(
        self, context: Context, intent: Intent, *, is_setup_fresh: bool, may_be_made: bool
    ) -> None:
        self._context = context
        self._intent = intent
        self._is_setup_fresh = is_setup_fresh
        self.may_be_made = may_be_made

    def repeated(self) -> Generator[Event, None, Instance]:
        """Make it, and again while it may pass."""
        context, intent = self._context, self._intent
        waits = pauses(context)
        while True:
            try:
                return instances.run(
                    context.cloud, intent.region, intent.parameters, intent.user_data
                )
            except GpulabError as error:
                is_same_call = what_next(error) is Next.SAME_CALL
                self.may_be_made |= is_same_call
                if not is_same_call and not _passes(error, self._is_setup_fresh):
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
