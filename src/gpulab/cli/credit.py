"""`gpulab credit`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import Amount, json_option, yes_option
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.model.balance import Spent
    from gpulab.spending.facts import LedgerReading
    from gpulab.spending.forecast import PlannedLab


@click.command(name="credit")
@click.option(
    "--plan",
    "plan_hours",
    metavar="HOURS",
    type=click.FloatRange(0.1, 1000),
    help="Say what a lab of so many hours costs.",
)
@click.option(
    "--at",
    "usd_per_hour",
    metavar="USD",
    type=Amount(),
    help="Price per hour of the planned lab.  [default: that of your last launch]",
)
@click.option(
    "--cost-explorer",
    "ask_cost_explorer",
    is_flag=True,
    help="Also ask Cost Explorer: AWS takes $0.01 a request; asked at most once a day.",
)
@click.option("--fresh", is_flag=True, help="Ask AWS again even when it was asked within the hour.")
@yes_option
@json_option
@click.pass_obj
def command(
    context: Context,
    plan_hours: float | None,
    usd_per_hour: Decimal | None,
    ask_cost_explorer: bool,
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Show what is left and how long it lasts.

    Asks `billing:GetCredits`, then `freetier:GetAccountPlanState`; where neither answers, takes the figure you typed minus the ledger.

    \b
    Example:
      gpulab credit
      gpulab credit --plan 4
    """
    from gpulab.launch.money.balance import read_balance
    from gpulab.launch.money.budget import term_budget
    from gpulab.spending.forecast import burn_of, lasts_until, spent_between
    from gpulab.view.report_credit import CreditView, credit_json, credit_lines

    now = context.now()
    reading = read_balance(context.launch, is_fresh=fresh)
    timeline, left = reading.ledger.timeline, reading.balance.left_usd
    burn = burn_of(timeline, now=now)
    week_usd = spent_between(timeline, now - timedelta(days=7), now)
    view = CreditView(
        balance=reading.balance,
        burn=burn,
        ends_at=None if left is None else lasts_until(left, burn.usd_per_hour, now=now),
        week_usd=week_usd,
        week_ends_at=None if left is None else lasts_until(left, week_usd / (7 * 24), now=now),
        spent_usd=spent_between(timeline, None, now),
        budget=term_budget(context.launch, reading.ledger),
        plan=_plan(context, reading.ledger, plan_hours, usd_per_hour),
        cost_explorer=_cost_explorer(context, yes=yes) if ask_cost_explorer else None,
    )
    if as_json:
        context.console.show_json(credit_json(view))
    else:
        context.console.show("\n".join(credit_lines(view, now=now)))


def _plan(
    context: Context, ledger: LedgerReading, hours: float | None, usd_per_hour: Decimal | None
) -> PlannedLab | None:
    from gpulab.spending.forecast import last_price, planned_lab

    if hours is None:
        return None
    price = usd_per_hour or last_price(ledger)
    if price is None:
        raise WrongUsage(
            "no price is known for the planned lab",
            hint="Name one with `--at 0.25`, see `gpulab prices`",
        )
    return planned_lab(Decimal(str(hours)), usd_per_hour=price, disk_gb=context.profile.disk_gib)


def _cost_explorer(context: Context, *, yes: bool) -> Spent:
    """Ask Cost Explorer, its price said first."""
    from gpulab.launch.money.balance import cost_explorer, remembered_cost_explorer

    known = remembered_cost_explorer(context.launch)
    if known is not None:
        return known
    context.console.say("Cost Explorer: AWS takes $0.01 for this request, from your credit")
    if not yes:
        click.confirm("Ask it?", abort=True, err=True)
    spent, _ = cost_explorer(context.launch)
    return spent
