"""
The sandbox as a background process: start it, wait until it answers, stop it, and clear up after one that was killed.

Hides sessions, locks and signals; refuses a second sandbox in the same folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import GpulabError, extra_hint
from gpulab.sandbox.control import Daemon, NotRunning, ask, find, record
from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.machines.process.remains import reap

_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 60.0
_LOOK_EVERY_S = 0.1
_PACKAGES = ("moto", "flask", "flask_cors", "asyncssh")
_DETACHED = 0x00000208  # DETACHED_PROCESS and CREATE_NEW_PROCESS_GROUP of Windows' CreateProcess


class AlreadyRunning(GpulabError):
    """A sandbox runs in this folder."""


@dataclass(frozen=True)
class Wish:
    """
    What sandbox to start.

    Attributes:
        machines: `process`, `container` or `none`.
        speed: Simulated seconds for each real one.
        port: Port of 127.0.0.1; 0 for any free one.
        is_ready: Whether the account has its quotas, its spot role and verified billing already, unlike a fresh account.
    """

    machines: str = "process"
    speed: float = 1.0
    seed: int = 0
    port: int = 0
    is_ready: bool = True


class Waiting:
    """The clock and the sleep that waiting takes."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.monotonic = monotonic
        self.sleep = sleep

    def looks(self, limit_s: float) -> Iterator[None]:
        """Yield at short intervals until the limit."""
        until = self.monotonic() + limit_s
        while self.monotonic() < until:
            yield
            self.sleep(_LOOK_EVERY_S)


def log_file(folder: Path) -> Path:
    """Return where the server writes what happens to it (not the calls, see `gpulab sandbox log`)."""
    return folder / "server.log"


def start(
    folder: Path, wish: Wish, *, environment: Mapping[str, str], waiting: Waiting
) -> tuple[Daemon, tuple[str, ...]]:
    """
    Start a sandbox in the background, in a new world, and wait until it answers.

    Returns:
        The sandbox, and the ids of machines that a killed one had left and that were cleared away.

    Raises:
        GpulabError: It did not start; the message is its own last words.
    """
    _check_packages()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(folder):
        with contextlib.suppress(NotRunning):
            running = find(folder)
            raise AlreadyRunning(
                f"a sandbox already runs at {running.url}",
                hint="End it and its machines with `gpulab sandbox stop`",
            )
        left = clear_up(folder)
        child = _spawn(folder, wish, environment)
        return _wait_for_start(folder, child, waiting), left


def stop(folder: Path, *, waiting: Waiting) -> bool:
    """
    End the sandbox, its world and every machine in it.

    Returns:
        False when none was running; what a killed one had left is cleared away all the same.
    """
    try:
        daemon = find(folder)
    except NotRunning:
        clear_up(folder)
        return False
    with contextlib.suppress(GpulabError):
        ask(daemon, "stop")
    for _ in waiting.looks(_STOP_LIMIT_S):
        if not trees.is_running(daemon.pid, daemon.started):
            break
    else:
        trees.kill_until_gone(
            lambda: {daemon.pid} if trees.is_running(daemon.pid, daemon.started) else ()
        )
    clear_up(folder)
    return True


def clear_up(folder: Path) -> tuple[str, ...]:
    """
    Clear away what a sandbox that is no more has left: its record, machines and disks.

    Machines of kind `container` have a reaper of their own, which acts when their sandbox dies and before the next starts.

    Returns:
        The ids of the machines that were found.
    """
    record(folder).unlink(missing_ok=True)
    return reap(folder / "process")


def _check_packages() -> None:
    lacking = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise GpulabError(
            f"the sandbox needs packages that are not installed: {', '.join(lacking)}",
            hint=extra_hint("sandbox"),
        )


def _spawn(folder: Path, wish: Wish, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    arguments = [
        *("--folder", str(folder)),
        *("--machines", wish.machines),
        *("--speed", str(wish.speed)),
        *("--seed", str(wish.seed)),
        *("--port", str(wish.port)),
        *(() if wish.is_ready else ("--not-ready",)),
    ]
    with log_file(folder).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "gpulab.sandbox", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=_without_aws_settings(environment),
            start_new_session=True,
            creationflags=_DETACHED if sys.platform == "win32" else 0,
        )


def _without_aws_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Keep the user's real credentials, profile and endpoint away: the simulated AWS is nobody's client."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def _wait_for_start(folder: Path, child: subprocess.Popen[bytes], waiting: Waiting) -> Daemon:
    for _ in waiting.looks(_START_LIMIT_S):
        if child.poll() is not None:
            raise GpulabError(
                f"the sandbox did not start: {_last_words(folder)}",
                hint=f"All it said is in {log_file(folder)}",
            )
        with contextlib.suppress(NotRunning):
            daemon = find(folder)
            ask(daemon, "status")
            return daemon
    child.kill()
    raise GpulabError(
        f"the sandbox did not answer within {_START_LIMIT_S:.0f} s",
        hint=f"What it said is in {log_file(folder)}",
    )


def _last_words(folder: Path) -> str:
    lines = log_file(folder).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one `start` at a time look and act; the lock ends with its process, however that ends."""
    with (folder / "start.lock").open("ab") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
