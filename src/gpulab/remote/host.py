"""
An instance reached over ssh: run a command, follow its output. Hides whether the system's ssh or paramiko does it.
Retries nothing by itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from gpulab.errors import CommandFailed, Unreachable
from gpulab.remote import hostkeys
from gpulab.remote.openssh import OpenSsh, find_ssh
from gpulab.remote.process import (
    Completed,
    Ended,
    RemoteProcess,
    Starter,
    TimedOut,
    TooMuchOutput,
    command_failed,
    communicate,
    deadline,
    ssh_failure,
)
from gpulab.remote.target import SshTarget

_LONGEST_LINE = 1 << 20


class Host:
    """
    One instance over ssh. Its host key must be pinned before.

    Args:
        target: Where and as whom.
        starter: How commands are started; the system's ssh where there is one, else paramiko.
    """

    def __init__(self, target: SshTarget, *, starter: Starter | None = None) -> None:
        self.target = target
        self.starter = starter or default_starter()

    def run(
        self,
        command: Sequence[str],
        *,
        given: bytes = b"",
        timeout_s: float | None = 60,
        check: bool = True,
        max_bytes: int = 64 << 20,
    ) -> Completed:
        """
        Run a command to its end.

        Args:
            command: Program and arguments; quoted here for the instance's shell.
            given: What it reads on stdin.
            timeout_s: Seconds from now, `None` for no limit.
            check: Whether a status other than 0 is an error.
            max_bytes: Of stdout; the instance may be hostile.

        Raises:
            HostKeyMismatch: Another machine answered; never retry.
            LoginRefused: The key is not accepted; never retry.
            Unreachable: No answer; ask AWS for the instance's state before trying again.
            CommandFailed: The status was not 0 (with `check`), it took too long, or it printed too much.
        """
        process = self.start(command)
        try:
            stdout, ended = communicate(
                process, given=given, timeout_s=timeout_s, max_bytes=max_bytes
            )
        except TimedOut:
            raise self._too_slow(command, timeout_s) from None
        except TooMuchOutput:
            raise CommandFailed(
                f"`{command[0]}` on the instance printed more than {max_bytes} bytes"
            ) from None
        self.raise_if_ssh_failed(ended)
        if check and ended.exit_code != 0:
            raise command_failed(command, ended.exit_code, ended.stderr)
        return Completed(ended.exit_code, stdout, ended.stderr)

    def stream(self, command: Sequence[str], *, timeout_s: float | None = None) -> Iterator[str]:
        """
        Run a command and yield its lines as they come, without their ends. Closing the iterator ends the command.

        Raises:
            RemoteError: As in `run`, after the last line.
        """
        process = self.start(command)
        expired = threading.Event()
        with contextlib.closing(_Quietly(process)), deadline(process, timeout_s, expired):
            process.stdin.close()
            while line := process.stdout.readline(_LONGEST_LINE):
                yield line.decode("utf-8", "replace").rstrip("\r\n")
            ended = process.wait()
        if expired.is_set():
            raise self._too_slow(command, timeout_s)
        self.raise_if_ssh_failed(ended)
        if ended.exit_code != 0:
            raise command_failed(command, ended.exit_code, ended.stderr)

    def shell_argv(self, command: Sequence[str] | None = None, *, tty: bool = True) -> list[str]:
        """
        Say how a person opens a shell (or runs a command) there.

        Args:
            tty: Whether there is a terminal on this side; without one there is none on the other either, as nobody could end it.

        Raises:
            Unreachable: This computer has no ssh program.
        """
        program = self.starter.program if isinstance(self.starter, OpenSsh) else find_ssh()
        if program is None:
            raise Unreachable(
                "there is no `ssh` program on this computer",
                hint="Install OpenSSH; on Windows: Settings, Optional features, OpenSSH client",
            )
        return OpenSsh(program).shell_argv(
            self.target, list(command) if command is not None else None, tty=tty
        )

    def start(self, command: Sequence[str]) -> RemoteProcess:
        """
        Start a command and return its pipes, for copying; the caller reads, waits and calls `raise_if_ssh_failed`.

        Raises:
            Unreachable: ssh could not be started at all.
        """
        try:
            return self.starter.start(self.target, list(command))
        except OSError as error:
            raise Unreachable(f"could not start ssh ({error.strerror})") from error

    def raise_if_ssh_failed(self, ended: Ended) -> None:
        """
        Raise what went wrong if ssh itself failed, and nothing if the command ran.

        Raises:
            HostKeyMismatch, LoginRefused, Unreachable: See `run`.
        """
        failure = ssh_failure(self.target, ended, pinned=self._pinned(ended))
        if failure is not None:
            raise failure

    def _pinned(self, ended: Ended) -> tuple[hostkeys.HostKey, ...]:
        if not ended.complaint:
            return ()
        return hostkeys.pinned(self.target.known_hosts, self.target.instance_id)

    def _too_slow(self, command: Sequence[str], timeout_s: float | None) -> CommandFailed:
        return CommandFailed(f"`{command[0]}` did not end on the instance within {timeout_s:g} s")


def default_starter() -> Starter:
    """The system's ssh where there is one, else paramiko."""
    program = find_ssh()
    if program is not None:
        return OpenSsh(program)
    from gpulab.remote.paramiko_host import Paramiko

    return Paramiko()


class _Quietly:
    """Ends a process that nobody reads any more."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
