"""
Writes `docs/tutorial.md` anew: runs the page's own commands, from top to bottom, in one sandbox, and puts in what each of them showed.

    python3 scripts/tutorial.py             # some minutes; writes the page when every command did what it should
    python3 scripts/tutorial.py --print     # only prints the page

The prose is the page's own. Each block marked `console` is typed line by line (`$ ...`) in a terminal, and its output replaced. Comments
above a block, which no reader sees, say what a person does beside typing, and what must come out:

    <!-- first until `COMMAND` says `TEXT` -->     wait for it, as a person would
    <!-- at `TEXT` type `KEYS` -->                 answer a question; in the order they stand
    <!-- at `TEXT` press Ctrl-C -->
    <!-- show 12 lines -->                         of each command's output; the rest is counted, not shown
    <!-- show from `TEXT` -->                      the lines before the first that has it likewise; all where none has
    <!-- says `TEXT` -->                           the block is wrong without it
    <!-- ends with 1 -->                           the exit code of its last command, where it isn't 0

Nothing of an output is edited. A folder that stands for the student's home is made for the run and deleted after it, gpulab with it, so no
path is this computer's. Standard library only; takes about 0.6 GB of disk while it runs. Not on Windows: it needs a terminal of Unix.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import environment
import terminal
from environment import CHECKOUT

PAGE = CHECKOUT / "docs" / "tutorial.md"
_HOME = Path("/tmp/student")  # noqa: S108 - made exclusively; its name is read in the page
_ZONE = "Europe/Copenhagen"
_PATIENCE_S = 240.0
_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```console\n(.*?)^```$", re.M | re.S)
_MADE = re.compile(r"(?<=<!-- made -->\n).*?(?=\n\n)", re.S)


class Wrong(Exception):
    """The page asks for something that cannot be, or a command did not do what the page says; the text says which."""


@dataclass(frozen=True)
class Block:
    """
    One block of commands and what goes with them.

    Attributes:
        commands: As typed, without the prompt.
        until: Commands to repeat before, each with what it must say.
        typed: What is typed into the last one.
        lines: How many lines of each output are shown; `None` for all.
        start: What the first line to be shown has in it; empty for the very first.
        says: What must be in the output.
        exit_code: Of the last one; the others end with 0.
    """

    commands: tuple[str, ...]
    until: tuple[tuple[str, str], ...] = ()
    typed: tuple[terminal.Typed, ...] = ()
    lines: int | None = None
    start: str = ""
    says: tuple[str, ...] = ()
    exit_code: int = 0


@dataclass
class Student:
    """
    Somebody at a terminal.

    Attributes:
        folder: Where they type, their home.
        variables: The environment of their commands; `export NAME=VALUE` changes it for those that follow.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def types(self, command: str, typed: Sequence[terminal.Typed] = ()) -> terminal.Ended:
        """Type one command and answer what it asks."""
        named = re.fullmatch(r"export (\w+)=(\S*)", command)
        if named:
            self.variables[named[1]] = named[2]
            return terminal.Ended("", 0)
        return terminal.run(command, folder=self.folder, environment=self.variables, typed=typed)


def main(arguments: Sequence[str]) -> int:
    """Write the page; 1 when a command did not do what the page says, which leaves the page as it was."""
    parser = argparse.ArgumentParser(description="Write docs/tutorial.md anew, by running it.")
    parser.add_argument("--print", dest="is_printed", action="store_true", help="do not write it")
    options = parser.parse_args(arguments)
    # Whoever ends the run must not leave its sandbox behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _HOME.mkdir(mode=0o700)
    except FileExistsError:
        raise Wrong(f"{_HOME} is there already; delete it, or let the other run end") from None
    try:
        page = _page()
    finally:
        shutil.rmtree(_HOME)
    if options.is_printed:
        print(page)
    else:
        PAGE.write_text(page, encoding="utf-8")
    return 0


def written(page: str, student: Student, *, tell: Callable[[str], None]) -> str:
    """
    Run a page and return it with what its commands showed.

    Args:
        tell: Told each command and its output, as it ends.

    Raises:
        Wrong: See there.
    """
    return _BLOCK.sub(lambda found: _rewritten(found, student, tell), page)


def blocks(page: str) -> list[Block]:
    """
    Read the blocks of a page, in order.

    Raises:
        Wrong: A comment above a block is none of those that this program knows.
    """
    return [_read(found) for found in _BLOCK.finditer(page)]


def _page() -> str:
    made = environment.prepare(_HOME / ".venv", "demo", editable=True)
    student = Student(_HOME, _surroundings(made))
    began = time.monotonic()
    try:
        page = written(PAGE.read_text(encoding="utf-8"), student, tell=_tell)
    finally:
        student.types("gpulab open --close; gpulab sandbox stop")
    return _MADE.sub(_made(time.monotonic() - began), page)


def _surroundings(made: environment.Environment) -> dict[str, str]:
    """The variables of somebody new at a computer, with packages from where this computer gets them."""
    ours = environment.surroundings()
    theirs = {n: v for n, v in ours.items() if not n.startswith(("AWS_", "GPULAB_", "BOTO_"))}
    theirs.setdefault("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    return theirs | {
        "HOME": str(_HOME),
        "PATH": os.pathsep.join([str(made.python.parent), os.environ["PATH"]]),
        "SHELL": "/bin/bash",
        "TERM": "xterm",
        "TZ": _ZONE,
        "NO_COLOR": "1",
        "BROWSER": "true",
    }


def _rewritten(found: re.Match[str], student: Student, tell: Callable[[str], None]) -> str:
    block = _read(found)
    for command, text in block.until:
        _wait(student, command, text)
    shown, seen = [], ""
    for n, command in enumerate(block.commands, 1):
        is_last = n == len(block.commands)
        ended = student.types(command, block.typed if is_last else ())
        tell(f"$ {command}\n{ended.shown}")
        wanted = block.exit_code if is_last else 0
        if ended.exit_code != wanted:
            raise Wrong(f"`{command}` ended with {ended.exit_code} instead of {wanted}")
        shown += [f"$ {command}", *_cut(ended.shown.splitlines(), block)]
        seen += ended.shown
    missing = [words for words in block.says if words not in seen]
    if missing:
        raise Wrong(f"`{block.commands[-1]}` did not say `{missing[0]}`")
    text = "\n".join(shown)
    return f"{found[1]}```console\n{text}\n```"


def _read(found: re.Match[str]) -> Block:
    commands = tuple(re.findall(r"^\$ (.*)$", found[2], re.M))
    until, typed, says = [], [], []
    lines, start, exit_code = None, "", 0
    for comment in re.findall(r"^<!-- (.*) -->$", found[1], re.M):
        if m := re.fullmatch(r"first until `(.+)` says `(.+)`", comment):
            until.append((m[1], m[2]))
        elif m := re.fullmatch(r"at `(.+)` type `(.+)`", comment):
            typed.append(terminal.Typed(m[1], m[2] + "\n"))
        elif m := re.fullmatch(r"at `(.+)` press Ctrl-C", comment):
            typed.append(terminal.Typed(m[1], terminal.CTRL_C))
        elif m := re.fullmatch(r"show (\d+) lines", comment):
            lines = int(m[1])
        elif m := re.fullmatch(r"show from `(.+)`", comment):
            start = m[1]
        elif m := re.fullmatch(r"says `(.+)`", comment):
            says.append(m[1])
        elif m := re.fullmatch(r"ends with (\d+)", comment):
            exit_code = int(m[1])
        else:
            raise Wrong(f"nobody knows what to do with `{comment}`")
    if not commands:
        raise Wrong(f"a block without a command: {found[0]}")
    return Block(commands, tuple(until), tuple(typed), lines, start, tuple(says), exit_code)


def _wait(student: Student, command: str, text: str) -> None:
    limit = time.monotonic() + _PATIENCE_S
    while text not in (shown := student.types(command).shown):
        if time.monotonic() > limit:
            raise Wrong(f"`{command}` did not say `{text}` within {_PATIENCE_S:.0f} s:\n{shown}")
        time.sleep(1)


def _cut(every: list[str], block: Block) -> list[str]:
    """Leave out what a block doesn't show, where that is more than the line that counts it."""
    begin = next((n for n, line in enumerate(every) if block.start in line), 0)
    head = [f"[... {begin} lines before]"] if begin > 1 else every[:begin]
    rest = every[begin:]
    if block.lines is None or len(rest) <= block.lines + 1:
        return [*head, *rest]
    return [*head, *rest[: block.lines], f"[... {len(rest) - block.lines} more lines]"]


def _made(took_s: float) -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=CHECKOUT, check=True, capture_output=True, text=True
        ).stdout.strip()

    day = f"{datetime.now(UTC):%d %B %Y}".lstrip("0")
    is_other = bool(git("status", "--porcelain", "--", "src", "cloud-init", "ami"))
    commit = git("rev-parse", "--short=7", "HEAD") + (" with changes" if is_other else "")
    return (
        f"All of it is one run on {day}, in {took_s / 60:.0f} min, of commit {commit}: `python3 scripts/tutorial.py` types these commands\n"
        f"in a terminal and puts in what they show. `{_HOME}` is the student's home there, the time {_ZONE}'s. Nothing is edited;\n"
        "where an output is long or was shown before, a line such as `[... 12 more lines]` stands for what is left out."
    )


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    environment.require_python()
    try:
        sys.exit(main(sys.argv[1:]))
    except (Wrong, terminal.TookTooLong) as reason:
        sys.exit(f"error: {reason}")
