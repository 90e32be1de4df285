"""
A command running on an instance: its pipes, its end, and what that end means. Hides where ssh writes its own
complaints; refuses to hold more output than asked for.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from gpulab.errors import CommandFailed, HostKeyMismatch, LoginRefused, RemoteError, Unreachable
from gpulab.remote.hostkeys import HostKey, mismatch
from gpulab.remote.target import SshTarget

# ssh's own exit status when it, and not the command, failed.
SSH_FAILED = 255
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Ended:
    """
    How a remote command ended.

    Attributes:
        exit_code: Of the command; 255 also when ssh itself failed.
        stderr: The last 64 KiB of the command's stderr.
        complaint: What ssh itself had to say; empty when ssh had nothing to complain about.
    """

    exit_code: int
    stderr: str
    complaint: str


@dataclass(frozen=True)
class Completed:
    """
    A remote command that ran.

    Attributes:
        stdout: All of it.
        stderr: The last 64 KiB.
    """

    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Decode stdout; undecodable bytes are replaced."""
        return self.stdout.decode("utf-8", "replace")


class RemoteProcess(Protocol):
    """A command that runs on an instance."""

    @property
    def stdin(self) -> BinaryIO:
        """What the command reads; close it to say that there is no more."""
        ...

    @property
    def stdout(self) -> BinaryIO:
        """What the command prints."""
        ...

    def wait(self) -> Ended:
        """Wait for its end; read stdout to its end before."""
        ...

    def kill(self) -> None:
        """Break the connection off; `wait` then returns soon."""
        ...


class Starter(Protocol):
    """Something that starts commands on an instance: the system's ssh, or paramiko."""

    def start(self, target: SshTarget, command: list[str]) -> RemoteProcess:
        """Start a command; words are quoted for the instance's shell."""
        ...


class TimedOut(Exception):
    """A command took longer than it was given; never leaves this package."""


class TooMuchOutput(Exception):
    """A command printed more than is wanted; never leaves this package."""


def communicate(
    process: RemoteProcess, *, given: bytes, timeout_s: float | None, max_bytes: int
) -> tuple[bytes, Ended]:
    """
    Give a command its input and collect its output.

    Raises:
        TimedOut: After `timeout_s` seconds; the command's connection is broken off.
        TooMuchOutput: It printed more than `max_bytes`.
    """
    expired = threading.Event()
    feeder = threading.Thread(target=_feed, args=(process, given), daemon=True)
    feeder.start()
    with deadline(process, timeout_s, expired):
        stdout = _read(process.stdout, max_bytes + 1)
        if len(stdout) > max_bytes:
            process.kill()
        ended = process.wait()
    feeder.join()
    if expired.is_set():
        raise TimedOut
    if len(stdout) > max_bytes:
        raise TooMuchOutput
    return stdout, ended


@contextlib.contextmanager
def deadline(
    process: RemoteProcess, timeout_s: float | None, expired: threading.Event
) -> Iterator[None]:
    """Kill a process after so many seconds, and set `expired`; never with `None`."""
    if timeout_s is None:
        yield
        return

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ssh_failure(
    target: SshTarget, ended: Ended, *, pinned: Iterable[HostKey] = ()
) -> RemoteError | None:
    """
    Say what went wrong when ssh itself, and not the command, failed.

    Args:
        pinned: What is pinned for the target, to be shown beside what the machine offered.

    Returns:
        `HostKeyMismatch` and `LoginRefused` must not be retried; `Unreachable` may, after asking AWS for
        the instance's state. `None`: the command ran, whatever its exit code.
    """
    if ended.exit_code != SSH_FAILED:
        return None
    complaint = ended.complaint.strip() or _connection_lost(ended.stderr)
    if not complaint:
        return None
    return classify(target, complaint, pinned=pinned)


def classify(target: SshTarget, complaint: str, *, pinned: Iterable[HostKey] = ()) -> RemoteError:
    """Turn what ssh wrote about its own failure into one of our errors."""
    if "Host key verification failed" in complaint or "IDENTIFICATION HAS CHANGED" in complaint:
        return _host_key_error(target, complaint, pinned=tuple(pinned))
    if "Permission denied" in complaint or "Too many authentication failures" in complaint:
        return login_refused(target)
    return Unreachable(
        f"no answer from {target.instance_id} at {target.address} ({last_line(complaint)})",
        hint="See with `gpulab ls` whether the instance still runs",
    )


def login_refused(target: SshTarget) -> LoginRefused:
    """Say that an instance does not let this computer's key in."""
    return LoginRefused(
        f"{target.instance_id} does not accept the key {target.key_file.name} for {target.user}",
        hint="It was launched with another key: copy `~/.gpulab` from the computer that has it, or end it with"
        " `gpulab stop NAME --no-save`; what it kept in a bucket stays",
    )


def command_failed(command: Iterable[str], exit_code: int, stderr: str) -> CommandFailed:
    """Say that a command ran and failed, with the last thing it wrote."""
    said = last_line(stderr)
    name = next(iter(command), "the command")
    return CommandFailed(
        f"`{name}` failed on the instance with status {exit_code}" + (f": {said}" if said else "")
    )


def last_line(text: str, *, width: int = 200) -> str:
    """Return the last line that says something, without control characters."""
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")[-width:]


def _feed(process: RemoteProcess, given: bytes) -> None:
    # A command may end without reading all it was given; that is no failure of ours.
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(given)
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _read(pipe: BinaryIO, limit: int) -> bytes:
    collected = bytearray()
    while len(collected) < limit and (chunk := pipe.read(min(_CHUNK, limit - len(collected)))):
        collected += chunk
    return bytes(collected)


_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_LOST = re.compile(
    r"Connection to \S+ closed by remote host\.|Timeout, server \S+ not responding\."
)


def _host_key_error(
    target: SshTarget, complaint: str, *, pinned: tuple[HostKey, ...]
) -> HostKeyMismatch:
    if not pinned:
        return HostKeyMismatch(
            f"no host key is pinned for {target.instance_id}",
            hint="The console output has not shown it yet; try again in a minute",
        )
    seen = _FINGERPRINT.search(complaint)
    return mismatch(target.instance_id, pinned=pinned, seen=seen[0] if seen else "")


def _connection_lost(stderr: str) -> str:
    """Find the one complaint that ssh writes to stderr and never to its log."""
    found = _LOST.search(last_line(stderr))
    return found[0] if found else ""
