"""
Sandboxes in the background for `gpulab sandbox start`: forks of a process that has imported everything, since each would import for seconds.

Everything else about them is real: a session and a log of their own, no parent that waits for them, a record, a port. The process here also
knows which of them are alive, and ends those of a case that is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from crash.seams import Seams, receive, send

_SCRIPTS = Path(__file__).resolve().parents[1]
_SERVE = ["-P", "-m", "gpulab.sandbox", "serve"]
_LOOKS_EVERY_S = 0.1


class Nursery:
    """
    The process that makes sandboxes.

    Args:
        door: Its socket.
    """

    def __init__(self, door: Path) -> None:
        self._door = str(door)
        paths = os.pathsep.join([str(_SCRIPTS), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.nursery", self._door],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def start(self, arguments: Sequence[str], *, cwd: str, log: str, env: Mapping[str, str]) -> int:
        """Start one and return its process id."""
        return int(self._ask("start", list(arguments), cwd, log, dict(env)))

    def alive(self, folder: Path) -> list[int]:
        """Name those that run for a folder or one below it."""
        return list(self._ask("alive", str(folder)))

    def alive_soon(self, folder: Path, count: int, *, limit_s: float = 8.0) -> list[int]:
        """Wait until so many run, or the limit is over, and name them."""
        until = time.monotonic() + limit_s
        while len(found := self.alive(folder)) != count and time.monotonic() < until:
            time.sleep(_LOOKS_EVERY_S)
        return found

    def end(self, folder: Path) -> None:
        """Kill those that run for a folder or one below it."""
        self._ask("end", str(folder))

    def close(self) -> None:
        """Kill all, and the process itself."""
        self.end(Path("/"))
        self._process.terminate()
        self._process.wait()

    def _ask(self, *words: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(self._door)
            send(end, words)
            return receive(end)


class Started:
    """What `subprocess.Popen` returns of a sandbox: as much of it as is asked for."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def poll(self) -> int | None:
        """None while it runs."""
        return None if _is_there(self._pid) else 1

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def take(seams: Seams, nursery: Nursery) -> None:
    """In a command's process: let the sandbox come from the nursery, and count its start and what it is told as boundaries."""
    from gpulab.sandbox import daemon

    really_ask = daemon.ask

    def started(argv: Sequence[str], *, stdout: Any, cwd: Any, env: Any, **_: Any) -> Started:
        arguments = list(argv)
        if arguments[1:5] != _SERVE:
            raise ValueError(f"no sandbox: {arguments}")
        with seams.boundary("program serve"):
            return Started(nursery.start(arguments[5:], cwd=str(cwd), log=stdout.name, env=env))

    def asked(found: Any, what: str, **parameters: Any) -> Any:
        with seams.boundary(f"control {what}"):
            return really_ask(found, what, **parameters)

    daemon.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=started, DEVNULL=subprocess.DEVNULL
    )
    daemon.ask = asked  # type: ignore[assignment]


def _be(door_path: str) -> None:
    for name in ("server", "steering", "wsgi", "world", "machines.process"):
        __import__(f"gpulab.sandbox.{name}")
    __import__("werkzeug.serving")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door, folders = socket.socket(socket.AF_UNIX), dict[int, str]()
    door.bind(door_path)
    door.listen(64)
    print("ready", flush=True)
    while True:
        end, _ = door.accept()
        with end, contextlib.suppress(OSError, EOFError):
            match receive(end):
                case "start", arguments, cwd, log, env:
                    pid = _fork(door, end, arguments, cwd, log, env)
                    folders[pid] = arguments[arguments.index("--folder") + 1]
                    send(end, pid)
                case "alive", folder:
                    send(end, _of(folders, folder))
                case "end", folder:
                    for pid in _of(folders, folder):
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                    send(end, None)


def _of(folders: Mapping[int, str], folder: str) -> list[int]:
    below = folder.rstrip("/") + "/"
    return [pid for pid, own in folders.items() if own.startswith(below) and _is_there(pid)]


def _fork(
    door: socket.socket,
    end: socket.socket,
    arguments: Sequence[str],
    cwd: str,
    log: str,
    env: Mapping[str, str],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        door.close()
        end.detach()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        from gpulab.sandbox.__main__ import main

        code = main(["serve", *arguments])
    except BaseException:  # nobody but the log hears of it
        traceback.print_exc()
    finally:
        os._exit(code)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _be(sys.argv[1])
