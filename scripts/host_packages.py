"""
The programs outside Python that some tests need, and how they come onto Debian and Ubuntu. Never asks for root; uses it when it has it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """
    One Debian package, a program by which its presence is seen, and the tests that are skipped without it.
    """

    name: str
    program: str
    reason: str


PACKAGES = (
    Package("openssh-client", "ssh", "the tunnel and every copy run through it"),
    Package("openssh-server", "sshd", "the far end of the tunnel, as on an instance"),
    Package("rsync", "rsync", "second copies send only what changed"),
    Package("mmdebstrap", "mmdebstrap", "makes the system that simulated instances boot"),
    Package("systemd-container", "systemd-nspawn", "boots simulated instances"),
    Package("dnsmasq-base", "dnsmasq", "gives booted instances their address, as EC2 does"),
    Package(
        "slirp4netns", "slirp4netns", "booted instances reach the internet without a host rule"
    ),
    Package("nftables", "nft", "security groups of booted instances"),
    Package("iproute2", "ip", "the private network of booted instances"),
    Package("nodejs", "node", "runs the notice that JupyterLab shows"),
    Package("chromium", "chromium", "opens the report and the dashboard in light and dark"),
    Package("procps", "ps", "booted instances and tunnels are looked at from outside"),
)


def missing() -> list[Package]:
    """The packages whose program is not on this host; empty where nothing is skipped for their sake."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
    return [package for package in PACKAGES if shutil.which(package.program, path=path) is None]


def can_install() -> bool:
    """Whether this is Debian or Ubuntu, and we are root."""
    return sys.platform == "linux" and is_root() and shutil.which("apt-get") is not None


def is_root() -> bool:
    """Whether tests that boot machines may run; never on Windows."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def install(names: list[str], run: Callable[[list[str], dict[str, str]], int]) -> int:
    """
    Install packages with apt, waiting for its lock and trying downloads again.

    Args:
        run: Starts a command with extra environment variables and returns its exit code.

    Returns:
        The exit code of apt-get.
    """
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    patient = ["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "-qq"]
    run(["apt-get", "update", *patient], quiet)  # a stale list may still have them: go on
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *patient, *names]
    return run(command, quiet)


def advice(packages: list[Package]) -> str:
    """What a person types to get the packages, in lines."""
    names = " ".join(package.name for package in packages)
    return f"on Debian and Ubuntu: `sudo apt-get install {names}`"
