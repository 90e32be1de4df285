"""`gpulab ssh`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from gpulab.cli.options import name_argument
from gpulab.errors import WrongUsage

if TYPE_CHECKING:
    from gpulab.cli.context import Context


class _WithRemoteCommand(click.Command):
    """Keeps what follows `--` apart, so that `gpulab ssh -- nvidia-smi` has no NAME."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the words at the first `--`."""
        place = args.index("--") if "--" in args else len(args)
        ctx.meta["gpulab.remote_command"] = args[place + 1 :]
        own = [word for word in args[:place] if not word.startswith("-")]
        if len(own) > 1:
            raise WrongUsage(
                "the command to run there stands behind `--`",
                hint=f"`gpulab ssh {own[0]} -- {' '.join(own[1:])}`",
            )
        return super().parse_args(ctx, args[:place])


@click.command(name="ssh", cls=_WithRemoteCommand)
@name_argument()
@click.pass_context
def command(ctx: click.Context, name: str | None) -> int:
    """
    Log in, or run one command: `gpulab ssh [NAME] -- COMMAND...`.

    The host key was pinned when the instance started. Without NAME it is the only instance there is.
    The exit code is the command's own.

    \b
    Example:
      gpulab ssh
      gpulab ssh week4 -- nvidia-smi
      gpulab ssh -- df -h work
      gpulab ssh week4 -- "nvidia-smi | head -5"
    """
    import subprocess

    from gpulab.launch.running import instances
    from gpulab.remote.target import without_keys

    context: Context = ctx.obj
    words = _for_the_shell_there(ctx.meta["gpulab.remote_command"])
    with context.console.patience("Finding the instance"):
        instance = instances.find(context.launch, name)
    host = instances.host(context.launch, instance)
    argv = host.shell_argv(words or None, tty=_has_terminal(bool(words)))
    return subprocess.call(argv, env=without_keys(os.environ))


def _has_terminal(is_command: bool) -> bool:
    """
    Whether somebody sits there: a login reads a terminal, and a command writes to one as well.

    Without one, a terminal over there would wait for words that never come, and write a file's lines with carriage returns.
    """
    streams = (sys.stdin, sys.stdout) if is_command else (sys.stdin,)
    return all(stream is not None and stream.isatty() for stream in streams)


def _for_the_shell_there(words: list[str]) -> list[str]:
    """Take one word as a line for the shell, as `ssh` does: "nvidia-smi | head" keeps its pipe."""
    return ["bash", "-c", words[0]] if len(words) == 1 else words
