"""`gpulab sandbox`: start, stop and steer the simulated AWS. Decides nothing; says every time that its prices are made up."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from gpulab.cli.context import Context
from gpulab.cli.options import Amount, Duration, json_option
from gpulab.errors import GpulabError, WrongUsage

if TYPE_CHECKING:
    from gpulab.sandbox.control import Daemon

_KINDS = {
    "process": "an ssh server, a folder and JupyterLab on this computer; nothing boots",
    "container": "they really boot: systemd, cloud-init, sshd",
    "none": "nothing stands behind an instance",
}
_ZONE = "Availability zone, such as us-east-1a."
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
    _write_profile(context, daemon)
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


@command.command()
@click.argument("name", metavar="NAME|ID")
@click.option(
    "--in",
    "delay",
    type=Duration(),
    default="2m",
    show_default=True,
    help="Simulated time from the notice to the end, such as 20s.",
)
@click.option(
    "--action",
    type=click.Choice(["terminate", "stop"]),
    default="terminate",
    show_default=True,
    help="What AWS does at the end.",
)
@click.option(
    "--rebalance-first",
    is_flag=True,
    help="Send a rebalance recommendation 2 min before the notice.",
)
@json_option
@click.pass_obj
def interrupt(
    context: Context,
    name: str,
    delay: timedelta,
    action: str,
    rebalance_first: bool,
    as_json: bool,
) -> None:
    """
    Interrupt a spot instance: a notice, then the end.

    \b
    gpulab sandbox interrupt lab --in 20s
    """
    answer = _ask(
        context,
        "interrupt",
        name=name,
        in_seconds=delay.total_seconds(),
        action=action,
        rebalance_first=rebalance_first,
    )
    seconds = f"{delay.total_seconds():.0f} s"
    start_of_it = "will have its notice in 120 s" if rebalance_first else "has its notice now"
    _tell(
        context,
        answer,
        f"{answer['id']} {start_of_it}, and {seconds} later AWS {action}s it.",
        as_json=as_json,
    )


@command.command()
@click.argument("instance_type", metavar="TYPE")
@click.argument("zone", metavar="ZONE")
@click.argument("slots", metavar="N")
@json_option
@click.pass_obj
def capacity(context: Context, instance_type: str, zone: str, slots: str, as_json: bool) -> None:
    """
    Set how many more instances of TYPE fit into ZONE.

    N is a number, or `any` for as many as wanted.

    \b
    gpulab sandbox capacity g4dn.xlarge us-east-1a 0
    """
    if slots != "any" and not (slots.isascii() and slots.isdigit() and len(slots) < 7):
        raise WrongUsage(f"`{slots}` is not a number of instances", hint="0 or more, or `any`")
    number = None if slots == "any" else int(slots)
    answer = _ask(context, "capacity", type=instance_type, zone=zone, slots=number)
    room = "as many as wanted" if number is None else f"{number} more"
    _tell(context, answer, f"{zone} has room for {room} of {instance_type}.", as_json=as_json)


@command.command()
@click.argument("instance_type", metavar="TYPE")
@click.argument("zone", metavar="ZONE")
@click.argument("usd", metavar="USD", type=Amount())
@json_option
@click.pass_obj
def price(context: Context, instance_type: str, zone: str, usd: Decimal, as_json: bool) -> None:
    """
    Set the spot price of TYPE in ZONE, USD per hour.

    \b
    gpulab sandbox price g4dn.xlarge us-east-1a 0.21
    """
    answer = _ask(context, "price", type=instance_type, zone=zone, usd=str(usd))
    words = f"From now on {instance_type} in {zone} costs ${usd:f} per hour (simulated)."
    _tell(context, answer, words, as_json=as_json)


@command.command()
@click.argument("code", metavar="CODE")
@click.argument("vcpus", metavar="VCPUS", type=click.IntRange(0, 1_000_000))
@click.option("--region", help="Only this region.  [default: all]")
@json_option
@click.pass_obj
def quota(context: Context, code: str, vcpus: int, region: str | None, as_json: bool) -> None:
    """
    Set an account quota by its AWS code.

    \b
    gpulab sandbox quota L-3819A6DF 0
    """
    answer = _ask(context, "quota", code=code, vcpus=vcpus, region=region)
    where = region or "every region"
    words = f"{answer['code']} ({answer['name']}) is {vcpus} in {where}."
    _tell(context, answer, words, as_json=as_json)


@command.command()
@click.argument("operation", metavar="OPERATION")
@click.option(
    "--size",
    type=click.FloatRange(0, 100_000),
    default=1,
    show_default=True,
    help="Calls that fit at once.",
)
@click.option(
    "--per-second",
    type=click.FloatRange(0, 100_000),
    default=0.1,
    show_default=True,
    help="Calls that come back in a simulated second.",
)
@json_option
@click.pass_obj
def throttle(
    context: Context, operation: str, size: float, per_second: float, as_json: bool
) -> None:
    """
    Limit the rate of one EC2 operation.

    Over it AWS answers RequestLimitExceeded.

    \b
    gpulab sandbox throttle RunInstances --size 1 --per-second 0.1
    """
    answer = _ask(context, "throttle", operation=operation, size=size, per_second=per_second)
    words = f"{operation}: {size:g} at once, then {per_second:g} per second."
    _tell(context, answer, words, as_json=as_json)


@command.command()
@click.argument("operation", metavar="OPERATION")
@click.argument("code", metavar="CODE")
@click.option("--times", type=click.IntRange(1), help="So many calls fail.  [default: all]")
@click.option("--zone", help=f"Only calls for this place. {_ZONE}")
@json_option
@click.pass_obj
def fail(
    context: Context,
    operation: str,
    code: str,
    times: int | None,
    zone: str | None,
    as_json: bool,
) -> None:
    """
    Let calls of OPERATION fail with the AWS error CODE.

    The code `reply-lost` breaks the connection after the call took effect, `request-lost` before it.
    `gpulab sandbox mend` lifts every fault.

    \b
    gpulab sandbox fail RunInstances InsufficientInstanceCapacity --zone us-east-1a
    gpulab sandbox fail RunInstances reply-lost --times 1
    """
    answer = _ask(context, "fail", operation=operation, code=code, times=times, zone=zone)
    often = "every call" if times is None else f"the next {times}"
    where = f" in {zone}" if zone else ""
    _tell(context, answer, f"{operation}{where}: {often} fails with {code}.", as_json=as_json)


@command.command()
@json_option
@click.pass_obj
def mend(context: Context, as_json: bool) -> None:
    """
    Lift every fault that `fail` has set.

    \b
    gpulab sandbox mend
    """
    _tell(context, _ask(context, "mend"), "No call fails on purpose any more.", as_json=as_json)


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
    from gpulab.sandbox.control import find

    variables = _variables(find(_folder(context)))
    if as_json:
        context.console.show_json(variables)
        return
    shell = shell or _shell(context.environment)
    for name, value in variables.items():
        context.console.show(_assignment(shell, name, value))


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


def _ask(context: Context, what: str, **parameters: Any) -> Any:
    from gpulab.sandbox.control import ask, find

    return ask(find(_folder(context)), what, **parameters)


def _tell(context: Context, answer: Any, words: str, *, as_json: bool) -> None:
    if as_json:
        context.console.show_json(answer)
    else:
        context.console.say(words)


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
    return f"{call['time']}  {call['account']}  {call['region']}  {what}  {call['outcome']}"


def _check_configuration(context: Context) -> None:
    """Refuse a broken configuration before anything is started: its profile is written afterwards."""
    context.home.config()


def _write_profile(context: Context, daemon: Daemon) -> None:
    """Lead the profile `sandbox` of gpulab, and AWS files of its own, to the sandbox that runs."""
    from gpulab.store.config import change_profile
    from gpulab.store.files import write_atomically

    folder = _folder(context) / "aws"
    config, credentials = folder / "config", folder / "credentials"
    write_atomically(config, _aws_config(daemon).encode())
    write_atomically(credentials, _aws_credentials(daemon).encode())
    proxy = [sys.executable, "-P", "-m", "gpulab.sandbox", "connect", "%h", "%p"]
    change_profile(
        context.home.config_file,
        _profile(),
        {
            "aws_profile": _profile(),
            "aws_config_file": str(config),
            "aws_credentials_file": str(credentials),
            # Nobody on the real internet can say where this computer reaches the machines from; the server's own address is it.
            "cidr": f"{urlsplit(daemon.url).hostname}/32",
            "ssh_proxy_command": proxy if daemon.machines == "process" else None,
        },
    )


def _aws_config(daemon: Daemon) -> str:
    return (
        "# Written by `gpulab sandbox start`; a simulated AWS.\n"
        f"[profile {_profile()}]\n"
        f"region = {daemon.region}\n"
        f"endpoint_url = {daemon.url}\n"
        "s3 =\n"
        "    addressing_style = path\n"
    )


def _aws_credentials(daemon: Daemon) -> str:
    return (
        "# Made up; they open nothing but the sandbox.\n"
        f"[{_profile()}]\n"
        f"aws_access_key_id = {daemon.access_key}\n"
        f"aws_secret_access_key = {daemon.secret_key}\n"
    )


def _variables(daemon: Daemon) -> dict[str, str | None]:
    """Variables to set, and with `None` those to unset, which would lead a client elsewhere."""
    return {
        "AWS_ENDPOINT_URL": daemon.url,
        "AWS_ACCESS_KEY_ID": daemon.access_key,
        "AWS_SECRET_ACCESS_KEY": daemon.secret_key,
        "AWS_DEFAULT_REGION": daemon.region,
        "AWS_REGION": daemon.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PROFILE": None,
        "AWS_SESSION_TOKEN": None,
    }


def _shell(environment: Mapping[str, str]) -> str:
    if os.name == "nt" and "SHELL" not in environment:
        return "powershell"
    return "fish" if environment.get("SHELL", "").endswith("fish") else "sh"


def _assignment(shell: str, name: str, value: str | None) -> str:
    if shell == "fish":
        return f"set -e {name}" if value is None else f"set -gx {name} {shlex.quote(value)}"
    if shell == "powershell":
        if value is None:
            return f"Remove-Item Env:{name} -ErrorAction SilentlyContinue"
        quoted = value.replace("'", "''")
        return f"$Env:{name} = '{quoted}'"
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
