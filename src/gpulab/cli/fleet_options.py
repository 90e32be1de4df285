"""What the commands of `gpulab fleet` share: choosing students, opening accounts, and the sum at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpulab.cli.context import Context
from gpulab.errors import SomeFailed, WrongUsage

if TYPE_CHECKING:
    from gpulab.fleets.accounts import Accounts
    from gpulab.model.course import Course
    from gpulab.model.fleet import Outcome, Seat

Command = TypeVar("Command", bound=Callable[..., Any])
CAUSES = "Each cause is named above, with what to do; run it again afterwards"


def choosing_options(command: Command) -> Command:
    """Add `--only` and `--group`."""
    only = click.option(
        "--only",
        multiple=True,
        metavar="GLOB",
        help="Only students whose id, address, opaque id or instance fits, such as 's17*'; repeatable.",
    )
    group = click.option(
        "--group", "groups", multiple=True, metavar="NAME", help="Only this group; repeatable."
    )
    return only(group(command))


def choose(
    everyone: Sequence[Seat], *, only: Sequence[str], groups: Sequence[str]
) -> tuple[Seat, ...]:
    """
    Choose seats as `--only` and `--group` say.

    Raises:
        WrongUsage: One of them fits nobody: what was typed wrong would leave somebody out in silence.
    """
    from gpulab.fleet.seats import chosen

    labels = [student.id for seat in everyone for student in seat.students]
    for glob in only:
        if not chosen(everyone, only=[glob]):
            raise WrongUsage(f"no id matches `{glob}`", hint=_nearest(glob.strip("*?"), labels))
    for group in groups:
        if not chosen(everyone, groups=[group]):
            names = [seat.group for seat in everyone if seat.group]
            raise WrongUsage(f"no group is called `{group}`", hint=_nearest(group, names))
    return chosen(everyone, only=only, groups=groups)


def _nearest(typed: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(typed, sorted(set(names)), n=3, cutoff=0.5)
    return (
        f"The nearest: {', '.join(found)}"
        if found
        else "roster.csv in the course's folder lists them"
    )


def failed_option(command: Command) -> Command:
    """Add `--failed`."""
    return click.option(
        "--failed",
        "is_failed",
        is_flag=True,
        help="Only those for whom the last command on this lab failed.",
    )(command)


def open_accounts(context: Context, course: Course, *, cidr: str = "") -> Accounts:
    """Open the way into a course's accounts; no call is made yet."""
    from gpulab.fleets.accounts import Accounts, Outside

    outside = Outside(
        home=context.home,
        config=context.home.config(),
        environment=context.environment,
        now=context.now,
        sleep=context.sleep,
        random=context.random,
        cidr=cidr,
    )
    return Accounts(outside, course)


def finish(
    context: Context,
    course_id: str,
    lab_id: str,
    outcomes: tuple[Outcome, ...],
    *,
    as_json: bool,
    said: dict[str, tuple[int, str]] | None = None,
) -> None:
    """
    Show what came of each seat, and remember who failed for `--failed`.

    Args:
        said: Exit code and output of a command, by the instance's name.

    Raises:
        SomeFailed: At least one failed; each cause was said, with what to do about it.
    """
    from gpulab.store.courses import remember_failed
    from gpulab.view.fleet import outcome_json, outcomes_text

    failed = [outcome.name for outcome in outcomes if outcome.is_failed]
    remember_failed(context.home, course_id, lab_id, failed)
    if as_json:
        rows = [outcome_json(outcome) for outcome in outcomes]
        for row in rows if said is not None else ():
            row["exit_code"], row["output"] = (said or {}).get(row["name"], (None, ""))
        context.console.show_json({"outcomes": rows})
    else:
        context.console.say(outcomes_text(outcomes))
    if failed:
        raise SomeFailed(f"{len(failed):,} of {len(outcomes):,} failed", hint=CAUSES)
