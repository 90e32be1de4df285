"""The accounts of a course as its teacher reads them: one line each, then each cause once with whom it concerns and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gpulab.fleets.checking import AccountCheck
from gpulab.model.check import Check
from gpulab.view.console import table
from gpulab.view.fleet import unnamed
from gpulab.view.words import money

_SHOWN = 20
_MARKS = {"ok": "ok", "warning": "?", "failed": "FAILED"}


def accounts_text(found: Sequence[AccountCheck]) -> str:
    """Write a line for each account, and what stands in the way of any."""
    rows = [_row(one) for one in found]
    headings = [
        "ACCOUNT",
        "FOR",
        "WAY IN",
        "EXTERNAL ID",
        "PLAN",
        "QUOTA",
        "CREDIT",
        "GUARDS",
        "WORK",
    ]
    return "\n".join([table(rows, headings, right=[6]), *_causes(found)])


def totals_text(found: Sequence[AccountCheck]) -> str:
    """Count the accounts by their worst check."""
    counts = Counter(_worst(one) for one in found)
    words = {"ok": "ready", "warning": "ready, with something to look at", "failed": "not ready"}
    said = [f"{counts[state]:,} {words[state]}" for state in words if counts[state]]
    return f"{len(found):,} accounts: " + ", ".join(said or ["none"])


def account_json(one: AccountCheck) -> dict[str, Any]:
    """Return one account for programs."""
    ref = one.need.account
    return {
        "account": ref.key,
        "profile": ref.profile,
        "role": ref.role_arn,
        "students": list(one.need.who),
        "state": _worst(one),
        "credit_left_usd": one.credit_usd,
        "checks": list(one.checks),
    }


def _row(one: AccountCheck) -> list[str]:
    who, more = one.need.who[:2], len(one.need.who) - 2
    marks = {check.name.partition(" ")[0]: check for check in one.checks}
    quotas = [check.state for check in one.checks if check.name.startswith("quota")]
    credit = money(one.credit_usd) if one.credit_usd is not None else "-"
    return [
        one.need.account.number or one.need.account.profile,
        ", ".join(who) + (f" and {more:,} more" if more > 0 else ""),
        _mark(marks.get("way")),
        _mark(marks.get("external")),
        _mark(marks.get("plan")),
        _MARKS[_worst_of(quotas)] if quotas else "-",
        credit,
        _mark(marks.get("guards")),
        _mark(marks.get("kept")),
    ]


def _mark(check: Check | None) -> str:
    return "-" if check is None else _MARKS[check.state]


def _causes(found: Iterable[AccountCheck]) -> list[str]:
    causes: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        ref = one.need.account
        for check in one.checks:
            if check.state != "ok":
                text = unnamed(f"{_MARKS[check.state]} {check.name}: {check.text}", ref)
                key = (text, unnamed(check.hint, ref), check.state)
                causes.setdefault(key, []).append(", ".join(one.need.who[:2]) or ref.key)
    lines = []
    for (text, hint, _), who in sorted(causes.items(), key=lambda item: item[0][2]):
        more = f" and {len(who) - _SHOWN:,} more" if len(who) > _SHOWN else ""
        lines += ["", text, f"    {len(who):,}: {', '.join(who[:_SHOWN])}{more}"]
        lines += [f"    {hint}"] if hint else []
    return lines


def _worst(one: AccountCheck) -> str:
    return _worst_of([check.state for check in one.checks])


def _worst_of(states: Sequence[str]) -> str:
    return next((state for state in ("failed", "warning") if state in states), "ok")
