"""`gpulab up`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gpulab.cli.interrupted import explained, left_by_up
from gpulab.cli.options import Amount, Duration, json_option, name_argument, yes_option
from gpulab.cli.up_asked import Asked, wish_of

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.launch.events import Event, Question, Ready
    from gpulab.model.instance import LaunchRequest


@click.command(name="up")
@name_argument()
@click.option(
    "--gpu", metavar="NAME", help="Which GPU: T4, A10G, L4, ...  [default: the profile's, T4]"
)
@click.option(
    "--type", "instance_type", metavar="TYPE", help="An exact instance type, such as g4dn.xlarge."
)
@click.option(
    "--hours",
    "duration",
    type=Duration(),
    metavar="SPAN",
    help="How long it may live: 4, 90m, 1h30m.  [default: the profile's, 4]",
)
@click.option("--until", metavar="TIME", help="When it ends: 17:00 local time, or a full ISO time.")
@click.option(
    "--max-price",
    type=Amount(),
    metavar="USD",
    help="Most to pay for an instance-hour, USD.  [default: the on-demand price]",
)
@click.option(
    "--budget",
    type=Amount(),
    metavar="USD",
    help="The instance ends itself when it has cost so much, USD.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Try here, in this order; repeatable.  [default: the profile's regions]",
)
@click.option("--spot-only", is_flag=True, help="Never offer on-demand.")
@click.option(
    "--on-demand", "is_on_demand", is_flag=True, help="Buy on demand, without trying spot."
)
@click.option(
    "--env",
    "environment",
    metavar="NAME",
    help="Lab environment.  [default: the one that NAME had last, else the profile's, tf2]",
)
@click.option(
    "--idle",
    "idle",
    type=Duration(),
    metavar="SPAN",
    help="End after so long without activity.  [default: the profile's, 60m]",
)
@click.option(
    "--disk",
    "disk_gib",
    type=click.IntRange(8, 16384),
    metavar="GiB",
    help="Size of the root volume, GiB.  [default: the profile's, 60]",
)
@click.option(
    "--cidr",
    metavar="CIDR",
    help="From where ssh is let in, such as 203.0.113.7/32.  [default: this computer's address, as Amazon sees it]",
)
@click.option(
    "--notebooks",
    metavar="URL[@COMMIT][:FOLDER]",
    help="Bring the notebooks of a Git repository into the work folder; what you have changed there is never overwritten.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="URL#SHA256",
    help="With --notebooks: a file they read, fetched to work/data; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its price; start nothing.")
@click.option("--no-open", is_flag=True, help="Open neither tunnel nor browser.")
@yes_option
@json_option
@click.pass_obj
def command(
    context: Context,
    /,
    name: str | None,
    dry_run: bool,
    no_open: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """
    Start an instance and open JupyterLab on it.

    Shows what will be tried and what it costs at most, asks, and then tries zone after zone. Typing it again for a NAME that is up
    opens that one; a NAME that was stopped comes back with its work and its environment. Without NAME it is called `lab`.

    \b
    Example:
      gpulab up
      gpulab up week4 --gpu T4 --until 17:00
      gpulab up gan --type g5.xlarge --hours 8 --max-price 0.60 --dry-run
      gpulab up week1 --notebooks https://github.com/tensorflow/docs@master:site/en/tutorials/quickstart
    """
    asked = Asked(**options)
    context = context.admitting(asked.cidr)
    wish = _wish(context, asked, name or "lab")
    notes = _notes(context, wish, is_named=bool(asked.environment))
    if dry_run:
        _show_plan(context, wish, as_json, notes=notes)
        return
    context = context.owning()
    told: list[Event] = []
    with explained(lambda: left_by_up(wish.name, told)):
        ready = _start(context, wish, told, yes=yes, notes=notes)
        if ready is None:
            return
        if not ready.is_new:
            _say_what_stays(context, wish, ready, asked)
        _open(context, ready, no_open=no_open, as_json=as_json)


def _wish(context: Context, asked: Asked, name: str) -> LaunchRequest:
    """
    Make the wish that was typed, with the environment that the name had last.

    Raises:
        WrongUsage: It names an environment, a region, a type or a price that cannot be.
    """
    from gpulab.launch.offers.wish import check_wish
    from gpulab.launch.running.past import last_environment

    wish = wish_of(context, asked, name=name, now=context.now())
    check_wish(context.launch, wish)
    last = last_environment(context.launch, name) if asked.environment is None else None
    return replace(wish, environment=last or wish.environment)


def _notes(context: Context, wish: LaunchRequest, *, is_named: bool) -> list[str]:
    """What to say about an environment: that nobody named it and the profile does not say it, and what is unverified about it."""
    from gpulab.bootstrap import load_environment

    usual, name = context.profile.environment, wish.environment
    found = load_environment(name, context.profile.environment_folders)
    last = f"{wish.name} had {name} last; `--env {usual}` changes it"
    told = [] if is_named or name == usual else [last]
    told += [f"{name} is experimental. {found.experimental}"] if found.experimental else []
    return [f"  note      {text}" for text in told]


def _show_plan(context: Context, wish: LaunchRequest, as_json: bool, *, notes: list[str]) -> None:
    from gpulab.launch import up
    from gpulab.launch.account.storage import where
    from gpulab.view.plan import plan_json, plan_text

    plan = up.plan(context.launch, wish)
    work = where(context.launch, wish.name)
    if as_json:
        context.console.show_json(plan_json(plan, work=work))
    else:
        context.console.show(plan_text(plan, now=context.now(), work=work))
        for note in notes:
            context.console.show(note)
        context.console.say("Nothing was started (`--dry-run`)")


def _start(
    context: Context,
    wish: LaunchRequest,
    told: list[Event],
    *,
    yes: bool,
    notes: list[str],
) -> Ready | None:
    """Carry it out; `told` is added what happens, for whoever must say how far it came."""
    from gpulab.launch import up
    from gpulab.launch.account.storage import where
    from gpulab.launch.events import BuyOnDemand, Planned, Ready
    from gpulab.view.events import Teller, question_text
    from gpulab.view.plan import plan_text

    teller = Teller(context.console)

    def confirm(question: Question) -> bool:
        # `--yes` agrees to the plan that was shown, not to a dearer market that was not.
        if yes and not isinstance(question, BuyOnDemand):
            return True
        teller.close()
        hint = "Add `--yes` to agree beforehand, or `--dry-run` to look first"
        return context.console.confirm(question_text(question, now=context.now()), hint=hint)

    ready = None
    try:
        for event in up.up(context.launch, wish, confirm=confirm):
            told.append(event)
            if isinstance(event, Planned):
                work = where(context.launch, wish.name)
                context.console.say(plan_text(event.plan, now=context.now(), work=work))
                for note in notes:
                    context.console.say(note)
            else:
                teller.tell(event)
            ready = event if isinstance(event, Ready) else ready
    finally:
        teller.close()
    return ready


def _say_what_stays(context: Context, wish: LaunchRequest, ready: Ready, asked: Asked) -> None:
    """Say which flags an instance that is up cannot follow any more, and what to do about each."""
    from gpulab.planning.catalogue import instance_types
    from gpulab.planning.wishes import types_for

    instance, place = ready.instance, ready.instance.place
    follows = {
        "--gpu": place.instance_type in {t.name for t in types_for(wish, instance_types())},
        "--type": place.instance_type == wish.instance_type,
        "--region": place.region in wish.regions,
        "--env": instance.environment == wish.environment,
        "--on-demand": place.market in wish.markets,
        "--spot-only": place.market in wish.markets,
    }
    ignored = [
        flag if value is True else f"{flag} {value}"
        for flag, value in asked.flags.items()
        if value and not follows[flag]
    ]
    if ignored:
        context.console.say(
            f"note: {instance.name} runs as {place.instance_type}, {place.market}, in {place.zone}, with"
            f" {instance.environment}; for `{' '.join(ignored)}` type `gpulab stop {instance.name}` first"
        )
    if asked.names_end:
        context.console.say(f"note: `gpulab extend {instance.name}` moves its end")


def _open(context: Context, ready: Ready, *, no_open: bool, as_json: bool) -> None:
    from gpulab.launch.running import browser
    from gpulab.view.words import local_time, span

    instance, now = ready.instance, context.now()
    url = (
        ""
        if no_open
        else browser.open_detached(context.launch, instance, with_browser=not as_json).url
    )
    if as_json:
        context.console.show_json({"instance": instance, "url": url, "is_new": ready.is_new})
        return
    if url:
        context.console.show(f"JupyterLab is open at {url}")
    else:
        context.console.show(f"{instance.name} is up: `gpulab open {instance.name}`")
    if instance.expires_at is not None:
        context.console.say(
            f"It ends {local_time(instance.expires_at, now=now)}, in {span(instance.expires_at - now)}; `gpulab stop {instance.name}` ends it sooner and keeps the work"
        )
