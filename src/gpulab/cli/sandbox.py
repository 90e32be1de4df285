"""`gpulab sandbox`: start, stop and steer the simulated AWS. Decides nothing; says every time that its prices are made up."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpulab.cli import sandbox_turning
from gpulab.cli.options import json_option
from gpulab.errors import GpulabError

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.sandbox.control import Daemon

_KINDS = {
    "process": "an ssh server, a folder and JupyterLab on this computer; nothing boots",
    "container": "they really boot: systemd, cloud-init, sshd",
    "none": "nothing stands behind an instance",
}
_FOLLOW_EVERY_S = 0.5


class _InOrder(click.Group):
    """A group that lists its commands in the order they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(self.commands)


@click.group(
    name="sandbox",
    cls=_InOrder,
    context_settings={"max_content_width": 100},
    epilog="Everything in the sandbox is simulated: no account, no money, made-up prices.",
)
def command() -> None:
    """
    Run a simulated AWS to try everything without an account.

    It is reached like any AWS, as the profile `sandbox`. It keeps running between commands and ends with `stop`.

    \b
    gpulab sandbox start
    gpulab --profile sandbox up
    gpulab sandbox stop
    """


@command.command()
@click.option(
    "--machines",
    type=click.Choice(list(_KINDS)),
    default="process",
    show_default=True,
    help="What stands behind an instance: `process` needs no root, `container` really boots (root on Linux).",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.01, 100_000),
    default=1.0,
    show_default=True,
    help="Simulated seconds for each real one. Machines keep real time.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Repeat the prices and ids of an earlier sandbox.  [default: a new one]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of 127.0.0.1.  [default: a free one]",
)
@click.option(
    "--not-ready",
    is_flag=True,
    help="Begin like an account on its first day: no GPU quota, no spot role.",
)
@json_option
@click.pass_obj
def start(
    context: Context,
    machines: str,
    speed: float,
    seed: int | None,
    port: int,
    not_ready: bool,
    as_json: bool,
) -> None:
    """
    Start a simulated AWS in the background, in a new world.

    \b
    gpulab sandbox start
    gpulab sandbox start --speed 60 --seed 7
    """
    from gpulab.cli.sandbox_profile import forget_former_world, write_profile
    from gpulab.sandbox.daemon import Waiting, Wish
    from gpulab.sandbox.daemon import start as start_daemon

    wish = Wish(
        machines=machines,
        speed=speed,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        port=port,
        is_ready=not not_ready,
    )
    _check_configuration(context)
    left: tuple[str, ...] = ()
    daemon = _the_same(_folder(context), machines=machines, speed=speed, seed=seed, port=port)
    if daemon is None:
        with context.console.step("starting the sandbox"):
            daemon, left = start_daemon(
                _folder(context), wish, environment=context.environment, waiting=Waiting()
            )
        forget_former_world(context)
    write_profile(context, daemon)
    if as_json:
        context.console.show_json({**_public(daemon), "profile": _profile(), "cleared": left})
        return
    if left:
        context.console.say(f"Cleared away what a killed sandbox had left: {', '.join(left)}")
    context.console.say(f"A simulated AWS answers at {daemon.url}: no money, made-up prices.")
    context.console.say(f"Machines of kind `{daemon.machines}`: {_KINDS[daemon.machines]}.")
    context.console.say("\nNext:")
    context.console.say(f"  gpulab --profile {_profile()} up")
    context.console.say("  gpulab sandbox stop")
    context.console.say(
        f"`export GPULAB_PROFILE={_profile()}` leads every command of this terminal there."
    )


@command.command()
@json_option
@click.pass_obj
def stop(context: Context, as_json: bool) -> None:
    """
    End the sandbox, its world and every machine in it.

    \b
    gpulab sandbox stop
    """
    from gpulab.sandbox.daemon import Waiting
    from gpulab.sandbox.daemon import stop as stop_daemon

    has_stopped = stop_daemon(_folder(context), waiting=Waiting())
    if as_json:
        context.console.show_json({"stopped": has_stopped})
    elif has_stopped:
        context.console.say("The sandbox has ended, and every machine in it.")
    else:
        context.console.say("The sandbox was not running.")


@command.command()
@json_option
@click.pass_obj
def status(context: Context, as_json: bool) -> None:
    """
    Show whether it runs, its instances and what was changed in it.

    \b
    gpulab sandbox status
    """
    from gpulab.sandbox.control import NotRunning, ask, find

    try:
        daemon = find(_folder(context))
        world = ask(daemon, "status")
    except NotRunning as reason:
        if as_json:
            context.console.show_json({"running": False})
        else:
            context.console.show(f"{reason.message[:1].upper()}{reason.message[1:]}.")
        return
    if as_json:
        context.console.show_json({"running": True, **_public(daemon), **world})
        return
    _show_status(context, daemon, world)


@command.command()
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
@json_option
@click.pass_obj
def log(context: Context, follow: bool, as_json: bool) -> None:
    """
    List every AWS call it has received.

    With `--json` a list of objects; with `--follow --json` one object on each line.

    \b
    gpulab sandbox log
    gpulab sandbox log --follow
    """
    from gpulab.sandbox.control import ask, find

    daemon, calls, since = find(_folder(context)), [], 0
    while True:
        piece = ask(daemon, "log", since=since)
        is_last = piece["next"] == since
        since = piece["next"]
        if as_json and not follow:
            calls += piece["calls"]
        for call in piece["calls"] if follow or not as_json else []:
            context.console.show(json.dumps(call) if as_json else _log_line(call))
        if is_last and not follow:
            break
        if is_last:
            context.sleep(_FOLLOW_EVERY_S)
    if as_json:
        context.console.show_json(calls)


for turning in sandbox_turning.COMMANDS:
    command.add_command(turning)


@command.command()
@click.option(
    "--shell",
    type=click.Choice(["sh", "fish", "powershell"]),
    help="In which language.  [default: that of your shell]",
)
@json_option
@click.pass_obj
def env(context: Context, shell: str | None, as_json: bool) -> None:
    """
    Print the variables that lead any AWS client here.

    \b
    eval "$(gpulab sandbox env)"
    """
    from gpulab.cli.sandbox_profile import assignment, shell_of, variables
    from gpulab.sandbox.control import find

    found = variables(find(_folder(context)))
    if as_json:
        context.console.show_json(found)
        return
    shell = shell or shell_of(context.environment)
    for name, value in found.items():
        context.console.show(assignment(shell, name, value))


@command.command()
@click.pass_obj
def build(context: Context) -> None:
    """
    Build what machines of kind `container` start from.

    \b
    gpulab sandbox build
    """
    from gpulab.sandbox.machines import CannotBoot
    from gpulab.sandbox.machines.container import build as build_base

    try:
        build_base(context.environment, say=context.console.say)
    except CannotBoot as reason:
        raise GpulabError(str(reason)) from reason


@command.command()
@click.argument("host", metavar="HOST")
@click.argument("port", metavar="PORT", type=click.IntRange(1, 65535))
@click.pass_obj
def connect(context: Context, host: str, port: int) -> int:
    """
    Carry bytes to an instance, as an ssh ProxyCommand.

    \b
    ssh -o ProxyCommand="gpulab sandbox connect %h %p" ubuntu@54.210.1.2
    """
    from gpulab.sandbox.connect import connect as carry

    return carry(host, port, context.environment)


def _folder(context: Context) -> Path:
    from gpulab.sandbox.control import folder_of

    return folder_of(context.environment)


def _profile() -> str:
    from gpulab.sandbox.control import PROFILE

    return PROFILE


def _the_same(folder: Path, **asked: Any) -> Daemon | None:
    """Return a sandbox that runs already and is what was asked for; another one is refused by starting a second."""
    from gpulab.sandbox.control import NotRunning, find

    try:
        daemon = find(folder)
    except NotRunning:
        return None
    port = int(daemon.url.rpartition(":")[2])
    is_same = (daemon.machines, daemon.speed) == (asked["machines"], asked["speed"])
    return (
        daemon
        if is_same and asked["seed"] in (None, daemon.seed) and asked["port"] in (0, port)
        else None
    )


def _public(daemon: Daemon) -> dict[str, Any]:
    """What everyone may see of the record: not the secret of the control API."""
    return {
        "url": daemon.url,
        "pid": daemon.pid,
        "machines": daemon.machines,
        "speed": daemon.speed,
        "seed": daemon.seed,
        "region": daemon.region,
        "account": daemon.account,
    }


def _show_status(context: Context, daemon: Daemon, world: Mapping[str, Any]) -> None:
    show = context.console.show
    show(f"A simulated AWS answers at {daemon.url}: no money, made-up prices.")
    time = "real time" if daemon.speed == 1 else f"time {daemon.speed:g} times as fast"
    show(f"Machines of kind `{daemon.machines}`, {time}, seed {daemon.seed}.")
    show(
        f"It is {world['now']} there; {world['calls']} AWS calls so far; ${world['simulated_usd']} of simulated money spent."
    )
    if world["instances"]:
        show("")
        rows = [
            [i["name"], i["id"], i["state"], i["type"], i["zone"], i["market"], i["address"]]
            for i in world["instances"]
        ]
        heads = ["NAME", "ID", "STATE", "TYPE", "ZONE", "MARKET", "ADDRESS"]
        context.console.show_table(rows, heads)
    for place in world["capacity"]:
        show(f"Room for {place['free']} more of {place['type']} in {place['zone']}.")


def _log_line(call: Mapping[str, Any]) -> str:
    what = f"{call['service']}:{call['operation']}"
    return f"{call['time'][:19]}Z  {call['account']}  {call['region']}  {what}  {call['outcome']}"


def _check_configuration(context: Context) -> None:
    """Refuse a broken configuration before anything is started: its profile is written afterwards."""
    context.home.config()
