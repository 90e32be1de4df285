"""
rsync through our own ssh, for what has changed since the last copy. Hides how rsync splits its `-e`; refuses old
versions, which a hostile instance could make write outside the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from gpulab.errors import CommandFailed
from gpulab.remote.host import Host
from gpulab.remote.manifest import Manifest
from gpulab.remote.openssh import OpenSsh
from gpulab.remote.process import SSH_FAILED, Ended, last_line
from gpulab.remote.target import accepts_cipher_order, ssh_argv, ssh_environment

# CVE-2024-12084 to 12088: before 3.4.0 the other side could read and write files it had no business with.
_OLDEST = (3, 4, 0)


def is_usable(host: Host, there: Manifest) -> bool:
    """Whether both sides have rsync, this side's is recent, and ssh is the system's."""
    return there.has_rsync and isinstance(host.starter, OpenSsh) and _local_version() >= _OLDEST


def send(host: Host, source: Path, destination: str, paths: Iterable[str]) -> None:
    """
    Bring files on the instance up to date; old ones stay until all new ones are complete.

    Raises:
        RemoteError: As from `Host.run`; `CommandFailed` with rsync's own last words.
    """
    _run(host, ["--delay-updates", f"{source.absolute()}/", _remote(host, destination)], paths)


def fetch(host: Host, source: str, stage: Path, paths: Iterable[str], *, basis: Path) -> None:
    """
    Copy files into a stage; what `basis` has of them is not sent again.

    Raises:
        RemoteError: As from `Host.run`; `CommandFailed` with rsync's own last words.
    """
    _run(
        host,
        [f"--copy-dest={basis.absolute()}", _remote(host, source), f"{stage.absolute()}/"],
        paths,
    )


def remote_shell(argv: Sequence[str]) -> str:
    """
    Quote an argument list for rsync's `-e`, which splits at spaces and knows quotes, but no backslash.

    Source:
        rsync(1), `--rsh`: inside quotes, a doubled quote stands for one.
    """
    return " ".join("'" + word.replace("'", "''") + "'" for word in argv)


def _run(host: Host, places: Sequence[str], paths: Iterable[str]) -> None:
    assert isinstance(host.starter, OpenSsh)
    handle, name = tempfile.mkstemp(prefix="gpulab-ssh-", suffix=".log")
    os.close(handle)
    log = Path(name)
    try:
        ended = _rsync(_argv(host, host.starter.program, log, places), paths, log)
    finally:
        log.unlink(missing_ok=True)
    host.raise_if_ssh_failed(ended)
    # 23 and 24: some files vanished or could not be read; the hashes will tell which.
    if ended.exit_code not in (0, 23, 24):
        raise CommandFailed(
            f"rsync failed with status {ended.exit_code}: {last_line(ended.stderr)}"
        )


def _argv(host: Host, program: str, log: Path, places: Sequence[str]) -> list[str]:
    ssh = ssh_argv(
        host.target, ssh=program, log_file=log, cipher_order=accepts_cipher_order(program)
    )
    # rsync appends the address and the command itself.
    shell = remote_shell(ssh[: ssh.index("--")])
    # Files only, without links, devices, owners; -s keeps the paths away from the instance's shell.
    options = ["-rt", "-s", "--executability", "--ignore-times", "--from0", "--files-from=-"]
    return ["rsync", *options, "-e", shell, *places]


def _rsync(argv: Sequence[str], paths: Iterable[str], log: Path) -> Ended:
    given = b"".join(os.fsencode(path) + b"\0" for path in paths)
    done = subprocess.run(
        argv,
        input=given,
        capture_output=True,
        check=False,
        env=ssh_environment(os.environ),
        start_new_session=True,
    )
    complaint = log.read_text(encoding="utf-8", errors="replace")
    return Ended(
        SSH_FAILED if complaint and done.returncode else done.returncode,
        done.stderr.decode("utf-8", "replace"),
        complaint,
    )


def _remote(host: Host, folder: str) -> str:
    address = f"[{host.target.address}]" if ":" in host.target.address else host.target.address
    # rsync begins in the home as well, and would take `~` for a name.
    inside = folder.removeprefix("~").removeprefix("/") if folder.startswith("~") else folder
    return f"{address}:{inside.rstrip('/') or ('/' if inside else '.')}/"


@lru_cache
def _local_version() -> tuple[int, ...]:
    if shutil.which("rsync") is None or os.name == "nt":
        return (0,)
    shown = subprocess.run(["rsync", "--version"], capture_output=True, check=False).stdout
    found = re.search(rb"version v?(\d+)\.(\d+)\.(\d+)", shown)
    return tuple(map(int, found.groups())) if found else (0,)
