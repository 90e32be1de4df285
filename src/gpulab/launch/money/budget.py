"""How much of the term's budget is gone, by the ledger alone: asks AWS nothing."""

from __future__ import annotations

from gpulab.launch.context import Context
from gpulab.model.budget import Allowance, TermBudget
from gpulab.spending.budget import term_budget as compare
from gpulab.spending.facts import LedgerReading, timeline_of


def term_budget(
    context: Context, reading: LedgerReading | None = None, *, besides: str = ""
) -> TermBudget | None:
    """
    Return the profile's budget and what the ledger counts against it; `None` when the profile has none.

    Args:
        reading: The ledger, where it was read already.
        besides: An instance for whose time to come nothing is kept.

    Raises:
        StoreError: The ledger cannot be read: a limit that cannot be checked is not passed.
    """
    allowed = allowance(context)
    if allowed.usd is None:
        return None
    known = timeline_of(context.ledger.facts()) if reading is None else reading
    return compare(known, allowed.usd, owners=allowed.owners, now=context.now(), besides=besides)


def allowance(context: Context) -> Allowance:
    """Return what the profile's own budget allows; what was launched before `gpulab init` named an owner is the same student's."""
    return Allowance(context.profile.budget_usd, frozenset({None, "me", context.owner}))
