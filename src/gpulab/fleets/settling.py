"""
What interrupted commands left open in one account's journal, for all of a class at once: three calls, not three for each student.

The rules are those of a single launch (`launch/protocol/outcome.py`): what EC2 shows is written down, what it does not show within ten minutes
was never made, and what is younger stays open, to be asked for again with the same token and the same bytes. What is found is written
into the ledger too: whoever launched it was killed before it could.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpulab.aws import instances
from gpulab.errors import StoreError
from gpulab.fleets.accounts import Account
from gpulab.launch.context import Context
from gpulab.launch.money.facts import record_found
from gpulab.launch.protocol.outcome import SHOWN, is_open, is_unlisted, made_by, result_of
from gpulab.model.instance import Instance
from gpulab.store.journal import Intent, Made

_VALUES_A_FILTER = 200


@dataclass(frozen=True)
class Settled:
    """
    What an account's journal adds to its listing.

    Attributes:
        unlisted: Live instances that the listing does not show yet.
        open_intents: Launches of which nobody knows; asked again by whoever launches, never anew.
    """

    unlisted: tuple[Instance, ...]
    open_intents: tuple[Intent, ...]


def settle(
    account: Account, names: Iterable[str], listed: Sequence[Instance], *, may_write: bool
) -> Settled:
    """
    Settle the launches of some names.

    Args:
        listed: What the account's regions show.
        may_write: Whether results may be written down; not while another command launches the same lab.
    """
    context, wanted = account.looking, set(names)
    story = context.journal.read()
    known = {i.id for i in listed}
    fresh = [
        m
        for m in story.made
        if m.name in wanted and m.instance_id not in known and is_unlisted(m, now=context.now())
    ]
    unlisted = [i for i in _read(context, fresh) if i.state.is_alive]
    ours = [i for i in story.open_intents if i.name in wanted]
    candidates = [*listed, *unlisted]
    hidden = [i for i in ours if not made_by(i, candidates)]
    looked_up = _look_up(context, hidden)
    results = [(intent, made_by(intent, [*candidates, *looked_up])) for intent in ours]
    left = [intent for intent, made in results if is_open(intent, made, now=context.now())]
    if may_write:
        _close(context, [result for result in results if result[0] not in left])
    seen = {i.id for i in candidates}
    unlisted += [i for i in looked_up if i.state.is_alive and i.id not in seen]
    return Settled(tuple(unlisted), tuple(left))


def _close(context: Context, results: Sequence[tuple[Intent, Instance | None]]) -> None:
    """Write down what became of them; a ledger that cannot be written now is completed by `fleet up`."""
    with contextlib.suppress(StoreError):
        record_found(context, *(made for _, made in results if made))
    for intent, made in results:
        outcome, instance_id = result_of(made)
        context.journal.conclude(intent, outcome, instance_id=instance_id, at=context.now())


def _look_up(context: Context, intents: Sequence[Intent]) -> list[Instance]:
    """Ask for what the tokens have made, two hundred a call."""
    by_region: dict[str, list[str]] = {}
    for intent in intents:
        by_region.setdefault(intent.region, []).append(intent.token)
    found: list[Instance] = []
    for region, tokens in by_region.items():
        for begin in range(0, len(tokens), _VALUES_A_FILTER):
            some = tokens[begin : begin + _VALUES_A_FILTER]
            found += instances.find(context.cloud, region, filters={"client-token": some})
    return found


def _read(context: Context, fresh: Sequence[Made]) -> list[Instance]:
    """Read what was made moments ago by its id, waiting for EC2 to know it where it is very young."""
    found: list[Instance] = []
    missing = {m.instance_id: m for m in fresh}
    begun = context.now()
    while missing:
        for region in sorted({m.region for m in missing.values()}):
            ids = [i for i, m in missing.items() if m.region == region]
            for instance in instances.read_many(context.cloud, region, ids):
                found.append(instance)
                del missing[instance.id]
        now = context.now()
        # A clock that was set back since must not prolong it.
        missing = {i: m for i, m in missing.items() if now - min(m.at, begun) < SHOWN}
        if missing:
            context.sleep(2)
    return found
