"""`gpulab completion`: the shell's script, as click makes it, but for what is wrong in it."""

from __future__ import annotations

import click

from gpulab.errors import WrongUsage


@click.command(name="completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """
    Print shell completion for bash, zsh or fish.

    Instance names complete from a local cache; no completion waits for the network.

    \b
    Example:
      gpulab completion bash > ~/.local/share/bash-completion/completions/gpulab
      gpulab completion zsh > ~/.zfunc/_gpulab
      gpulab completion fish > ~/.config/fish/completions/gpulab.fish
    """
    from click.shell_completion import get_completion_class

    from gpulab.cli.main import group

    kind = get_completion_class(shell)
    if kind is None:
        raise WrongUsage(f"`{shell}` is not a shell gpulab can complete for")
    try:
        script = kind(group, {}, "gpulab", "_GPULAB_COMPLETE").source()
    except RuntimeError as error:
        raise WrongUsage(str(error)) from error
    # click's fish script splits an answer at every comma, also at those of the help in it.
    click.echo(script.replace('string split ","', 'string split -m 1 ","'))
