"""
The folder that is a machine's disk: where things lie in it, what it is born with, and the environment its programs see.

Hides the host from the machine as far as a folder can: no AWS variables, no home, no Jupyter settings of the host come in.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "GPULAB_MACHINE"
"""The environment variable by which every process of a machine is known; its value is the disk's path."""

_HOST_VARIABLES_KEPT = (
    *("LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("PYENV_ROOT", "PYENV_VERSION"),
)
_HOST_PREFIXES_KEPT = ("UV_", "PIP_")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_COMMANDS = ("halt", "poweroff", "reboot", "shutdown", "systemctl", "wall", "who", "hostname")


@dataclass(frozen=True)
class Disk:
    """
    One machine's disk.

    Attributes:
        root: What the machine would call `/`.
    """

    root: Path

    @property
    def user(self) -> str:
        """The login user: as the specification in the user data says, else the one of AWS's Ubuntu images."""
        try:
            spec = json.loads((self.root / "etc/gpulab/spec.json").read_text(encoding="utf-8"))
            name = str(spec["user"])
        except (OSError, ValueError, KeyError, TypeError):
            return "ubuntu"
        return name if name.isidentifier() else "ubuntu"

    @property
    def home(self) -> Path:
        """The login user's home."""
        return self.root / "home" / self.user

    @property
    def authorized_keys(self) -> Path:
        """Who may log in."""
        return self.home / ".ssh" / "authorized_keys"

    @property
    def host_key(self) -> Path:
        """The private host key; its public half has the suffix `.pub`."""
        return self.root / "etc/ssh/ssh_host_ed25519_key"

    @property
    def agent(self) -> Path:
        """The agent that the user data brings."""
        return self.root / "usr/local/bin/gpulab-agent"

    @property
    def run(self) -> Path:
        """What lives as long as the machine is on and is nobody's business inside."""
        return self.root / "run/sandbox"

    @property
    def init_pid(self) -> Path:
        """The machine's first process."""
        return self.run / "init.pid"

    @property
    def ssh_port(self) -> Path:
        """The port of 127.0.0.1 where the ssh server listens; there once it does."""
        return self.run / "ssh.port"

    @property
    def terminals(self) -> Path:
        """One file for each terminal that is logged in, named by its device."""
        return self.run / "terminals"

    @property
    def scheduled_shutdown(self) -> Path:
        """Where `shutdown +M` leaves its time, in systemd's form."""
        return self.root / "run/systemd/shutdown/scheduled"

    @property
    def ports(self) -> Path:
        """Where the agent says on which port of the host a port of the machine is."""
        return self.root / "run/gpulab/ports.json"

    @property
    def born(self) -> Path:
        """There once the user data has been applied; like cloud-init's own, it is applied once."""
        return self.root / "var/lib/cloud/applied"

    @property
    def console(self) -> Path:
        """A named pipe that takes the place of the console device; the first process copies it to the console."""
        return self.root / "dev/console"

    def inside(self, path: str) -> Path:
        """
        Return where an absolute path of the machine lies on the host.

        Raises:
            ValueError: The path is relative or leads out of the disk.
        """
        parts = Path(path).parts
        if not path.startswith("/") or ".." in parts or "\0" in path:
            raise ValueError(f"not an absolute path without `..`: {path!r}")
        place = self.root.joinpath(*parts[1:])
        if not place.parent.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"a link leads out of the disk: {path!r}")
        return place


def format_disk(disk: Disk, *, hostname: str) -> None:
    """Lay out a disk that has never been used; on one that has, only what a restart clears is cleared."""
    shutil.rmtree(
        disk.root / "run", ignore_errors=True
    )  # a file system in memory on a real machine
    for name in ("etc/ssh", "etc/gpulab", "home", "mnt", "tmp", "var/log", "var/lib", "dev"):
        (disk.root / name).mkdir(parents=True, exist_ok=True)
    for name in ("usr/local/bin", "usr/local/sbin", "run/gpulab", "run/sandbox/terminals"):
        (disk.root / name).mkdir(parents=True, exist_ok=True)
    disk.root.chmod(0o700)
    (disk.root / "etc/hostname").write_text(hostname + "\n", encoding="ascii")
    disk.console.unlink(missing_ok=True)
    os.mkfifo(disk.console, 0o600)
    _write_commands(disk)


def make_home(disk: Disk) -> None:
    """Give the login user a home; what is there stays."""
    hostname = (disk.root / "etc/hostname").read_text(encoding="ascii").strip()
    disk.authorized_keys.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    (disk.home / "work").mkdir(exist_ok=True)
    rc_file = disk.home / ".bashrc"
    if not rc_file.exists():
        rc_file.write_text(f"PS1='{disk.user}@{hostname}:\\w\\$ '\n", encoding="ascii")


def environment_inside(disk: Disk, host: Mapping[str, str], *, metadata_url: str) -> dict[str, str]:
    """
    Return the whole environment of the machine's programs.

    The caches of uv and pip are the host user's, so that a second machine installs without downloading.
    """
    kept = {name: value for name, value in host.items() if _is_kept(name)}
    first = [str(disk.root / "usr/local/sbin"), str(disk.root / "usr/local/bin")]
    path = [*first, host.get("PATH", os.defpath), str(Path(sys.executable).parent)]
    return (
        {"LANG": "C.UTF-8"}
        | _shared_with_host(host)
        | _configuration_files(host)
        | kept
        | {
            "PATH": os.pathsep.join(path),
            "HOME": str(disk.home),
            "USER": disk.user,
            "LOGNAME": disk.user,
            "SHELL": shell(),
            "TMPDIR": str(disk.root / "tmp"),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_url,
            "GPULAB_METADATA": metadata_url,
            "GPULAB_ROOT": str(disk.root),
            MARK: str(disk.root),
        }
    )


def shell() -> str:
    """Return the login shell: bash as on AWS's images, else the shell every system has."""
    return "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"


def _is_kept(name: str) -> bool:
    return (
        name in _HOST_VARIABLES_KEPT
        or name.startswith(_HOST_PREFIXES_KEPT)
        or name.lower() in _PROXY_VARIABLES
    )


def _shared_with_host(host: Mapping[str, str]) -> dict[str, str]:
    """Return the caches of packages and the Pythons that uv has installed for the host's user."""
    home = Path(host.get("HOME") or Path.home())
    cache = Path(host.get("XDG_CACHE_HOME") or home / ".cache")
    shared = Path(host.get("XDG_DATA_HOME") or home / ".local/share")
    return {
        "UV_CACHE_DIR": str(cache / "uv"),
        "PIP_CACHE_DIR": str(cache / "pip"),
        "UV_PYTHON_INSTALL_DIR": str(shared / "uv/python"),
    }


def _configuration_files(host: Mapping[str, str]) -> dict[str, str]:
    """Point uv and pip to the user's own settings (an index of the university), which lie in the host's home."""
    home = Path(host.get("HOME") or Path.home())
    settings = Path(host.get("XDG_CONFIG_HOME") or home / ".config")
    files = {
        "UV_CONFIG_FILE": [settings / "uv/uv.toml"],
        "PIP_CONFIG_FILE": [settings / "pip/pip.conf", home / ".pip/pip.conf"],
    }
    found = {name: [p for p in places if p.is_file()] for name, places in files.items()}
    return {name: str(places[0]) for name, places in found.items() if places}


def _write_commands(disk: Disk) -> None:
    """Put on the machine's PATH what would otherwise reach the host: nobody's laptop may be shut down from here."""
    python, root = shlex.quote(sys.executable), shlex.quote(str(disk.root))
    program = shlex.quote(str(Path(__file__).with_name("commands.py")))
    for name in _COMMANDS:
        _write_command(disk, name, f'exec {python} -I {program} {root} {name} "$@"')
    agent = shlex.quote(str(disk.agent))
    _write_command(disk, "gpulab-agent", f'exec {python} -I {agent} --root {root} "$@"')
    _write_command(disk, "sudo", _SUDO)


def _write_command(disk: Disk, name: str, line: str) -> None:
    file = disk.root / "usr/local/sbin" / name
    file.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    file.chmod(0o755)


# The machine has one user; `sudo` runs the command as that user.
_SUDO = """while :; do case "$1" in
--) shift; break ;;
-u|-g|-h|-p) shift 2 ;;
-*) shift ;;
*) break ;;
esac; done
exec env "$@\""""
