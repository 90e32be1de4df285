"""`gpulab open`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpulab.cli.interrupted import explained, left_by_ticket
from gpulab.cli.options import json_option, name_argument
from gpulab.errors import Interrupted, WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context
    from gpulab.launch.running.browser import Opened


@click.command(name="open")
@name_argument()
@click.option("--detach", is_flag=True, help="Keep the tunnel in the background and return.")
@click.option(
    "--close", "is_closing", is_flag=True, help="Close the background tunnel; without NAME, all."
)
@click.option(
    "--port",
    type=click.IntRange(1024, 65535),
    metavar="PORT",
    help="Port on this computer.  [default: always the same one for a name]",
)
@click.option(
    "--tensorboard",
    "with_tensorboard",
    is_flag=True,
    help="Open TensorBoard instead, through the same tunnel; started when it does not run.",
)
@click.option(
    "--logdir",
    metavar="FOLDER",
    help="With --tensorboard: the folder it reads, below the home.  [default: work]",
)
@click.option(
    "--ticket",
    "ticket_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Open the instance your teacher started for you, with the file you were sent.",
)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option(
    "--announce",
    "is_announced",
    is_flag=True,
    hidden=True,
    help="This process is the background tunnel.",
)
@json_option
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    detach: bool,
    is_closing: bool,
    port: int | None,
    with_tensorboard: bool,
    logdir: str | None,
    ticket_file: Path | None,
    no_browser: bool,
    is_announced: bool,
    as_json: bool,
) -> None:
    """
    Open JupyterLab through the tunnel.

    The tunnel survives a bad network, a closed lid and an instance that is replaced; the browser's tab keeps working. In the foreground
    Ctrl-C closes it; the instance goes on either way.

    \b
    Example:
      gpulab open
      gpulab open week4 --detach
      gpulab open week4 --close
      gpulab open week4 --tensorboard --logdir work/logs
      gpulab open --ticket s171000.ticket
    """
    with_browser = not (no_browser or as_json or is_announced)
    if ticket_file is not None:
        if name or detach or is_closing or with_tensorboard:
            raise WrongUsage("`--ticket` stands alone", hint="It keeps the tunnel in this terminal")
        _open_ticket(context, ticket_file, port, with_browser=with_browser, as_json=as_json)
        return
    if is_closing:
        _close(context, name, as_json=as_json)
        return
    if logdir is not None and not with_tensorboard:
        raise WrongUsage("`--logdir` comes with `--tensorboard`", hint="Add `--tensorboard`")
    from gpulab.launch.running import browser, instances

    instance = instances.find(context.launch, name)
    folder = (logdir or "work") if with_tensorboard else None
    if detach:
        opened = browser.open_detached(
            context.launch, instance, port=port, with_browser=with_browser, logdir=folder
        )
        _show(context, opened, "", as_json=as_json)
        return
    if not is_announced:
        _take_over(context, instance.name)
    try:
        browser.serve(
            context.launch,
            instance,
            port=port,
            with_browser=with_browser,
            is_announced=is_announced,
            logdir=folder,
            on_open=lambda opened: _show(context, opened, _HERE, as_json=as_json),
            on_change=context.console.say,
        )
    except KeyboardInterrupt:
        context.console.say(f"\nThe tunnel is closed; {instance.name} goes on")
        raise click.exceptions.Exit(Interrupted.exit_code) from None


_HERE = "; Ctrl-C closes the tunnel, the instance goes on"


def _show(context: Context, opened: Opened, beside: str, *, as_json: bool) -> None:
    if as_json:
        context.console.show_json(opened)
    else:
        context.console.show(f"{_said(opened)}{beside}")


def _said(opened: Opened) -> str:
    if opened.tensorboard_url:
        return f"TensorBoard is open at {opened.tensorboard_url}, JupyterLab at {opened.url}"
    return f"JupyterLab is open at {opened.url}"


def _take_over(context: Context, name: str) -> None:
    """Close the background tunnel of a name, so that this one listens where the browser's tab looks."""
    from gpulab.remote import detached

    if detached.stop(context.folder.tunnels, name) is not None:
        context.console.say("This tunnel takes the place of the one in the background")


def _close(context: Context, name: str | None, *, as_json: bool) -> None:
    """Close the background tunnel of a name, or of all; asks nobody, so that it works when the instance or the network is gone."""
    from gpulab.remote import detached

    folder = context.folder.tunnels
    names = [record.name for record in detached.listing(folder) if name in (None, record.name)]
    closed = [found for found in names if detached.stop(folder, found) is not None]
    if as_json:
        context.console.show_json({"closed": closed})
    elif closed:
        context.console.say(f"The tunnel to {', '.join(closed)} is closed")
    else:
        context.console.say("There was no tunnel")


def _open_ticket(
    context: Context, file: Path, port: int | None, *, with_browser: bool, as_json: bool
) -> None:
    """Keep the tunnel to a ticket's instance in this terminal."""
    from gpulab.fleet.ticket import read_ticket
    from gpulab.launch.running import ticket as tickets
    from gpulab.view.words import local_time

    found = read_ticket(file.read_bytes(), file=str(file))
    ends = local_time(found.ends_at, now=context.now())
    context.console.say(f"Reaching {found.name}, until {ends}")
    with explained(left_by_ticket):
        tickets.serve(
            context.launch,
            found,
            port=port,
            with_browser=with_browser,
            on_open=lambda opened: (
                context.console.show_json(opened)
                if as_json
                else context.console.show(f"JupyterLab is open at {opened.url} until {ends}{_HERE}")
            ),
            say=context.console.say,
            wait=context.sleep,
        )
