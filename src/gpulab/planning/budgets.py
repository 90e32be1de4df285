"""What a budget allows of a plan: refusing, warning, and the budget that the instance itself keeps. Hides the arithmetic of what still fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from gpulab.errors import CreditTooLow, Refused
from gpulab.model.budget import TermBudget
from gpulab.model.instance import LaunchPlan, LaunchRequest

_CENT = Decimal("0.01")
# About what an instance needs until JupyterLab answers and the work can be kept again.
_WORTH_STARTING = timedelta(minutes=10)
_SPENT = "`gpulab report` shows where it went; `gpulab init --budget` sets another"


def with_own_budget(request: LaunchRequest, term: TermBudget | None) -> LaunchRequest:
    """Bound what the instance may spend by what is left of the term, in whole cents: it keeps to that with the laptop shut."""
    if term is None:
        return request
    left = term.left_usd.quantize(_CENT, rounding=ROUND_DOWN)
    asked = request.budget_usd
    return replace(request, budget_usd=left if asked is None else min(asked, left))


def lasts(plan: LaunchPlan) -> timedelta | None:
    """Return how long the instance's own budget lasts in the first place at today's price; `None` where its end comes first."""
    budget = plan.request.budget_usd
    if budget is None or not plan.attempts:
        return None
    life = timedelta(hours=float(budget / _usd_per_hour(plan)))
    return life if life < plan.request.duration else None


def check_own(plan: LaunchPlan, asked: LaunchRequest) -> None:
    """
    Refuse a budget that is used up before the instance has set itself up; who asks for minutes gets minutes.

    Raises:
        Refused: The hint names a budget for an hour.
    """
    if asked.budget_usd is None or asked.duration < _WORTH_STARTING:
        return
    life = lasts(replace(plan, request=asked))
    if life is None or life >= _WORTH_STARTING:
        return
    hour = _usd_per_hour(plan).quantize(_CENT, rounding=ROUND_UP)
    raise Refused(
        f"a budget of ${asked.budget_usd:f} ends the instance after {life // timedelta(minutes=1)} min,"
        " about when it has set itself up",
        hint=f"`--budget {hour}` lasts an hour at today's price",
    )


def _usd_per_hour(plan: LaunchPlan) -> Decimal:
    beside = plan.disk_usd_per_hour + plan.address_usd_per_hour
    return plan.attempts[0].usd_per_hour + beside


def check_term(plan: LaunchPlan, asked: LaunchRequest) -> None:
    """
    Refuse what may cost more than is left of the term's budget.

    Args:
        asked: As the user asked; a budget of the instance itself bounds what it may cost.

    Raises:
        CreditTooLow: The hint names the hours that fit.
    """
    term = plan.term_budget
    if term is None or _worst(plan, asked) <= term.left_usd:
        return
    left = term.left_usd.quantize(_CENT, rounding=ROUND_DOWN)
    kept = f" beside ${term.promised_usd:.2f} for what runs" if term.promised_usd else ""
    raise CreditTooLow(
        f"this may cost up to ${_worst(plan, asked):.2f}, and ${left} of the term's budget of"
        f" ${term.usd:.2f} is left{kept}",
        hint=_hint(plan, left),
    )


@dataclass(frozen=True)
class Extension:
    """
    An instance's end that is to be moved.

    Attributes:
        ends_at: The end as it is; `None` when nobody knows it.
        until: The new end.
        most_usd_per_hour: What an hour may cost at the worst, with disk and address; `None` when nobody knows.
        lab: Whose teacher asks, of a whole class; `""` for one's own instance.
    """

    name: str
    ends_at: datetime | None
    until: datetime
    most_usd_per_hour: Decimal | None
    lab: str = ""

    def at_most_usd(self, since: datetime) -> Decimal | None:
        """Return what the time from then to the new end may cost; 0 when it comes sooner, `None` when nobody knows."""
        if self.most_usd_per_hour is None:
            return None
        hours = Decimal((self.until - since) // timedelta(seconds=1)) / 3600
        return max(Decimal(0), self.most_usd_per_hour * hours)


def check_extension(asked: Extension, term: TermBudget | None, *, now: datetime) -> None:
    """
    Refuse an end up to which an instance may cost more than is left of the term's budget; one that comes sooner never is.

    Args:
        term: Without what was kept for this instance.

    Raises:
        CreditTooLow: The hint names by how much the end may be moved.
    """
    usd, is_sooner = (
        asked.at_most_usd(now),
        asked.ends_at is not None and asked.until <= asked.ends_at,
    )
    if term is None or is_sooner or (usd is not None and usd <= term.left_usd):
        return
    # A class's refusals are told by cause: with a name in it, each would be a cause of its own.
    what = "it" if asked.lab else asked.name
    if usd is None:
        raise CreditTooLow(
            f"nobody knows what {what} costs, and the term's budget of ${term.usd:.2f} has a limit",
            hint="`gpulab ledger rebuild` reads its price from the account",
        )
    left = term.left_usd.quantize(_CENT, rounding=ROUND_DOWN)
    kept = f" beside ${term.promised_usd:.2f} for what else runs" if term.promised_usd else ""
    raise CreditTooLow(
        f"{what} may cost up to ${usd:.2f} until then, and ${left} of the term's budget of"
        f" ${term.usd:.2f} is left{kept}",
        hint=_extension_hint(asked, term.left_usd, now),
    )


def _extension_hint(asked: Extension, left_usd: Decimal, now: datetime) -> str:
    assert asked.most_usd_per_hour
    lasts = timedelta(hours=float(left_usd / asked.most_usd_per_hour))
    tenths = (now + lasts - (asked.ends_at or now)) // timedelta(minutes=6)
    if asked.lab:
        minutes = lasts // timedelta(minutes=1)
        fits = f"`gpulab fleet extend {asked.lab} --by {minutes}m --only ID` fits, or raise"
        return f"{fits if tenths > 0 else 'Raise'} `budget_usd` in [course] of course.toml"
    if tenths <= 0:
        return _SPENT
    return f"`gpulab extend {asked.name} --hours {tenths / 10:g}` fits"


def fitting_hours(plan: LaunchPlan, left_usd: Decimal) -> str:
    """Return how many hours of a plan an amount pays for at the worst, rounded down to a tenth: `1.8`; `0` for none."""
    hours = plan.request.duration * float(left_usd / plan.at_most_usd)
    return f"{max(0, int(hours.total_seconds() // 360)) / 10:g}"


def term_warning(plan: LaunchPlan) -> tuple[str, ...]:
    """Warn where the plan may bring the term's budget to 50, 80 or 100 %."""
    term = plan.term_budget
    if term is None:
        return ()
    after = term.usd - term.left_usd + _worst(plan, plan.request)
    level = term.level(after)
    if not level:
        return ()
    share = min(Decimal(100), after / term.usd * 100) if term.usd else Decimal(100)
    gone = f"${term.spent_usd:.2f} is spent"
    gone += f", ${term.promised_usd:.2f} kept for what runs" if term.promised_usd else ""
    if after + _CENT > term.usd:
        return (f"this may use up the term's budget of ${term.usd:.2f} ({gone})",)
    return (f"this may bring the term's budget of ${term.usd:.2f} to {share:.0f} % ({gone})",)


def _worst(plan: LaunchPlan, request: LaunchRequest) -> Decimal:
    if request.budget_usd is None:
        return plan.at_most_usd
    return min(plan.at_most_usd, request.budget_usd)


def _hint(plan: LaunchPlan, left: Decimal) -> str:
    hours = fitting_hours(plan, left)
    if hours == "0":
        return _SPENT
    return f"`--hours {hours}` fits, or `--budget {left}` ends the instance when it has cost that"
