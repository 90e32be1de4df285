"""
Runs a command in a terminal of its own, types into it, and says what a person would see on the screen in the end.

Standard library only; needs a system with pseudo-terminals, so not Windows. The screen has any number of rows and no right edge: what
redraws itself reads as it does for a person, and a long line stays one line.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CTRL_C = "\x03"
_ROWS, _COLUMNS = 50, 200
# A person reads before typing; the program has gone on to wait by then.
_PAUSE_S = 1.0
_LOOK_S = 0.2
_TOKENS = re.compile(
    r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|([\r\n\b\x07])|([^\x1b\r\n\b\x07]+)"
)


class TookTooLong(Exception):
    """A command did not end in time, or never showed what was to be answered; the text says which, and what it had shown."""


@dataclass(frozen=True)
class Typed:
    """
    What is typed once a text is on the screen.

    Attributes:
        at: What the command shows before.
        keys: What is typed then; `CTRL_C` interrupts.
    """

    at: str
    keys: str


@dataclass(frozen=True)
class Ended:
    """
    A command that has ended.

    Attributes:
        shown: The screen in the end, without blanks at the ends of lines; no line break at its end.
        exit_code: As the shell says it: 128 and the signal's number where one ended it.
    """

    shown: str
    exit_code: int


def run(
    command: str,
    *,
    folder: Path,
    environment: Mapping[str, str],
    typed: Sequence[Typed] = (),
    limit_s: float = 600,
) -> Ended:
    """
    Run one line of bash to its end.

    Raises:
        TookTooLong: See there; the command was killed.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
            # Whoever was started in the background ignores the first two, and Python the third; a new terminal's shell ignores none.
            signal.signal(number, signal.SIG_DFL)
        os.execvpe("bash", ["bash", "-c", command], dict(environment))  # noqa: S606 - a line of shell is what is asked for
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    try:
        said, status = _attend(child, terminal, list(typed), time.monotonic() + limit_s, command)
    finally:
        os.close(terminal)
    return Ended(screen(said), _exit_code(status))


def screen(said: str) -> str:
    """Say what a terminal shows after it was sent a text."""
    rows: list[str] = [""]
    row = column = 0
    for found in _TOKENS.finditer(said):
        arguments, order, control, text = found.groups()
        if text:
            line = rows[row].ljust(column)
            rows[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif control == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif control == "\r":
            column = 0
        elif control == "\b":
            column = max(0, column - 1)
        elif order == "H":
            row = column = 0
        elif order == "K":
            rows[row] = rows[row][:column] if arguments in ("", "0") else ""
        elif order == "J":
            rows = [""] if arguments == "2" else [*rows[:row], rows[row][:column]]
            rows += [""] * (row + 1 - len(rows))
    return "\n".join(line.rstrip() for line in rows).rstrip("\n")


def _attend(
    child: int, terminal: int, typed: list[Typed], limit: float, command: str
) -> tuple[str, int]:
    """Read until the command has ended, typing when the time has come; the raw text and the status as `os.waitpid` gives it."""
    said, answered = b"", 0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        said += _what_is_there(terminal)
        if ended:
            return said.decode("utf-8", "replace") + _what_is_there(terminal).decode(), status
        text = said.decode("utf-8", "replace")
        if typed and typed[0].at in text[answered:]:
            time.sleep(_PAUSE_S)
            os.write(terminal, typed.pop(0).keys.encode())
            answered = len(text)
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            waited = f"never showed `{typed[0].at}`" if typed else "did not end in time"
            raise TookTooLong(f"`{command}` {waited}:\n{screen(text)}")


def _what_is_there(terminal: int) -> bytes:
    """Read what the command has written, waiting a moment for the first of it."""
    said = b""
    wait_s = _LOOK_S
    while select.select([terminal], [], [], wait_s)[0]:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that nobody holds the other end any more
                raise
            piece = b""
        if not piece:
            break
        said += piece
        wait_s = 0.0
    return said


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
