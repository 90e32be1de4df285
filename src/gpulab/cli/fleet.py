"""`gpulab fleet`: the instances of a whole class. Parses, calls, shows; one result for each student."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpulab.cli import classroom, fleet_acting
from gpulab.cli.classroom import course_option
from gpulab.cli.context import Context
from gpulab.cli.fleet_options import CAUSES, choose, choosing_options, finish, open_accounts
from gpulab.cli.interrupted import OfLab
from gpulab.cli.options import Duration, json_option, yes_option
from gpulab.errors import Refused, SomeFailed, WrongUsage

if TYPE_CHECKING:
    from gpulab.fleets.accounts import Accounts
    from gpulab.fleets.up import Decided, Wish
    from gpulab.model.fleet import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])


class _InOrder(click.Group):
    """A group that lists its commands in the order they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(self.commands)


@click.group(name="fleet", cls=_InOrder)
def command() -> None:
    """
    Start, watch and end the instances of a whole class.

    \b
    gpulab fleet plan week4     who needs what, what it costs at most
    gpulab fleet up week4       one instance for each student; run it again after anything
    gpulab fleet watch week4    the class, live
    gpulab fleet stop week4     bring all work home, then nothing costs
    """


def launching_options(command: Command) -> Command:
    """Add what changes a plan."""
    for option in (
        click.option(
            "--on-demand",
            is_flag=True,
            help="Buy on demand, at a fixed price, for whom no spot place has one.",
        ),
        click.option(
            "--attended",
            metavar="LAB",
            help="Only those who had an instance in that lab, such as week3.",
        ),
        click.option(
            "--now",
            "as_if_now",
            is_flag=True,
            help="Treat the lab as beginning now, with its own length: for a rehearsal.",
        ),
        click.option(
            "--cidr",
            metavar="CIDR",
            help="From where ssh is let in: the campus's range.  [default: `cidr` in course.toml, then this computer's address, as Amazon sees it]",
        ),
    ):
        command = option(command)
    return command


@command.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@choosing_options
@launching_options
@click.option("--all", "with_all", is_flag=True, help="Show every seat, one a line.")
@course_option
@json_option
@click.pass_obj
def plan(
    context: Context,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    on_demand: bool,
    attended: str | None,
    as_if_now: bool,
    cidr: str | None,
    with_all: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Show what a lab needs, what it costs at most and what does not fit; change nothing.

    For each student: launch, keep, replace, extra or blocked. Quotas are counted for the whole class. Exits with 3 when the plan passes a
    limit of the course or the lab is over, with 4 when somebody could not be served.

    \b
    Example:
      gpulab fleet plan week4
      gpulab fleet plan week4 --only 's17*' --all
      gpulab fleet plan week1 --now --json
    """
    from gpulab.fleet.lab import refuse_over
    from gpulab.fleets import up as fleets
    from gpulab.model.fleet import Action
    from gpulab.view.fleet import plan_json, plan_text, steps_text

    accounts, wish = _wish(
        context, course_folder, lab_id, only, groups, on_demand, attended, as_if_now, cidr
    )
    refuse_over(wish.lab, now=context.now())
    begins = max(wish.lab.starts_at - timedelta(minutes=wish.lab.prewarm_minutes), context.now())
    found = fleets.plan(accounts, wish, at=begins).plan
    if as_json:
        context.console.show_json(plan_json(found))
    else:
        context.console.show(plan_text(found, now=context.now()))
        if with_all:
            context.console.show("\n" + steps_text(found.steps))
    if found.refusals:
        raise Refused("; ".join(found.refusals), hint=_FEWER)
    blocked = len(found.of(Action.BLOCKED))
    if blocked:
        raise SomeFailed(f"{blocked:,} of {len(wish.seats):,} could not be served", hint=CAUSES)


@command.command(cls=OfLab)
@click.argument("lab_id", metavar="LAB")
@choosing_options
@launching_options
@click.option(
    "--prewarm",
    type=Duration(),
    metavar="SPAN",
    help="Wait, then begin so long before the lab: 30m.  [default: the lab's own, without waiting]",
)
@click.option(
    "--prune", is_flag=True, help="Save and end instances that serve nobody in the roster."
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its price; start nothing.")
@yes_option
@course_option
@json_option
@click.pass_obj
def up(
    context: Context,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    on_demand: bool,
    attended: str | None,
    as_if_now: bool,
    cidr: str | None,
    prewarm: timedelta | None,
    prune: bool,
    dry_run: bool,
    yes: bool,
    course_folder: str | None,
    as_json: bool,
) -> None:
    """
    Start an instance for each student of a lab; run it again after anything.

    Only what is missing is started, so it can be repeated at any time: after Ctrl-C, a dead laptop or a lost network it converges to
    exactly one instance each. Each instance ends itself at the lab's end and its grace. Exits with 4 when somebody could not be served.

    \b
    Example:
      gpulab fleet up week4 --prewarm 30m
      gpulab fleet up week4 --only 's17*' --yes
      gpulab fleet up week1 --now --dry-run
    """
    from gpulab.fleet.lab import check_time
    from gpulab.fleets import up as fleets
    from gpulab.store import closing

    accounts, wish = _wish(
        context, course_folder, lab_id, only, groups, on_demand, attended, as_if_now, cidr
    )
    wait = check_time(wish.lab, now=context.now(), prewarm=prewarm)
    if not dry_run and not _may_start(context, accounts.course.id, yes=yes):
        return
    with fleets.locked(accounts, wish.lab):
        decided = fleets.plan(accounts, wish, at=context.now() + wait, may_settle=not dry_run)
        _show_plan(context, decided, as_json=as_json and dry_run)
        if decided.plan.refusals:
            raise Refused("; ".join(decided.plan.refusals), hint=_FEWER)
        if dry_run:
            context.console.say("Nothing was started (`--dry-run`)")
            return
        if not _agreed(context, decided, prune=prune, wait=wait, yes=yes):
            context.console.say("Nothing was started")
            return
        if wait > timedelta(0):
            decided = _waited(context, accounts, wish, decided, wait)
        closing.open_again(context.home, accounts.course.id)
        outcomes = _carry_out(context, accounts, decided, prune=prune)
    if any(outcome.instance for outcome in outcomes) and not as_json:
        context.console.say(_NEXT.format(lab=wish.lab.id))
    finish(context, accounts.course.id, wish.lab.id, outcomes, as_json=as_json)


def _wish(
    context: Context,
    course_folder: str | None,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    on_demand: bool,
    attended: str | None,
    as_if_now: bool,
    cidr: str | None,
) -> tuple[Accounts, Wish]:
    from gpulab.fleet import lab as labs
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets.books import attendance
    from gpulab.fleets.former import former
    from gpulab.fleets.up import Wish

    found, course = classroom.read_sound(context, course_folder)
    lab = labs.lab_of(course, lab_id)
    lab = labs.as_if_now(lab, context.now()) if as_if_now else lab
    everyone = seats_of(course, lab, found.roster.students, secret=found.secret)
    seats = choose(everyone, only=only, groups=groups)
    accounts = open_accounts(context, course, cidr=cidr or "")
    if attended:
        before = labs.lab_of(course, attended)
        were_there = attendance(accounts, everyone, before)
        seats = tuple(seat for seat in seats if seat.owner in were_there)
    if not seats:
        raise WrongUsage("that is nobody", hint="`gpulab course show` counts the students")
    longest = timedelta(
        seconds=int(context.home.config().profile(course.accounts.profile).hours_limit * 3600)
    )
    refs = {seat.account for seat in everyone}
    is_all = not (only or groups or attended)
    left = former(accounts, refs, secret=found.secret, lab=lab.id) if is_all else ()
    return accounts, Wish(course, lab, everyone, seats, longest, on_demand, left)


def _may_start(context: Context, course_id: str, *, yes: bool) -> bool:
    """Whether instances may be started: a course that was closed is opened again only by somebody who was asked, and who then agrees to the plan."""
    from gpulab.store import closing

    known = closing.closed(context.home, course_id)
    if known is None:
        return True
    said = f"{course_id} was closed {known.at:%Y-%m-%d %H:%M} UTC"
    if yes:
        raise Refused(
            said, hint="Without `--yes`, `gpulab fleet up` asks whether to open the course again"
        )
    if not context.console.confirm(
        f"{said}. Open it again?", hint="In a terminal, it asks whether to open the course again"
    ):
        context.console.say("Nothing was started")
        return False
    return True


def _show_plan(context: Context, decided: Decided, *, as_json: bool) -> None:
    from gpulab.view.fleet import plan_json, plan_text

    if as_json:
        context.console.show_json(plan_json(decided.plan))
    else:
        context.console.say(plan_text(decided.plan, now=context.now()))


def _agreed(context: Context, decided: Decided, *, prune: bool, wait: timedelta, yes: bool) -> bool:
    from gpulab.model.fleet import Action
    from gpulab.view.fleet import question

    changes = any(step.starts for step in decided.plan.steps)
    changes = changes or (prune and bool(decided.plan.of(Action.EXTRA)))
    if yes or not changes:
        return True
    return context.console.confirm(question(decided.plan, prune=prune, wait=wait))


def _waited(
    context: Context, accounts: Accounts, wish: Wish, agreed: Decided, wait: timedelta
) -> Decided:
    """Wait until the launches may begin, then look again: what has changed meanwhile counts, unless it is dearer."""
    from gpulab.fleets import up as fleets
    from gpulab.fleets.events import WaitingUntil
    from gpulab.view.fleet import sentence
    from gpulab.view.words import money

    now = context.now()
    context.console.say(sentence(WaitingUntil(now, now + wait), now=now))
    context.sleep(wait.total_seconds())
    decided = fleets.plan(accounts, wish, may_settle=True)
    if decided.plan.at_most_usd > agreed.plan.at_most_usd:
        raise Refused(
            f"the plan has become dearer while waiting: at most {money(decided.plan.at_most_usd)}"
            f" instead of {money(agreed.plan.at_most_usd)}",
            hint="Run it again to agree to that",
        )
    return decided


def _carry_out(
    context: Context, accounts: Accounts, decided: Decided, *, prune: bool
) -> tuple[Outcome, ...]:
    from gpulab.fleets import up as fleets
    from gpulab.fleets.events import Finished
    from gpulab.view.fleet import sentence

    outcomes: tuple[Outcome, ...] = ()
    for event in fleets.up(accounts, decided, prune=prune):
        if isinstance(event, Finished):
            outcomes = event.outcomes
        elif text := sentence(event, now=context.now()):
            context.console.say(text)
    return outcomes


_NEXT = "Next: `gpulab fleet handout {lab} FOLDER` writes the tickets, `gpulab fleet watch {lab}` shows the class"
_FEWER = "Choose fewer with `--only`, or raise the limit in course.toml"

for _acting in (
    fleet_acting.ls,
    fleet_acting.watch,
    fleet_acting.extend,
    fleet_acting.exec_,
    fleet_acting.push,
    fleet_acting.handout,
    fleet_acting.collect,
    fleet_acting.stop,
):
    command.add_command(_acting)
