"""
The first process of a machine: it starts the services, takes in orphans, powers off, and dies with the sandbox.

Run as a program: `python -P -m gpulab.sandbox.machines.process.init ROOT GRACE_S`. Its standard input is the lifeline: at its end (the sandbox
was stopped or killed) every process of the machine is killed at once. SIGTERM powers off cleanly, SIGUSR1 restarts, SIGHUP looks for
a scheduled shutdown. Standard library only, so that it is small.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.machines.process.disk import Disk

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_AFTER_END_S, _AFTER_FAILURE_S = 2.0, 20.0
_LONGEST_NAP_S = 30.0
_PACKAGE = "gpulab.sandbox.machines.process"


@dataclass
class Service:
    """
    A program that the machine keeps running.

    Attributes:
        log: Where its output goes; `None` for the console.
        again: When it is started again after it ended, as systemd's `Restart=` of the real units.
        due_at: When to start it, in seconds of the monotonic clock; `None` while it runs or is done.
    """

    name: str
    argv: Sequence[str]
    log: Path | None
    again: Literal["always", "after failure", "never"] = "never"
    due_at: float | None = 0.0
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)


class Init:
    """
    The life of one machine from power-on to power-off.

    Args:
        grace_s: What programs have between SIGTERM and SIGKILL, seconds.
    """

    def __init__(self, disk: Disk, *, grace_s: float) -> None:
        self._disk = disk
        self._grace_s = grace_s
        self._services: list[Service] = []
        self._ending = ""  # "poweroff", "reboot" or "cut" once it is decided
        self._shutdown_at: tuple[float, str] | None = None
        self._wakeup, wakeup_in = os.pipe()
        for end in (self._wakeup, wakeup_in):
            os.set_blocking(end, False)
        # Open for writing as well, so that it never ends when a writer closes it.
        self._console = os.open(disk.console, os.O_RDWR | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._note)

    def live(self) -> str:
        """Run until the machine goes off; returns `poweroff`, `reboot` or `cut`."""
        self._ending = ""
        self._services = [
            Service("ssh", _module("sshd", self._disk), None, again="always"),
            Service("user-data", _module("userdata", self._disk), None),
        ]
        while not self._ending:
            self._start_what_is_due()
            self._wait()
            self._reap()
            self._look_at_schedule()
        self._stop_everything()
        return self._ending

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._ending = self._ending or "poweroff"
        if number == signal.SIGUSR1:
            self._ending = self._ending or "reboot"

    def _start_what_is_due(self) -> None:
        for service in self._services:
            if service.due_at is not None and service.due_at <= time.monotonic():
                service.due_at = None
                service.child = _spawn(service, self._disk)

    def _wait(self) -> None:
        """Sleep until a signal, the end of the lifeline, or the next thing that is due."""
        due = [s.due_at - time.monotonic() for s in self._services if s.due_at is not None]
        if self._shutdown_at:
            # In short naps: the monotonic clock stands still while a laptop sleeps, the wall clock does not.
            due.append(min(_LONGEST_NAP_S, self._shutdown_at[0] - time.time()))
        patience = max(0.0, min(due)) if due else None
        self._listen(patience)

    def _listen(self, patience: float | None) -> None:
        """Take what comes first: a signal, text for the console, or the end of the lifeline."""
        lifeline = sys.stdin.fileno()
        ready, _, _ = select.select([self._wakeup, self._console, lifeline], [], [], patience)
        with contextlib.suppress(BlockingIOError):
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
            if self._console in ready:
                os.write(sys.stdout.fileno(), os.read(self._console, 65536))
        if lifeline in ready and not os.read(lifeline, 4096):
            self._ending = "cut"

    def _reap(self) -> None:
        """Take in every child that has ended, our own services and orphans alike."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self._services:
                if service.child is not None and service.child.pid == pid:
                    service.child.returncode = os.waitstatus_to_exitcode(status)
                    self._ended(service, service.child.returncode)
                    break

    def _ended(self, service: Service, code: int) -> None:
        service.child = None
        if self._ending:
            return
        if service.again == "always" or (service.again == "after failure" and code != 0):
            wait = _AFTER_END_S if service.again == "always" else _AFTER_FAILURE_S
            say(f"{service.name} ended with code {code}; started again in {wait:.0f} s")
            service.due_at = time.monotonic() + wait
        elif service.name == "user-data" and self._disk.agent.exists():
            self._services += self._agent_services()

    def _agent_services(self) -> list[Service]:
        """Return the agent's two long runs; `arm` has been done by the one that applied the user data."""
        run = [sys.executable, "-I", str(self._disk.agent), "--root", str(self._disk.root)]
        log = self._disk.root / "var/log"
        return [
            Service("setup", [*run, "setup"], log / "gpulab-setup.log", again="after failure"),
            Service("watch", [*run, "watch"], log / "gpulab-watch.log", again="always"),
        ]

    def _look_at_schedule(self) -> None:
        self._shutdown_at = _scheduled(self._disk.scheduled_shutdown)
        if self._shutdown_at and self._shutdown_at[0] <= time.time():
            self._ending = self._ending or self._shutdown_at[1]

    def _stop_everything(self) -> None:
        """Ask every process to end, then make it; after a cut there is no asking."""
        if self._ending != "cut":
            say("Stopping all services")
            for pid in trees.descendants(os.getpid()):
                trees.send(pid, signal.SIGTERM)
                trees.send(pid, signal.SIGCONT)
            self._wait_for_the_last(time.monotonic() + self._grace_s)
        trees.kill_until_gone(self._whoever_is_left)

    def _wait_for_the_last(self, until: float) -> None:
        while self._whoever_is_left() and time.monotonic() < until and self._ending != "cut":
            # A child's end wakes us; an orphan's arrives here as a child's. The limit is for one that does neither.
            self._listen(0.5)
            self._reap()

    def _whoever_is_left(self) -> set[int]:
        self._reap()
        return trees.descendants(os.getpid())


def say(text: str) -> None:
    """Write a line to the console."""
    sys.stdout.write(f"[sandbox] {text}\n")
    sys.stdout.flush()


def main(root: Path, grace_s: float) -> int:
    """Be the first process of the machine on this disk."""
    disk = Disk(root)
    _adopt_orphans()
    disk.init_pid.write_text(str(os.getpid()), encoding="ascii")
    init = Init(disk, grace_s=grace_s)
    say("A machine of kind `process`: no kernel, systemd or cloud-init of its own starts here")
    while init.live() == "reboot":
        say("Restarting")
        disk.ssh_port.unlink(missing_ok=True)
    say("Power down")
    return 0


def _adopt_orphans() -> None:
    """Become the parent of orphans below us (Linux); elsewhere they are found by their environment."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _module(name: str, disk: Disk) -> list[str]:
    return [sys.executable, "-P", "-m", f"{_PACKAGE}.{name}", str(disk.root)]


def _spawn(service: Service, disk: Disk) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(service.log.open("ab")) if service.log else None
        return subprocess.Popen(
            service.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            cwd=disk.root,
            start_new_session=True,
        )


def _scheduled(file: Path) -> tuple[float, str] | None:
    """Read systemd's file of a scheduled shutdown: `USEC=` since the epoch and `MODE=`."""
    try:
        pairs = dict(line.split("=", 1) for line in file.read_text(encoding="ascii").splitlines())
        return int(pairs["USEC"]) / 1_000_000, pairs.get("MODE", "poweroff")
    except (OSError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
