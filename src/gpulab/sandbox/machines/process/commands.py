"""
The commands of a machine that must not reach the host: `poweroff`, `shutdown`, `wall` and their like. Standard library only.

Run as a program: `python -I commands.py ROOT NAME ARGUMENT...`. What the machine cannot do is refused with a plain sentence.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_PREFIX = "gpulab sandbox machine: "


def main(root: Path, name: str, arguments: Sequence[str], *, now: float) -> int:
    """Carry out one command of the machine whose disk is `root`; returns the exit code."""
    if name == "wall":
        return wall(root, " ".join(arguments) or sys.stdin.read())
    if name == "who":
        return who(root)
    if name == "hostname":
        print((root / "etc/hostname").read_text(encoding="ascii").strip())  # noqa: T201 - its output
        return 0
    if name == "shutdown":
        return shutdown(root, arguments, now=now)
    if name == "systemctl":
        return systemctl(root, arguments)
    return _signal(root, signal.SIGUSR1 if name == "reboot" else signal.SIGTERM)


def shutdown(root: Path, arguments: Sequence[str], *, now: float) -> int:
    """Power off now or later, or call it off: `shutdown [-P|-h|-r|-c] [now|+MINUTES|HH:MM] [MESSAGE]`."""
    flags = {a for a in arguments if a.startswith("-")}
    words = [a for a in arguments if not a.startswith("-")]
    file = root / "run/systemd/shutdown/scheduled"
    if "-c" in flags:
        file.unlink(missing_ok=True)
        return _signal(root, signal.SIGHUP)
    at = _moment(words[0] if words else "+1", now)
    if at is None:
        return _refuse(f"shutdown: not a time: {words[0]}")
    mode = "reboot" if flags & {"-r", "--reboot"} else "poweroff"
    if at <= now:
        return _signal(root, signal.SIGUSR1 if mode == "reboot" else signal.SIGTERM)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(f"USEC={int(at * 1_000_000)}\nWARN_WALL=1\nMODE={mode}\n", encoding="ascii")
    fresh.replace(file)
    wall(root, f"The system will power off at {time.strftime('%H:%M:%S', time.localtime(at))}")
    return _signal(root, signal.SIGHUP)


def systemctl(root: Path, arguments: Sequence[str]) -> int:
    """Power off or restart; there is no systemd here, so every other word is refused."""
    words = [a for a in arguments if not a.startswith("-")]
    if words[:1] in (["poweroff"], ["halt"]):
        return _signal(root, signal.SIGTERM)
    if words[:1] == ["reboot"]:
        return _signal(root, signal.SIGUSR1)
    return _refuse("systemctl: there is no systemd on a machine of kind `process`")


def wall(root: Path, message: str) -> int:
    """Write to every terminal that is logged in."""
    text = f"\r\nBroadcast message ({time.strftime('%H:%M:%S')}):\r\n\r\n{message}\r\n\r\n"
    for device in _terminals(root):
        try:
            handle = os.open(device, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue  # it has logged out meanwhile
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as terminal:
            terminal.write(text)
    return 0


def who(root: Path) -> int:
    """List the terminals that are logged in, as `who` does: user, line, since when."""
    for file in sorted((root / "run/sandbox/terminals").iterdir()):
        user, device = file.read_text(encoding="utf-8").split("\n")[:2]
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
        print(f"{user:8} {device.removeprefix('/dev/'):12} {since}")  # noqa: T201 - its output
    return 0


def _terminals(root: Path) -> list[str]:
    folder = root / "run/sandbox/terminals"
    return [file.read_text(encoding="utf-8").split("\n")[1] for file in folder.iterdir()]


def _moment(word: str, now: float) -> float | None:
    if word == "now":
        return now
    if re.fullmatch(r"\+?\d{1,6}", word):
        return now + 60 * int(word)
    clock = re.fullmatch(r"(\d{1,2}):(\d\d)", word)
    if not clock or int(clock[1]) > 23 or int(clock[2]) > 59:
        return None
    day = time.localtime(now)
    at = time.mktime((*day[:3], int(clock[1]), int(clock[2]), 0, 0, 0, -1))
    return at if at > now else at + 86400


def _signal(root: Path, number: signal.Signals) -> int:
    try:
        pid = int((root / "run/sandbox/init.pid").read_text(encoding="ascii"))
        os.kill(pid, number)
    except (OSError, ValueError):
        return _refuse("the machine is off")
    return 0


def _refuse(sentence: str) -> int:
    print(_PREFIX + sentence, file=sys.stderr)  # noqa: T201 - its output
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:], now=time.time()))
