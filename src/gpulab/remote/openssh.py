"""Commands on an instance through the system's `ssh`. Hides the program, its log file and its pipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO, cast

from gpulab.remote.process import Ended
from gpulab.remote.target import SshTarget, accepts_cipher_order, ssh_argv, ssh_environment

# CREATE_NEW_PROCESS_GROUP and CREATE_NO_WINDOW, which only Windows' subprocess module names.
CREATION_FLAGS = 0x08000200 if sys.platform == "win32" else 0

_STDERR_CHUNKS = 16
_CHUNK = 4096


class OpenSsh:
    """Starts commands with one ssh program."""

    def __init__(self, program: str, *, environ: Mapping[str, str] = os.environ) -> None:
        self.program = program
        self._environ = environ

    def start(self, target: SshTarget, command: list[str]) -> OpenSshProcess:
        """Start a command; never asks anything, never takes a terminal."""
        log = _log_file()
        argv = ssh_argv(
            target,
            ssh=self.program,
            command=command,
            log_file=log,
            cipher_order=accepts_cipher_order(self.program),
        )
        return OpenSshProcess(argv, log, environ=ssh_environment(self._environ))

    def shell_argv(
        self, target: SshTarget, command: list[str] | None = None, *, tty: bool = True
    ) -> list[str]:
        """Say how a person opens a shell there, with a terminal or, for input from elsewhere, without one."""
        return ssh_argv(
            target,
            ssh=self.program,
            command=command,
            tty=tty,
            cipher_order=accepts_cipher_order(self.program),
        )


class OpenSshProcess:
    """One running ssh; see `RemoteProcess`."""

    def __init__(self, argv: list[str], log: Path, *, environ: Mapping[str, str]) -> None:
        self._log = log
        try:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environ),
                # Ctrl-C belongs to gpulab, which ends ssh in its own order.
                creationflags=CREATION_FLAGS,
                start_new_session=sys.platform != "win32",
            )
        except OSError:
            log.unlink(missing_ok=True)
            raise
        self._tail: deque[bytes] = deque(maxlen=_STDERR_CHUNKS)
        self._drain = threading.Thread(
            target=_keep_tail, args=(cast("IO[bytes]", self._popen.stderr), self._tail), daemon=True
        )
        self._drain.start()

    @property
    def stdin(self) -> BinaryIO:
        """What the command reads."""
        return cast("BinaryIO", self._popen.stdin)

    @property
    def stdout(self) -> BinaryIO:
        """What the command prints."""
        return cast("BinaryIO", self._popen.stdout)

    def wait(self) -> Ended:
        """Wait for ssh to end."""
        exit_code = self._popen.wait()
        # A proxy command inherits stderr and may outlive ssh.
        self._drain.join(timeout=1)
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                cast("IO[bytes]", pipe).close()
        return Ended(exit_code, b"".join(self._tail).decode("utf-8", "replace"), self._complaint())

    def kill(self) -> None:
        """End ssh at once."""
        self._popen.kill()

    def _complaint(self) -> str:
        try:
            return self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        finally:
            self._log.unlink(missing_ok=True)


def find_ssh(
    environ: Mapping[str, str] = os.environ, *, platform: str = sys.platform
) -> str | None:
    """Find the system's ssh; `None` where there is none, as on older Windows."""
    found = shutil.which("ssh", path=environ.get("PATH"))
    if found or platform != "win32":
        return found
    # A 32-bit Python sees System32 under another name.
    root = environ.get("SystemRoot", r"C:\Windows")
    places = (Path(root, folder, "OpenSSH", "ssh.exe") for folder in ("System32", "Sysnative"))
    return next((str(place) for place in places if place.exists()), None)


def _log_file() -> Path:
    handle, name = tempfile.mkstemp(prefix="gpulab-ssh-", suffix=".log")
    os.close(handle)
    return Path(name)


def _keep_tail(pipe: IO[bytes], tail: deque[bytes]) -> None:
    with contextlib.suppress(OSError), pipe:
        while chunk := os.read(pipe.fileno(), _CHUNK):
            tail.append(chunk)
