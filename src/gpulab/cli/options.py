"""Options that many commands share: names with completion, output formats, durations and amounts. Refuses what cannot be one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import click

from gpulab.errors import WrongUsage

Command = TypeVar("Command", bound=Callable[..., Any])

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,38}[a-z0-9])?")


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_one_format,
        help="Print one JSON document instead of text.",
    )(command)


def listing_options(command: Command) -> Command:
    """Add `--json` and `--csv`."""
    return json_option(
        click.option(
            "--csv",
            "as_csv",
            is_flag=True,
            callback=_one_format,
            help="Print CSV instead of a table.",
        )(command)
    )


def _one_format(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Refuse two formats at once, whichever comes second."""
    other = "as_csv" if parameter.name == "as_json" else "as_json"
    if value and ctx.params.get(other):
        raise WrongUsage("`--json` and `--csv` exclude each other", hint="Leave one of them out")
    return value


def yes_option(command: Command) -> Command:
    """Add `--yes`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def complete_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of instances and kept work from a local file, never from the network."""
    import os

    from gpulab.store.names import completable_names

    profile = ctx.find_root().params.get("profile")
    found = completable_names(os.environ, profile)
    return [name for name in found if name.startswith(incomplete)]


def name_argument(*, is_required: bool = False) -> Callable[[Command], Command]:
    """Add the argument NAME; without one, commands take the only instance there is."""
    return click.argument(
        "name",
        required=is_required,
        callback=_check_name,
        shell_complete=complete_names,
    )


def _check_name(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else valid_name(value)


def valid_name(name: str) -> str:
    """
    Check a name for an instance and its kept work.

    Raises:
        WrongUsage: It could not be a folder, a tag and an S3 prefix alike.
    """
    if not _NAME.fullmatch(name):
        raise WrongUsage(
            f"`{name}` cannot be a name",
            hint="Lower-case letters, digits, dot, dash and underscore, at most 40, beginning and ending with a letter or digit",
        )
    return name


class Amount(click.ParamType[Decimal]):
    """An amount of US dollars above 0."""

    name = "usd"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        """Read `0.25` or `$0.25`."""
        if isinstance(value, Decimal):
            return value
        try:
            amount = Decimal(str(value).removeprefix("$"))
        except InvalidOperation:
            amount = Decimal("NaN")
        if not amount.is_finite() or amount <= 0:
            self.fail(f"`{value}` is not an amount of dollars above 0", param, ctx)
        return amount


class Duration(click.ParamType[timedelta]):
    """A span: `4`, `1.5` (hours), `90m`, `2h`, `1h30m`, `20s`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Read a span; a plain number is hours."""
        if isinstance(value, timedelta):
            return value
        found = parse_duration(str(value))
        if found is None or found <= timedelta(0):
            self.fail(f"`{value}` is not a duration such as 4, 90m or 1h30m", param, ctx)
        return found


def parse_duration(text: str) -> timedelta | None:
    """Read a span; `None` when it is none. Plain numbers are hours."""
    parts = re.fullmatch(
        r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?\s*(?:(\d+)s)?", text.strip()
    )
    if parts and any(parts.groups()):
        days, hours, minutes, seconds = (int(p or 0) for p in parts.groups())
        if max(days, hours, minutes, seconds) > 1_000_000:
            return None
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text.strip()):
        return timedelta(seconds=float(Decimal(text.strip()) * 3600))
    return None


def end_options(command: Command) -> Command:
    """Add the four ways to move an end, `--hours`, `--by`, `--until` and `--idle`, and `--yes` for one that comes sooner."""
    options = (
        click.option(
            "--hours",
            "hours",
            type=Duration(),
            metavar="SPAN",
            help="How much longer than now planned: 2, 90m, 1h30m.",
        ),
        click.option(
            "--by",
            "by",
            type=Duration(),
            metavar="SPAN",
            help="How long from now, whatever was planned: 30m, 1h.",
        ),
        click.option(
            "--until", metavar="TIME", help="The new end: 19:00 local time, or a full ISO time."
        ),
        click.option(
            "--idle",
            "idle",
            type=Duration(),
            metavar="SPAN",
            help="End after so long without activity instead of the limit it has; its end stays.",
        ),
        yes_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def tomorrow_note(text: str, moment: datetime, *, now: datetime) -> str:
    """Say that a clock time has passed today and so means tomorrow; `""` for every other time."""
    is_clock = ":" in text and len(text.strip()) <= len("17:00")
    if is_clock and moment.astimezone().date() > now.astimezone().date():
        return f"note: {text.strip()} has passed today, so it is tomorrow's"
    return ""


def until_moment(text: str, *, now: datetime) -> datetime:
    """
    Read a clock time, today or (when past) tomorrow in local time, or a full ISO moment.

    Raises:
        WrongUsage: It is neither, or lies in the past.
    """
    from datetime import UTC

    clock = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if clock:
        local = now.astimezone()
        moment = local.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        if moment <= local:
            # Through the naive wall clock, so that a change of daylight saving keeps the clock time.
            moment = (moment.replace(tzinfo=None) + timedelta(days=1)).astimezone()
        return moment.astimezone(UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise WrongUsage(
            f"`{text}` is not a time", hint="A clock time such as 17:00, or 2026-11-23T17:00"
        ) from None
    moment = moment.astimezone(UTC)
    if moment <= now:
        raise WrongUsage(f"`{text}` lies in the past", hint="Name a time to come")
    return moment
