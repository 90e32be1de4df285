"""What this host lacks to boot machines, in one sentence with the command that installs it; refuses nothing itself."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

# Tool -> the Debian package that brings it.
_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "dnsmasq": "dnsmasq-base",
    "slirp4netns": "slirp4netns",
    "nft": "nftables",
    "ip": "iproute2",
    "bridge": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
_BUILD_TOOLS = {"mmdebstrap": "mmdebstrap"}

# Bit numbers of include/uapi/linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}


def host_path(environ_path: str | None = None) -> str:
    """Return PATH with the folders of system tools, which an ordinary user's PATH leaves out on Debian."""
    own = os.defpath if environ_path is None else environ_path
    return os.pathsep.join([own, "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing(
    *,
    for_build: bool = False,
    system: str | None = None,
    uid: int | None = None,
    which: Callable[[str], str | None] | None = None,
    status: str | None = None,
    loop_control: Path = Path("/dev/loop-control"),
) -> str:
    """
    Say what stands between this host and a booted machine.

    Args:
        for_build: Also ask for what building the base needs.
        system, uid, which, status, loop_control: The host as seen by a test: `Linux`, the user id, a lookup of tools, the
            text of `/proc/self/status`, the device that makes loop devices.

    Returns:
        One sentence, with the command that repairs it where there is one; empty when nothing is missing.
    """
    system = platform.system() if system is None else system
    if system != "Linux":
        return f"machines of the kind `container` need Linux, and this is {system}; use `--machines process`"
    uid = os.getuid() if uid is None else uid
    if uid != 0:
        return "machines of the kind `container` need root; use `sudo`, or `--machines process`, which needs none"
    lack = _missing_capabilities(status) or _missing_packages(which or _which, for_build=for_build)
    if not lack and not loop_control.exists():
        return f"there is no {loop_control}, so machines can have no disks; try `modprobe loop`"
    return lack


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=host_path(os.environ.get("PATH")))


def _missing_capabilities(status: str | None) -> str:
    text = Path("/proc/self/status").read_text() if status is None else status
    held = next(
        (int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff")), 0
    )
    lacking = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if not lacking:
        return ""
    return f"this root may not {', '.join(lacking)}; in a container, start it with `--privileged`"


def _missing_packages(which: Callable[[str], str | None], *, for_build: bool) -> str:
    tools = _TOOLS | (_BUILD_TOOLS if for_build else {})
    packages = sorted({package for tool, package in tools.items() if which(tool) is None})
    if not packages:
        return ""
    command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    return f"these packages are missing: {', '.join(packages)}; install them with `{command}`"
