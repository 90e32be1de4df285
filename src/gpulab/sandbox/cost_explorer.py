"""R17: Cost Explorer over the world's own books: a day late, gross and credit apart, grouped, filtered and paged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import money, paging
from gpulab.sandbox.books import BillLine
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_STEPS = {"HOURLY": timedelta(hours=1), "DAILY": timedelta(days=1)}
_METRICS = {
    "UnblendedCost": "USD",
    "BlendedCost": "USD",
    "AmortizedCost": "USD",
    "NetAmortizedCost": "USD",
    "NetUnblendedCost": "USD",
    "UsageQuantity": "N/A",
}
_SERVICES = {
    "instance": "Amazon Elastic Compute Cloud - Compute",
    "ebs": "EC2 - Other",
    "ipv4": "Amazon Virtual Private Cloud",
}
_GROUPS_IN_A_PAGE = 500


@dataclass(frozen=True)
class Amount:
    """What one resource cost in one stretch of time, as a row Cost Explorer adds up."""

    record_type: str
    line: BillLine
    usd: Decimal
    seconds: Decimal


_DIMENSIONS: Mapping[str, Callable[[Amount], str]] = {
    "RECORD_TYPE": lambda a: a.record_type,
    "SERVICE": lambda a: _SERVICES[a.line.kind],
    "USAGE_TYPE": lambda a: a.line.usage_type,
    "LINKED_ACCOUNT": lambda a: a.line.account,
    "REGION": lambda a: a.line.region,
    "INSTANCE_TYPE": lambda a: (
        a.line.usage_type.split(":")[1] if a.line.kind == "instance" else "NoInstanceType"
    ),
    "PURCHASE_TYPE": lambda a: (
        "Spot Instances" if a.line.usage_type.startswith("SpotUsage") else "On Demand Instances"
    ),
    "OPERATION": lambda a: "RunInstances" if a.line.kind == "instance" else "CreateVolume-Gp3",
}


def get_cost_and_usage(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetCostAndUsage."""
    params = call.params
    begin, end = _period(params)
    groups = params.get("GroupBy", [])
    metrics = params.get("Metrics") or []
    _check(params, groups, metrics)
    results = [
        _result(world, call, start, stop, groups, metrics)
        for start, stop in _stretches(begin, end, params["Granularity"])
    ]
    page, token = _page(results, params)
    answer: dict[str, Any] = {"ResultsByTime": page, "DimensionValueAttributes": []}
    if groups:
        answer["GroupDefinitions"] = groups
    if token:
        answer["NextPageToken"] = token
    return write_result(call, answer)


def amounts(world: World, account: str, start: datetime, stop: datetime) -> Iterator[Amount]:
    """What was used between two moments, and what credit paid of it, as far as AWS would know by now."""
    known = world.now() - money.REPORTING_DELAY
    start, stop = min(start, known), min(stop, known)
    if stop <= start:
        return
    before = {_key(line): line for line in world.bill(start).lines}
    used = Decimal(0)
    last = None
    for line in world.bill(stop).lines:
        earlier = before.get(_key(line))
        usd = line.usd - (earlier.usd if earlier else 0)
        seconds = Decimal(line.seconds - (earlier.seconds if earlier else 0))
        if line.account == account and (usd or seconds):
            used += usd
            last = line
            yield Amount("Usage", line, usd, seconds)
    left = sum(money.left_of(world, account, start).values(), Decimal(0))
    paid = left - sum(money.left_of(world, account, stop).values(), Decimal(0))
    if last is not None and paid > 0:
        yield from _credits(world, account, start, stop, paid / used if used else Decimal(0))


def _credits(
    world: World, account: str, start: datetime, stop: datetime, share: Decimal
) -> Iterator[Amount]:
    before = {_key(line): line.usd for line in world.bill(start).lines}
    for line in world.bill(stop).lines:
        usd = line.usd - before.get(_key(line), Decimal(0))
        if line.account == account and usd:
            yield Amount("Credit", line, -usd * share, Decimal(0))


def _key(line: BillLine) -> tuple[str, str, datetime]:
    return line.resource_id, line.usage_type, line.begins_at


def _result(
    world: World,
    call: Call,
    start: datetime,
    stop: datetime,
    groups: list[Mapping[str, str]],
    metrics: list[str],
) -> dict[str, Any]:
    wanted = [
        a
        for a in amounts(world, call.account, start, stop)
        if _passes(a, call.params.get("Filter"))
    ]
    form = "%Y-%m-%dT%H:%M:%SZ" if call.params["Granularity"] == "HOURLY" else "%Y-%m-%d"
    result: dict[str, Any] = {
        "TimePeriod": {"Start": start.strftime(form), "End": stop.strftime(form)},
        "Total": {} if groups else _sums(wanted, metrics),
        "Groups": [],
        "Estimated": stop > world.now() - timedelta(days=10),
    }
    if groups:
        by_key: dict[tuple[str, ...], list[Amount]] = defaultdict(list)
        for amount in wanted:
            by_key[tuple(_group_key(amount, group) for group in groups)].append(amount)
        result["Groups"] = [
            {"Keys": list(key), "Metrics": _sums(found, metrics)}
            for key, found in sorted(by_key.items())
        ]
    return result


def _sums(found: list[Amount], metrics: list[str]) -> dict[str, dict[str, str]]:
    usd = sum((a.usd for a in found), Decimal(0))
    hours = sum((a.seconds for a in found), Decimal(0)) / 3600
    return {
        m: {"Amount": _text(hours if m == "UsageQuantity" else usd), "Unit": _METRICS[m]}
        for m in metrics
    }


def _text(amount: Decimal) -> str:
    return f"{amount:.10f}".rstrip("0").rstrip(".") or "0"


def _group_key(amount: Amount, group: Mapping[str, str]) -> str:
    if group["Type"] == "TAG":
        value = amount.line.owner if group["Key"] == "gpulab:owner" else ""
        return f"{group['Key']}${value}"
    return _DIMENSIONS[group["Key"]](amount)


def _passes(amount: Amount, expression: Mapping[str, Any] | None) -> bool:
    if not expression:
        return True
    if "And" in expression:
        return all(_passes(amount, part) for part in expression["And"])
    if "Or" in expression:
        return any(_passes(amount, part) for part in expression["Or"])
    if "Not" in expression:
        return not _passes(amount, expression["Not"])
    if "Dimensions" in expression:
        wanted = expression["Dimensions"]
        return _dimension(wanted["Key"])(amount) in wanted.get("Values", [])
    if "Tags" in expression:
        wanted = expression["Tags"]
        value = amount.line.owner if wanted["Key"] == "gpulab:owner" else ""
        return value in wanted.get("Values", [])
    raise Refusal("ValidationException", "Expression is empty or not supported")


def _dimension(key: str) -> Callable[[Amount], str]:
    # CHARGE_TYPE stands in the documentation of the console; the API calls it RECORD_TYPE.
    if key not in _DIMENSIONS:
        raise Refusal("ValidationException", f"Invalid Dimension key: {key}")
    return _DIMENSIONS[key]


def _check(params: Mapping[str, Any], groups: list[Mapping[str, str]], metrics: list[str]) -> None:
    if params.get("Granularity") not in (*_STEPS, "MONTHLY"):
        raise Refusal("ValidationException", "Granularity must be one of DAILY, MONTHLY, HOURLY")
    if not metrics:
        raise Refusal("ValidationException", "Metrics must not be empty")
    if unknown := [m for m in metrics if m not in _METRICS]:
        raise Refusal("ValidationException", f"Invalid metric: {unknown[0]}")
    if len(groups) > 2:
        raise Refusal("ValidationException", "The number of GroupBy must be at most 2")
    for group in groups:
        if group.get("Type") == "DIMENSION":
            _dimension(group["Key"])
    _check_expression(params.get("Filter"))


def _check_expression(expression: Mapping[str, Any] | None) -> None:
    if not expression:
        return
    for part in [*expression.get("And", []), *expression.get("Or", []), expression.get("Not")]:
        _check_expression(part)
    if "Dimensions" in expression:
        _dimension(expression["Dimensions"]["Key"])


def _period(params: Mapping[str, Any]) -> tuple[datetime, datetime]:
    period = params.get("TimePeriod", {})
    try:
        begin, end = (
            datetime.fromisoformat(period[name].replace("Z", "+00:00")).replace(tzinfo=UTC)
            for name in ("Start", "End")
        )
    except (KeyError, ValueError):
        raise Refusal("ValidationException", "Start time or end time is invalid") from None
    if begin >= end:
        raise Refusal(
            "ValidationException", "Start date (and hour) should be before end date (and hour)"
        )
    return begin, end


def _stretches(
    begin: datetime, end: datetime, granularity: str
) -> Iterator[tuple[datetime, datetime]]:
    start = begin
    while start < end:
        if granularity == "MONTHLY":
            stop = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
        else:
            stop = start + _STEPS[granularity]
        yield start, min(stop, end)
        start = stop


def _page(
    results: list[dict[str, Any]], params: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    # A page is cut by groups, and a day is never divided.
    largest = max([1, *(len(r["Groups"]) for r in results)])
    days = max(1, _GROUPS_IN_A_PAGE // largest)
    return paging.page(
        results,
        params,
        largest=len(results),
        default=days,
        names=("_", "NextPageToken"),
        error="ValidationException",
    )


OPERATIONS: Mapping[str, Any] = {"GetCostAndUsage": get_cost_and_usage}
