"""
Where an instance is reached and how the system's ssh is told to go there. Hides OpenSSH's options and
its three ways of quoting; refuses every value that could be read as an option, a token or a shell word.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gpulab.errors import WrongUsage

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,17}")

# `^` puts these first and leaves the rest: with AES in hardware they cost half of chacha20.
# Clients before OpenSSH 8 refuse the `^`, see `accepts_cipher_order`.
_CIPHER_ORDER = "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com"

Runner = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class SshTarget:
    """
    One instance as ssh has to know it. Every field is checked at construction.

    Attributes:
        instance_id: EC2's id; the name under which its host key is pinned, so a re-used address never collides.
        address: IPv4 or IPv6 address, no host name.
        user: Login user of the image, `ubuntu`.
        key_file: Private key; absolute.
        known_hosts: gpulab's own known-hosts file; absolute.
        port: Of sshd on the instance.
        proxy_command: How to reach it where it has no address of its own: an argument list in which `%h` stands
            for the address and `%p` for the port. Empty: connect directly.

    Raises:
        WrongUsage: A value is not what it claims to be; the message names it.
    """

    instance_id: str
    address: str
    user: str
    key_file: Path
    known_hosts: Path
    port: int = 22
    proxy_command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(_INSTANCE_ID.fullmatch(self.instance_id), "instance id", self.instance_id)
        _require(_USER.fullmatch(self.user), "user name", self.user)
        _require(_is_address(self.address), "address", self.address)
        _require(0 < self.port < 65536, "port", self.port)
        _require(_is_option_path(self.key_file), "key file", self.key_file)
        _require(_is_option_path(self.known_hosts), "known-hosts file", self.known_hosts)
        _require(_is_command(self.proxy_command), "proxy command", self.proxy_command)


@dataclass(frozen=True)
class PortForward:
    """
    One `-L`: from a private place on this computer to a port on the instance's own localhost.

    Attributes:
        listen: A TCP port on 127.0.0.1, or the path of a unix socket.
        remote_port: On 127.0.0.1 of the instance.
    """

    listen: int | Path
    remote_port: int

    def __post_init__(self) -> None:
        _require(0 < self.remote_port < 65536, "remote port", self.remote_port)
        if isinstance(self.listen, Path):
            _require(
                _is_option_path(self.listen) and ":" not in str(self.listen),
                "socket path",
                self.listen,
            )
        else:
            _require(0 < self.listen < 65536, "local port", self.listen)


def ssh_argv(
    target: SshTarget,
    *,
    ssh: str = "ssh",
    command: Sequence[str] | None = None,
    forwards: Sequence[PortForward] = (),
    tty: bool = False,
    log_file: Path | None = None,
    cipher_order: bool = True,
    platform: str = sys.platform,
) -> list[str]:
    """
    Say how to start ssh: an argument list, never a shell line.

    Args:
        command: What to run there, quoted here for the instance's shell; `None` for the login shell.
        forwards: Ports to forward; ssh gives up if it cannot listen on one of them.
        tty: A terminal for a person; otherwise none is asked for.
        log_file: Where ssh writes its own complaints, apart from the command's stderr.
        cipher_order: Whether this ssh understands `Ciphers=^...`.

    Source:
        ssh(1), ssh_config(5) of OpenSSH 9.2. After `--` ssh reads no further options, so neither the address
        nor the command can become one.
    """
    options = [*_ALWAYS, *_identity(target), *_proxy(target, platform)]
    options += [_CIPHER_ORDER] if cipher_order else []
    options += ["ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes"] if forwards else []
    argv = [ssh, "-F", "none", "-tt" if tty else "-T"]
    argv += [word for option in options for word in ("-o", option)]
    argv += ["-E", str(log_file)] if log_file else []
    argv += [word for forward in forwards for word in ("-L", _forward(forward))]
    argv += ["-p", str(target.port), "-l", target.user, "--", target.address]
    return argv if command is None else [*argv, shlex.join(command)]


def proxy_argv(target: SshTarget) -> list[str]:
    """Put the address and the port into the target's proxy command; empty when it has none."""
    return [
        word.replace("%h", target.address).replace("%p", str(target.port))
        for word in target.proxy_command
    ]


def ssh_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return the environment ssh and rsync are started with; without AWS's keys, see `without_keys`.

    ssh runs a ProxyCommand with `$SHELL`; a login shell such as csh or fish quotes differently, so it is
    always `/bin/sh`. Windows' ssh starts the program without a shell and ignores this.
    """
    return {**without_keys(environ), "SHELL": "/bin/sh", "LC_ALL": "C"}


def without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return an environment without AWS's keys and tokens: neither ssh nor anything it starts needs them, and each is one more place they lie in.

    A proxy command that asks AWS takes its keys from a file, as by `aws --profile`.
    """
    return {name: value for name, value in environ.items() if not _is_key(name)}


def _is_key(name: str) -> bool:
    return name.startswith("AWS_") and ("KEY" in name or "TOKEN" in name)


def accepts_cipher_order(ssh: str, *, run: Runner | None = None) -> bool:
    """
    Ask an ssh program, once per process, whether it understands `Ciphers=^...`.

    Args:
        run: Runs a command and returns its exit status; for tests.
    """
    if run is not None:
        return _probe_ciphers(ssh, run)
    return _accepts_cipher_order(ssh)


@lru_cache
def _accepts_cipher_order(ssh: str) -> bool:
    return _probe_ciphers(ssh, _exit_status)


def _probe_ciphers(ssh: str, run: Runner) -> bool:
    return run([ssh, "-G", "-F", "none", "-o", _CIPHER_ORDER, "--", "127.0.0.1"]) == 0


def _exit_status(argv: Sequence[str]) -> int:
    try:
        return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return -1


_ALWAYS = (
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "PreferredAuthentications=publickey",
    "GlobalKnownHostsFile=none",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "CheckHostIP=no",
    "HostKeyAlgorithms=ssh-ed25519",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ConnectTimeout=10",
    "TCPKeepAlive=no",
    "ControlMaster=no",
    "ControlPath=none",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    # Also hides the server's banner, which could imitate ssh's own complaints.
    "LogLevel=ERROR",
)


def _identity(target: SshTarget) -> list[str]:
    # `-i` would look for the file before it undoes `%%`, so the key is named by option as well.
    return [
        f"IdentityFile={_option_path(target.key_file)}",
        f"UserKnownHostsFile={_option_path(target.known_hosts)}",
        f"HostKeyAlias={target.instance_id}",
    ]


def _proxy(target: SshTarget, platform: str) -> list[str]:
    argv = proxy_argv(target)
    if not argv:
        return []
    # Windows' ssh hands the line to CreateProcess (PowerShell/openssh-portable#344), others to a shell.
    line = subprocess.list2cmdline(argv) if platform == "win32" else shlex.join(argv)
    return ["ProxyCommand=" + line.replace("%", "%%")]


def _forward(forward: PortForward) -> str:
    listen = (
        f"127.0.0.1:{forward.listen}" if isinstance(forward.listen, int) else str(forward.listen)
    )
    return f"{listen}:127.0.0.1:{forward.remote_port}"


def _option_path(path: Path) -> str:
    # Quoted because some options take a list of files; `%` begins a token. Windows' ssh takes `/` as well.
    return '"' + path.as_posix().replace("%", "%%") + '"'


def _is_option_path(path: Path) -> bool:
    text = str(path)
    return path.is_absolute() and "${" not in text and not set(text) & set('"\n\r\0')


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_command(argv: Sequence[str]) -> bool:
    if not argv:
        return True
    return (
        bool(argv[0])
        and not argv[0].startswith("-")
        and not any(set(word) & set("\n\r\0") for word in argv)
    )


def _require(holds: object, what: str, value: object) -> None:
    if not holds:
        raise WrongUsage(f"{str(value)!r} is not a usable {what}")
