"""The command table, loaded one command at a time, and the one place where errors become words and exit codes."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gpulab.errors import GpulabError, Interrupted, WrongUsage

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

# As click says it: `Got unexpected extra argument (1h)`.
_A_TIME_TOO_MUCH = re.compile(r"unexpected extra argument \([\d.]+ ?[hm]?\)")

# Name -> (module, its help in one line). The help stands here so that `gpulab --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("gpulab.cli.init", "Set up this computer and the account, once."),
    "doctor": ("gpulab.cli.doctor", "Check, at no cost, all that a launch needs."),
    "prices": ("gpulab.cli.prices", "Show what GPUs cost now, by zone, cheapest first."),
    "up": ("gpulab.cli.up", "Start an instance and open JupyterLab on it."),
    "ls": ("gpulab.cli.ls", "List your instances and what they cost."),
    "show": ("gpulab.cli.show", "Show everything about one instance."),
    "open": ("gpulab.cli.open", "Open JupyterLab through the tunnel."),
    "check": ("gpulab.cli.check", "Check driver, GPU, TensorFlow and disk of an instance."),
    "ssh": ("gpulab.cli.ssh", "Log in, or run one command: `gpulab ssh [NAME] -- COMMAND...`."),
    "logs": ("gpulab.cli.logs", "Read what the instance wrote while it set itself up."),
    "push": ("gpulab.cli.push", "Copy files to the instance."),
    "pull": ("gpulab.cli.pull", "Copy files from the instance, or from the kept work."),
    "extend": ("gpulab.cli.extend", "Move an instance's end."),
    "stop": ("gpulab.cli.stop", "Save the work and end the instance."),
    "rm": ("gpulab.cli.rm", "Delete kept work."),
    "sweep": ("gpulab.cli.sweep", "Find everything of yours that costs, in all regions."),
    "credit": ("gpulab.cli.credit", "Show what is left and how long it lasts."),
    "guard": (
        "gpulab.cli.guard",
        "Show and arm what the account does by itself against running costs.",
    ),
    "cost": ("gpulab.cli.cost", "Compute what a timeline of instances and disks cost."),
    "ledger": (
        "gpulab.cli.ledger",
        "Read, export, import or rebuild the record of what was spent.",
    ),
    "report": ("gpulab.cli.report", "Report what was used and spent."),
    "course": (
        "gpulab.cli.course",
        "Write, check and show a course: its labs, accounts and students.",
    ),
    "env": ("gpulab.cli.env", "List, check and lock the lab environments."),
    "fleet": ("gpulab.cli.fleet", "Start, watch and end the instances of a whole class."),
    "dashboard": (
        "gpulab.cli.dashboard",
        "Show a lab, or your own instances, live in the browser.",
    ),
    "image": (
        "gpulab.cli.image",
        "Bake, test, copy and delete images with a lab environment in them.",
    ),
    "sandbox": ("gpulab.cli.sandbox", "Run a simulated AWS to try everything without an account."),
    "completion": ("gpulab.cli.completion", "Print shell completion for bash, zsh or fish."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, in the order of a student's day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names from the table; click would import every one that fits."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean `gpulab {near[0]}`?" if near else "See `gpulab --help`"
            raise WrongUsage(f"there is no command `{args[0]}`", hint=hint)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `gpulab init`, or without an account: `gpulab sandbox start`.",
)
@click.option(
    "--profile",
    metavar="NAME",
    help="Which profile of the configuration to use.  [default: $GPULAB_PROFILE, else the configuration's]",
)
@click.version_option(package_name="gpulab", message="gpulab %(version)s")
@click.pass_context
def group(ctx: click.Context, profile: str | None) -> None:
    """
    GPU labs on AWS spot instances, paid from your own credits.

    \b
    gpulab up          start a GPU instance and open JupyterLab
    gpulab stop        save the work and end the instance
    gpulab ls          what runs, what it costs, when it ends
    """
    from gpulab.cli.context import context_of

    ctx.obj = context_of(profile_name=profile)


def run(arguments: Sequence[str]) -> int:
    """
    Run one command line.

    Returns:
        The exit code: 0 done, 1 the outside failed, 2 wrong usage, 3 refused by a limit, 4 some of a fleet failed,
        5 `--check` found problems, 130 interrupted.
    """
    if "_GPULAB_COMPLETE" in os.environ:
        return _invoke(arguments)
    try:
        return _invoke(arguments)
    except GpulabError as error:
        _say(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say(Interrupted("interrupted", hint="`gpulab ls` shows what runs; nothing is lost"))
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`gpulab ls | head`): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _say(_unexpected(error))
        return 1


def _invoke(arguments: Sequence[str]) -> int:
    try:
        result = group.main(list(arguments), prog_name="gpulab", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as usage:
        click.echo(usage.format_message())
        return 2
    except click.UsageError as usage:
        command = usage.ctx.command_path if usage.ctx else "gpulab"
        message = _one_sentence(usage.format_message())
        raise WrongUsage(message, hint=_usage_hint(usage, command)) from usage
    except click.ClickException as error:
        raise WrongUsage(error.format_message()) from error
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _usage_hint(usage: click.UsageError, command: str) -> str:
    """Name the option for a length of time that was typed without one, as `gpulab extend week4 1h`; else the help."""
    options = [o for each in usage.ctx.command.params for o in each.opts] if usage.ctx else []
    if "--hours" in options and _A_TIME_TOO_MUCH.search(usage.format_message()):
        return f"A length of time is an option, as in `{command} --hours 1`"
    return f"See `{command} --help`"


def _one_sentence(message: str) -> str:
    """Put click's message into our form: one line, and numbers called what people call them."""
    words = " ".join(message.split()).rstrip(".")
    for name, said in (("integer range", "whole number"), ("float range", "number")):
        words = words.replace(f"is not a valid {name}", f"is not a {said}")
    return words[:1].lower() + words[1:]


def _say(error: GpulabError) -> None:
    from gpulab.cli.context import context_of

    context_of().console.say_error(error)


def _unexpected(error: Exception) -> GpulabError:
    """Keep the traceback in a file and say where; it is a fault of ours."""
    import traceback
    from datetime import UTC, datetime

    from gpulab.store.home import Home
    from gpulab.view.secrets import without_secrets
    from gpulab.view.words import clean

    # Read in a terminal, and an exception may quote anything; a lone surrogate could not even be written.
    text = clean(without_secrets("".join(traceback.format_exception(error))))
    try:
        path = Home.of(os.environ).errors / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}.txt"
        _write_private(path, text)
    except (OSError, GpulabError):
        return GpulabError(f"gpulab failed in an unexpected way: {type(error).__name__}")
    return GpulabError(
        f"gpulab failed in an unexpected way: {type(error).__name__}",
        hint=f"The details are in {path}; `gpulab ls` shows what runs",
    )


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
