"""
Tunnels that run on without a terminal: one process each, and a small file that says where it is. Hides how each system
detaches a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpulab.errors import StoreError, Unreachable, WrongUsage, disk_hint
from gpulab.remote.born import born
from gpulab.remote.process import last_line

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# DETACHED_PROCESS and CREATE_NEW_PROCESS_GROUP, which only Windows' subprocess module names.
_DETACHED = 0x00000208
_POLL_S = 0.1


@dataclass(frozen=True)
class TunnelRecord:
    """
    One tunnel process, as its file tells.

    Attributes:
        name: The user's name for the instance.
        instance_id: The instance it leads to.
        pid: Its process.
        born: When that process began, as the system counts; an id is used again, this is not.
        ports: Local ports by remote port.
        log_file: Its log.
    """

    name: str
    instance_id: str
    pid: int
    born: str
    ports: Mapping[int, int]
    log_file: str


def start(
    argv: Sequence[str],
    *,
    folder: Path,
    name: str,
    log_file: Path,
    timeout_s: float = 60,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> TunnelRecord:
    """
    Start a command that keeps a tunnel up, apart from this terminal, and wait until it says where.

    Args:
        argv: The command; it calls `announce` with the same folder and name once the tunnel is up.
        folder: Where the files of tunnels lie.
        log_file: What the command prints goes there; made with mode 0600.

    Raises:
        Unreachable: It ended, or did not announce itself in time; the message has the log's last line.
        WrongUsage: A tunnel of this name runs already, or the name is no name.
    """
    running = find(folder, name)
    if running is not None:
        raise WrongUsage(f"a tunnel to {name} is already open (process {running.pid})")
    child = _spawn(argv, log_file, environ)
    until = monotonic() + timeout_s
    while monotonic() < until:
        record = find(folder, name)
        if record is not None:
            return record
        if child.poll() is not None:
            raise Unreachable(
                f"the tunnel to {name} ended: {_last_words(log_file)}", hint=f"See {log_file}"
            )
        sleep(_POLL_S)
    child.kill()
    child.wait()
    raise Unreachable(
        f"the tunnel to {name} did not come up within {timeout_s:g} s: {_last_words(log_file)}",
        hint=f"See {log_file}",
    )


def announce(
    folder: Path, *, name: str, instance_id: str, ports: Mapping[int, int], log_file: Path
) -> TunnelRecord:
    """
    Say that this process keeps a tunnel up. Called again, it replaces what was said.

    Raises:
        StoreError: The file cannot be written.
    """
    pid = os.getpid()
    record = TunnelRecord(name, instance_id, pid, born(pid), dict(ports), str(log_file))
    text = json.dumps({"version": _VERSION, **asdict(record)})
    file = _file(folder, name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes the file with mode 0600.
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tunnel-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(file)
    except OSError as error:
        raise StoreError(
            f"could not write {file} ({error.strerror})", hint=disk_hint(error)
        ) from error
    return record


def withdraw(folder: Path, name: str) -> None:
    """Remove this process's file; another process's stays."""
    record = _read(_file(folder, name))
    if record is not None and record.pid == os.getpid():
        _file(folder, name).unlink(missing_ok=True)


def is_announced(folder: Path, name: str) -> bool:
    """Whether this process's file is still there; when it is gone, somebody asked this process to end."""
    record = _read(_file(folder, name))
    return record is not None and record.pid == os.getpid()


def listing(folder: Path) -> tuple[TunnelRecord, ...]:
    """List the tunnels that run, by name; files of dead ones are removed."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    found = (find(folder, file.stem) for file in files)
    return tuple(record for record in found if record is not None)


def find(folder: Path, name: str) -> TunnelRecord | None:
    """Find the tunnel of one name; `None` when it does not run."""
    file = _file(folder, name)
    record = _read(file)
    if record is None or record.name != name:
        return None
    if born(record.pid) != record.born:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None
    return record


def stop(
    folder: Path,
    name: str,
    *,
    timeout_s: float = 5,
    sleep: Callable[[float], None] = time.sleep,
) -> TunnelRecord | None:
    """
    End a tunnel: ask, wait, then kill. Returns what ran, or `None`.

    On Windows a process without a console hears no signal; it looks for its file instead (`is_announced`).
    """
    record = find(folder, name)
    if record is None:
        return None
    _file(folder, name).unlink(missing_ok=True)
    if sys.platform != "win32":
        _signal(record, signal.SIGTERM)
    for _ in range(int(timeout_s / _POLL_S)):
        if born(record.pid) != record.born:
            return record
        sleep(_POLL_S)
    # On Windows this is TerminateProcess.
    _signal(record, getattr(signal, "SIGKILL", signal.SIGTERM))
    return record


def _spawn(
    argv: Sequence[str], log_file: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    try:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise StoreError(
            f"could not write {log_file} ({error.strerror})", hint=disk_hint(error)
        ) from error
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            env=dict(environ),
            # The folder it was started in may be removed or unmounted.
            cwd=Path.home().anchor or "/",
            creationflags=_DETACHED if sys.platform == "win32" else 0,
            start_new_session=sys.platform != "win32",
        )
    except OSError as error:
        raise Unreachable(f"could not start {argv[0]} ({error.strerror})") from error
    finally:
        os.close(handle)


def _file(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise WrongUsage(f"{name!r} is not a name for a tunnel")
    return folder / f"{name}.json"


def _read(file: Path) -> TunnelRecord | None:
    """Read a file of ours; `None` when it is absent, of another version or damaged."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("version") != _VERSION:
            return None
        ports = {int(remote): int(local) for remote, local in values.pop("ports").items()}
        record = TunnelRecord(ports=ports, **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    texts = (record.name, record.instance_id, record.born, record.log_file)
    is_sound = type(record.pid) is int and record.pid > 1 and all(isinstance(t, str) for t in texts)
    return record if is_sound and record.born else None


def _signal(record: TunnelRecord, number: int) -> None:
    # Asked again right before, so that the id's next owner is not hit.
    if born(record.pid) == record.born:
        with contextlib.suppress(OSError):
            os.kill(record.pid, number)


def _last_words(log_file: Path) -> str:
    try:
        return (
            last_line(log_file.read_text(encoding="utf-8", errors="replace")[-4096:])
            or "no reason given"
        )
    except OSError:
        return "no reason given"
