"""
Trees of processes: who is whose child, who bears our mark, and how all of them end. Hides /proc, `ps` and Windows' handles.

A number alone never names a process here: it goes with the moment the process started, so a number used again is not mistaken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PROC = Path("/proc")
_HAS_PROC = (_PROC / "self" / "stat").exists()
_ROUNDS = 200
_ROUND_S = 0.02


def started_at(pid: int) -> str:
    """
    Return when a process started, as a text to compare; `""` when there is no such process (a zombie is none).

    The text holds the boot as well where the system counts from it, so that it is unique across restarts of the computer.
    """
    if sys.platform == "win32":
        return _started_on_windows(pid)
    if _HAS_PROC:
        fields = _stat(pid)
        return f"{_boot_id()}:{fields[19]}" if fields and fields[0] not in "ZX" else ""
    return _ps("lstart=", pid)


def is_running(pid: int, started: str) -> bool:
    """Tell whether the process that started then is alive."""
    return started != "" and started_at(pid) == started


def descendants(pid: int) -> set[int]:
    """Return children, their children and so on; without zombies and without the process itself."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    open_ends = [pid]
    while open_ends:
        new = [child for child in children.get(open_ends.pop(), []) if child not in found]
        found.update(new)
        open_ends.extend(new)
    return found


def marked(name: str, is_ours: Callable[[str], bool]) -> set[int]:
    """
    Return this user's processes whose environment, as they were started, has the variable `name` with a value of ours.

    Finds those that left their tree (a daemon of a daemon). A process that cleared its environment is not found.
    """
    needle = f"{name}="
    return {
        pid
        for pid, environment in _environments()
        if pid != os.getpid()
        and any(
            is_ours(item.removeprefix(needle)) for item in environment if item.startswith(needle)
        )
    }


def kill_until_gone(find: Callable[[], Iterable[int]]) -> bool:
    """
    Kill what `find` names, again and again until it names nothing: some are born while others die.

    Returns:
        False when something was still there after some seconds, for example a process stuck in a system call.
    """
    for _ in range(_ROUNDS):
        alive = set(find())
        if not alive:
            return True
        for pid in alive:
            send(pid, signal.SIGKILL)
        time.sleep(_ROUND_S)
    return False


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has gone meanwhile is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def owns_listener(pids: Iterable[int], port: int) -> bool:
    """Tell whether one of the processes listens on a TCP port of this computer."""
    if not _HAS_PROC:
        return bool(set(_listeners_by_lsof(port)) & set(pids))
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return bool(sockets) and any(_has_open(pid, sockets) for pid in pids)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state, parent, ...); the name before may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _parents() -> list[tuple[int, int]]:
    if _HAS_PROC:
        pairs = ((pid, _stat(pid)) for pid in _pids())
        return [(pid, int(fields[1])) for pid, fields in pairs if fields and fields[0] not in "ZX"]
    rows = (line.split() for line in _ps_lines("-axo", "pid=,ppid=,stat="))
    return [(int(row[0]), int(row[1])) for row in rows if not row[2].startswith("Z")]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208 - names only


def _environments() -> list[tuple[int, list[str]]]:
    if _HAS_PROC:
        return [(pid, text.split("\0")) for pid in _pids() if (text := _environment(pid))]
    rows = (line.split(None, 1) for line in _ps_lines("-axEwwo", "pid=,command="))
    return [(int(row[0]), row[1].split(" ")) for row in rows if len(row) > 1]


def _environment(pid: int) -> str:
    """The environment of a living process of this user; `""` for any other."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _ps(column: str, pid: int) -> str:
    rows = _ps_lines("-o", f"stat=,{column}", "-p", str(pid))
    state, _, value = rows[0].strip().partition(" ") if rows else ("Z", "", "")
    return "" if state.startswith("Z") else " ".join(value.split())


def _ps_lines(*arguments: str) -> list[str]:
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    answer = subprocess.run(
        ["ps", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    return answer.stdout.splitlines()


def _listening_inodes(port: int) -> set[str]:
    """Socket inodes of the listeners on a port; state 0A is LISTEN (Linux, Documentation/networking/proc_net_tcp)."""
    found: set[str] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _has_open(pid: int, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry) in sockets:  # noqa: PTH115 - `socket:[1]` is no path
                    return True
    return False


def _listeners_by_lsof(port: int) -> list[int]:
    answer = subprocess.run(
        ["lsof", "-nP", "-t", f"-iTCP:{port}", "-sTCP:LISTEN"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(word) for word in answer.stdout.split() if word.isdigit()]


def _started_on_windows(pid: int) -> str:
    import ctypes

    windll = getattr(ctypes, "windll")  # noqa: B009 - exists on Windows only, for the type checker too
    query_limited_information, still_active = 0x1000, 259
    handle = windll.kernel32.OpenProcess(query_limited_information, 0, pid)
    if not handle:
        return ""
    try:
        times = [ctypes.c_ulonglong() for _ in range(4)]
        code = ctypes.c_ulong()
        windll.kernel32.GetProcessTimes(handle, *(ctypes.byref(t) for t in times))
        windll.kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        return str(times[0].value) if code.value == still_active else ""
    finally:
        windll.kernel32.CloseHandle(handle)
