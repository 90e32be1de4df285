"""`gpulab open`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpulab.cli.options import json_option, name_argument

if TYPE_CHECKING:
    from gpulab.cli.context import Context


@click.command(name="open")
@name_argument()
@click.option("--detach", is_flag=True, help="Keep the tunnel in the background and return.")
@click.option("--close", "is_closing", is_flag=True, help="Close the background tunnel.")
@click.option(
    "--port",
    type=click.IntRange(1024, 65535),
    metavar="PORT",
    help="Port on this computer.  [default: always the same one for a name]",
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
    """
    from gpulab.launch import browser, instances

    instance = instances.find(context.launch, name)
    if is_closing:
        is_closed = browser.close(context.launch, instance)
        context.console.say("The tunnel is closed" if is_closed else "There was no tunnel")
    elif detach:
        opened = browser.open_detached(
            context.launch, instance, port=port, with_browser=not (no_browser or as_json)
        )
        context.console.show_json(opened) if as_json else context.console.show(
            f"JupyterLab is open at {opened.url}"
        )
    else:
        browser.serve(
            context.launch,
            instance,
            port=port,
            with_browser=not (no_browser or as_json or is_announced),
            is_announced=is_announced,
            on_open=lambda opened: (
                context.console.show_json(opened)
                if as_json
                else context.console.show(
                    f"JupyterLab is open at {opened.url}; Ctrl-C closes the tunnel, the instance goes on"
                )
            ),
            on_change=context.console.say,
        )
