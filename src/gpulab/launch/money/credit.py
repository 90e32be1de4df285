"""What is left of the credit, for a plan. A source that fails costs the figure, never the launch."""

from __future__ import annotations

from decimal import Decimal

from gpulab.errors import GpulabError
from gpulab.launch.context import Context
from gpulab.launch.money.balance import read_balance


def credit_left_usd(
    context: Context, *, is_ledger_enough: bool
) -> tuple[Decimal | None, tuple[str, ...]]:
    """
    Return what all usable credits have left (`None` when no source knows), and what the user should know of the account.

    Args:
        is_ledger_enough: See `read_balance`: saves three calls while something runs, and may count what has ended meanwhile.
    """
    try:
        balance = read_balance(context, is_ledger_enough=is_ledger_enough).balance
    except GpulabError as error:
        return None, (f"the credit is not known: {error.message}",)
    notes = dict.fromkeys(note for answer in balance.answers for note in answer.notes)
    return balance.left_usd, tuple(notes)
