"""`gpulab dashboard`."""

from __future__ import annotations

import contextlib
import importlib.util
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gpulab.cli import classroom
from gpulab.cli.classroom import course_option
from gpulab.cli.fleet_options import choose, choosing_options, open_accounts
from gpulab.errors import Interrupted, StoreError, WrongUsage, extra_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpulab.cli.context import Context
    from gpulab.dashboard.serving import Served
    from gpulab.view.dashboard import Board

    Look = Callable[[], Iterator[Board]]


@click.command(name="dashboard")
@click.argument("lab_id", metavar="[LAB]", required=False)
@choosing_options
@click.option(
    "--names", "has_names", is_flag=True, help="Show students' names too; think of the projector."
)
@click.option(
    "--every",
    default=15,
    show_default=True,
    type=click.IntRange(5, 3600),
    metavar="SECONDS",
    help="Seconds between two looks at AWS, however many pages are open.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port on this computer.  [default: any that is free]",
)
@click.option("--no-open", is_flag=True, help="Print the file to open instead of opening it.")
@course_option
@click.pass_obj
def command(
    context: Context,
    lab_id: str | None,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    has_names: bool,
    every: int,
    port: int | None,
    no_open: bool,
    course_folder: str | None,
) -> int:
    """
    Show a lab, or your own instances, live in the browser.

    Who is up, starting, in trouble and why, idle, GPU use, dollars against the budget, time left, and a log. The page is on this
    computer only and changes nothing; Ctrl-C ends it.

    \b
    Example:
      gpulab dashboard week4
      gpulab dashboard week4 --group g7 --names
      gpulab dashboard
    """
    _refuse_without_extra()
    from gpulab.dashboard.feed import Feed
    from gpulab.dashboard.serving import serving

    if lab_id is None:
        if only or groups or has_names or course_folder:
            raise WrongUsage(
                "`--only`, `--group`, `--names` and `--course` choose students of a lab",
                hint="Name the lab: `gpulab dashboard LAB`",
            )
        title, look = "My instances", _own(context)
    else:
        title, look = _class(context, course_folder, lab_id, only, groups, has_names=has_names)
    feed = Feed(title, now=context.now, sleep=context.sleep)
    with serving(feed, folder=context.home.root / "dashboard", port=port or 0) as served:
        _lead(context, served, no_open=no_open)
        try:
            while True:
                feed.look(look)
                feed.rest(timedelta(seconds=every))
        except KeyboardInterrupt:
            context.console.say()
            return Interrupted.exit_code


def _refuse_without_extra() -> None:
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        raise StoreError(
            f"this needs {missing[0]}, which is not installed",
            hint=extra_hint("dashboard"),
        )


def _own(context: Context) -> Look:
    from gpulab.dashboard.looking import OwnLook

    return OwnLook(context.launch)


def _class(
    context: Context,
    course_folder: str | None,
    lab_id: str,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    *,
    has_names: bool,
) -> tuple[str, Look]:
    from gpulab.dashboard.looking import ClassLook
    from gpulab.fleet.lab import lab_of
    from gpulab.fleet.seats import seats_of
    from gpulab.fleets.former import former

    sound, course = classroom.read_sound(context, course_folder)
    lab = lab_of(course, lab_id)
    everyone = seats_of(course, lab, sound.roster.students, secret=sound.secret)
    seats = choose(everyone, only=only, groups=groups)
    if not seats:
        raise WrongUsage("that is nobody", hint="`gpulab fleet ls LAB` shows who is up")
    accounts, has_all = open_accounts(context, course), not (only or groups)
    refs = {seat.account for seat in everyone}
    left = former(accounts, refs, secret=sound.secret, lab=lab.id) if has_all else ()
    look = ClassLook(accounts, lab, seats, has_all=has_all, has_names=has_names, former=left)
    return f"{course.id} {lab.id}: {lab.title}", look


def _lead(context: Context, served: Served, *, no_open: bool) -> None:
    say = context.console.say
    if no_open:
        say("Open this file in a browser; it is a key to the page. Ctrl-C ends the dashboard")
        context.console.show(str(served.file))
        return
    import webbrowser

    say(
        f"The dashboard is at {served.url}; if no page opens, open {served.file}. Ctrl-C ends it, nothing else"
    )
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(served.file.as_uri())
