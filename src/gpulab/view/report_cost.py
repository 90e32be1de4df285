"""How the cost of a timeline is written for people. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from gpulab.model.timeline import Charge, Costs
from gpulab.spending.exact import Usd
from gpulab.view.console import table
from gpulab.view.words import money, span

_KINDS = {"instance": "instances", "ebs": "disks (EBS)", "ipv4": "public addresses (IPv4)"}


def cost_lines(answer: dict[str, Any]) -> list[str]:
    """Write the answer of `gpulab cost`: what was paid for, by whom, and what the credit paid."""
    rows = [[name, answer[kind], ""] for kind, name in _KINDS.items()]
    rows.append(["total", answer["total"], money(Decimal(answer["total_cents"]).scaleb(-2))])
    lines = [table(rows, ["", "USD", ""], right=(1, 2)), ""]
    seconds = answer["billed_instance_seconds"]
    lines.append(f"billed instance time: {seconds} s ({span(timedelta(seconds=seconds))})")
    lines.append(f"price rule: {answer['price_rule']}")
    if "by_owner" in answer:
        lines += ["", _owner_table(answer["by_owner"])]
    if "credit_used" in answer:
        lines += ["", *_credit_lines(answer)]
    return lines


def _owner_table(by_owner: dict[str, dict[str, Any]]) -> str:
    rows = [
        [owner, *(sums[kind] for kind in (*_KINDS, "total"))] for owner, sums in by_owner.items()
    ]
    return table(rows, ["owner", "instance", "ebs", "ipv4", "total"], right=(1, 2, 3, 4))


def _credit_lines(answer: dict[str, Any]) -> list[str]:
    ended = answer["exhausted_at"]
    return [
        f"credit used {answer['credit_used']}, left {answer['credit_left']}, "
        f"out of pocket {answer['out_of_pocket']}",
        f"the credit was used up at {ended}" if ended else "the credit was not used up",
    ]


def explain_lines(costs: Costs, by_rule: Iterable[Costs]) -> list[str]:
    """List every charge in time order, then the total by either price rule."""
    ordered = sorted(costs.charges, key=lambda c: (c.begins_at, c.resource, c.kind))
    headings = ["begins", "resource", "kind", "seconds", "USD", "per seconds", "cost"]
    lines = ["", table([_charge_row(c) for c in ordered], headings, right=(3, 4, 5, 6)), ""]
    lines += [
        f"total by {costs.price_rule.value}: {Usd.of(costs.charges).rounded():f} USD"
        for costs in by_rule
    ]
    return lines


def _charge_row(charge: Charge) -> Sequence[str]:
    return [
        f"{charge.begins_at:%Y-%m-%dT%H:%M:%SZ}",
        charge.resource,
        charge.kind.value,
        str(charge.seconds),
        format(charge.usd, "f"),
        str(charge.unit_seconds),
        format(Usd.of([charge]).rounded(), "f"),
    ]
