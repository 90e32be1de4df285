"""
One ssh session: a command, a shell with or without a terminal. Hides pipes, pseudo-terminals and back-pressure.

Bytes move in large pieces and nothing is read that the other side cannot take yet, so a copy of many GiB needs little memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh

from gpulab.sandbox.machines.process.disk import Disk, shell

_LEFT_OUT = ("PYTHONPATH", "PYTHONHOME")
_SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
)
_ENOUGH = 1024 * 1024  # bytes waiting for a program before we stop taking more
_STDERR = 2


class Session(asyncssh.SSHServerSession[bytes]):
    """
    The server's side of one session channel.

    Args:
        environment: Of the machine, with what belongs to this connection.
    """

    def __init__(self, disk: Disk, environment: Mapping[str, str]) -> None:
        self._disk = disk
        self._environment = {k: v for k, v in environment.items() if k not in _LEFT_OUT}
        self._channel: Any = None
        self._command: str | None = None
        self._terminal = ""
        self._size = (0, 0, 0, 0)
        self._program: _Program | None = None
        self._early: list[bytes] = []
        self._has_early_end = False

    def connection_made(self, chan: Any) -> None:
        """Remember the channel."""
        self._channel = chan

    def pty_requested(
        self,
        term_type: str,
        term_size: tuple[int, int, int, int],
        term_modes: Mapping[int, int],
    ) -> bool:
        """Take note of the terminal; it is made when the program starts."""
        self._terminal = term_type or "dumb"
        self._size = term_size
        return True

    def shell_requested(self) -> bool:
        """Run the login shell."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Run one command by the login shell, as OpenSSH does."""
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Run the host's SFTP server where there is one (`scp` and `sftp` ask for it)."""
        server = next((path for path in _SFTP_SERVERS if Path(path).exists()), None)
        if subsystem != "sftp" or server is None:
            return False
        self._command = f"exec {server}"
        return True

    def session_started(self) -> None:
        """Start the program."""
        self._task = asyncio.get_running_loop().create_task(self._start())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Hand bytes to the program, and take no more while it does not read."""
        if self._program is None:
            self._early.append(data)
        elif self._program.write(data):
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        """Tell the program that its input has ended; its output goes on."""
        if self._program is None:
            self._has_early_end = True
        else:
            self._program.write_end()
        return True

    def pause_writing(self) -> None:
        """Stop reading from the program: the client's window is full."""
        if self._program:
            self._program.pause()

    def resume_writing(self) -> None:
        """Read from the program again."""
        if self._program:
            self._program.resume()

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Pass on a new size of the client's window."""
        self._size = (width, height, pixwidth, pixheight)
        if self._program:
            self._program.resize(self._size)

    def signal_received(self, signal: str) -> None:
        """Send the program a signal by its name without SIG."""
        if self._program:
            self._program.signal(signal)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hang up."""
        if self._program:
            self._program.hang_up()

    async def _start(self) -> None:
        argv = [shell(), "-c", self._command] if self._command is not None else [shell(), "-i"]
        environment = self._environment | {
            name.decode(): value.decode()
            for name, value in self._channel.get_environment_bytes().items()
            if name.startswith((b"LC_", b"LANG"))
        }
        program = _Program(self._channel, self._disk)
        try:
            if self._terminal:
                await program.start_on_terminal(argv, environment, self._terminal, self._size)
            else:
                if self._command is None:
                    argv = argv[:1]  # without a terminal the shell reads commands from its input
                await program.start(argv, environment)
        except OSError as error:
            self._channel.write_stderr(f"{error}\n".encode())
            self._channel.exit(126)
            return
        self._program = program
        for piece in self._early:
            program.write(piece)
        self._early.clear()
        if self._has_early_end:
            program.write_end()


class _Program(asyncio.SubprocessProtocol):
    """A running program, its input and its outputs, tied to a channel."""

    def __init__(self, channel: Any, disk: Disk) -> None:
        self._channel = channel
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._input: Any = None
        self._outputs: list[Any] = []
        self._open_outputs = 0
        self._code: int | None = None
        self._terminal: _Terminal | None = None

    async def start(self, argv: list[str], environment: Mapping[str, str]) -> None:
        """Run with three pipes."""
        self._open_outputs = 2
        await self._loop.subprocess_exec(
            lambda: self,
            *argv,
            env=environment,
            cwd=self._disk.home,
            start_new_session=True,
        )
        self._input = self._transport.get_pipe_transport(0)
        self._input.set_write_buffer_limits(high=_ENOUGH)
        self._outputs = [self._transport.get_pipe_transport(n) for n in (1, _STDERR)]

    async def start_on_terminal(
        self,
        argv: list[str],
        environment: Mapping[str, str],
        name: str,
        size: tuple[int, int, int, int],
    ) -> None:
        """Run on a pseudo-terminal of its own."""
        self._terminal = terminal = _Terminal(self._disk, name, size)
        self._open_outputs = 0  # a terminal's session ends with its program, not with the last one that holds it open
        try:
            await self._loop.subprocess_exec(
                lambda: self,
                *argv,
                stdin=terminal.slave,
                stdout=terminal.slave,
                stderr=terminal.slave,
                env={**environment, "TERM": name, "SSH_TTY": terminal.device},
                cwd=self._disk.home,
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
        finally:
            terminal.close_slave()
        reader, writer = terminal.files()
        output, _ = await self._loop.connect_read_pipe(lambda: _Output(self._channel), reader)
        self._input, _ = await self._loop.connect_write_pipe(lambda: _Input(self), writer)
        self._outputs = [output]
        if self._code is not None:
            self._drain_terminal()

    def write(self, data: bytes) -> bool:
        """Hand over bytes; returns whether the program is behind with reading."""
        if self._input is None or self._input.is_closing():
            return False
        self._input.write(data)
        return bool(self._input.get_write_buffer_size() > _ENOUGH)

    def write_end(self) -> None:
        """End the input; on a terminal that is the character Ctrl-D."""
        if self._terminal:
            self.write(b"\x04")
        elif self._input is not None and not self._input.is_closing():
            self._input.write_eof()

    def pause(self) -> None:
        """Stop reading the outputs."""
        for output in self._outputs:
            output.pause_reading()

    def resume(self) -> None:
        """Read the outputs again."""
        for output in self._outputs:
            output.resume_reading()

    def resize(self, size: tuple[int, int, int, int]) -> None:
        """Change the terminal's size; the program gets SIGWINCH from the kernel."""
        if self._terminal:
            self._terminal.resize(size)

    def signal(self, name: str) -> None:
        """Signal the whole foreground of the session."""
        number = getattr(signal, f"SIG{name}", None)
        if isinstance(number, signal.Signals) and self._code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._transport.get_pid(), number)

    def hang_up(self) -> None:
        """
        Let go of the program: one on a terminal gets SIGHUP, one on pipes reads an end and writes into nothing.

        As with OpenSSH, a command that was started without a terminal may go on without its client.
        """
        if self._terminal:
            self.signal("HUP")
        for transport in [self._input, *self._outputs]:
            if transport is not None:
                transport.close()

    # What asyncio tells us of the program.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the program; it may have ended before `subprocess_exec` returns."""
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Pass on output."""
        if not self._channel.is_closing():
            self._channel.write(data, asyncssh.EXTENDED_DATA_STDERR if fd == _STDERR else None)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Count the outputs that have ended."""
        if fd != 0:
            self._open_outputs -= 1
            self._finish()

    def process_exited(self) -> None:
        """Keep the exit code; what is still in the pipes comes first."""
        self._code = self._transport.get_returncode()
        if not self._terminal:
            self._finish()
        elif self._outputs:
            self._drain_terminal()

    def pause_writing(self) -> None:
        """Nothing: `write` says when the program is behind."""

    def resume_writing(self) -> None:
        """
        Take bytes from the client again, but later.

        asyncio calls this in the middle of its own write; an end of input that arrived now would lose what was written with it.
        """
        self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        if not self._channel.is_closing():
            self._channel.resume_reading()

    def _drain_terminal(self) -> None:
        assert self._terminal is not None
        for piece in self._terminal.rest():
            self.pipe_data_received(1, piece)
        for transport in [self._input, *self._outputs]:
            if transport is not None:
                transport.close()
        self._terminal.forget()
        self._finish()

    def _finish(self) -> None:
        if self._code is None or self._open_outputs > 0 or self._channel.is_closing():
            return
        if self._code >= 0:
            self._channel.exit(self._code)
        else:
            name = signal.Signals(-self._code).name.removeprefix("SIG")
            self._channel.exit_with_signal(name)


class _Output(asyncio.Protocol):
    """Terminal to client."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if not self._channel.is_closing():
            self._channel.write(data)


class _Input(asyncio.BaseProtocol):
    """Client to terminal."""

    def __init__(self, program: _Program) -> None:
        self._program = program

    def resume_writing(self) -> None:
        """The terminal has taken what waited."""
        self._program.resume_writing()


class _Terminal:
    """A pseudo-terminal, known to the machine's `wall` and `who` for as long as it lives."""

    def __init__(self, disk: Disk, name: str, size: tuple[int, int, int, int]) -> None:
        self._master, self.slave = pty.openpty()
        self.device = os.ttyname(self.slave)
        self.resize(size)
        self._entry = disk.terminals / self.device.strip("/").replace("/", "-")
        self._entry.write_text(f"{disk.user}\n{self.device}\n{name}\n", encoding="utf-8")

    def files(self) -> tuple[Any, Any]:
        """Return the master side as two files, one for each direction."""
        return os.fdopen(self._master, "rb", 0), os.fdopen(os.dup(self._master), "wb", 0)

    def resize(self, size: tuple[int, int, int, int]) -> None:
        """Set rows and columns."""
        width, height, pixel_width, pixel_height = size
        packed = struct.pack("HHHH", height, width, pixel_width, pixel_height)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, packed)

    def close_slave(self) -> None:
        """Close our copy, so that the terminal ends with its programs."""
        os.close(self.slave)

    def rest(self) -> list[bytes]:
        """Return what the programs wrote and nobody has read yet."""
        pieces: list[bytes] = []
        with contextlib.suppress(OSError):
            while piece := os.read(self._master, 65536):
                pieces.append(piece)
        return pieces

    def forget(self) -> None:
        """Log out."""
        self._entry.unlink(missing_ok=True)


def _take_terminal() -> None:
    """In the child: make the terminal the controlling one, so that Ctrl-C reaches it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
