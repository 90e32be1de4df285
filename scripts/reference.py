"""
Writes `docs/reference.md` from what every command's `--help` prints. Runs in the gate's environment, since it imports gpulab.

    .venv/bin/python scripts/reference.py            # write it
    .venv/bin/python scripts/reference.py --check    # 5 when it is out of date
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

CHECKOUT = Path(__file__).resolve().parent.parent
REFERENCE = CHECKOUT / "docs" / "reference.md"
_WIDTH = 100
_HEAD = """\
# Reference

Every command and option, as `gpulab COMMAND --help` prints it.
Written by `scripts/reference.py`; the gate fails when it differs.
Exit codes have [a page of their own](exit-codes.md).
"""


def main() -> int:
    """Write or check the reference; 5 when a check finds a difference, with the lines that differ."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md from every --help.")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    wanted = reference()
    if not parser.parse_args().check:
        REFERENCE.write_text(wanted, encoding="utf-8")
        return 0
    found = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else ""
    if found == wanted:
        return 0
    name = str(REFERENCE.relative_to(CHECKOUT))
    lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), name, "--help", n=1)
    print("\n".join(lines))
    print("\nhint: `.venv/bin/python scripts/reference.py`")
    return 5


def reference() -> str:
    """The whole page, ending in a line break; the same on every terminal."""
    from gpulab.cli.main import group

    sections = [_section(words, command) for words, command in commands(group, ("gpulab",))]
    return "\n".join([_HEAD, *sections])


def commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command under one, itself first, with the words that call it; hidden ones are left out."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, (*words, name))


def _section(words: tuple[str, ...], command: click.Command) -> str:
    parent = click.Context(click.Group(), info_name=" ".join(words[:-1]) or None)
    context = click.Context(
        command,
        info_name=words[-1],
        parent=parent if len(words) > 1 else None,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    mark = "##" if len(words) < 3 else "###"
    return f"{mark} {' '.join(words)}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
