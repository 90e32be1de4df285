"""
A disk that really is full: a file system in memory with little room left, with the state folder on it, that only this case's process sees.

Other than the break `disk full`, which is an error at every further write, it lets some bytes of a file through and refuses the rest.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import cache

from crash.seams import Broken
from crash.stage import Stage

KIND = "full disk"
#: Pages of 4 KiB that are left.
ROOM = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48)
_PAGE = 4096
_ROOMY = "64m"
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


@cache
def is_possible() -> bool:
    """Whether this computer lets us mount one: Linux, as root, and not in a container that forbids it."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    asked = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def breaks() -> list[Broken]:
    """One for each amount of room; none where nothing can be mounted."""
    return [Broken(KIND, "", str(pages)) for pages in ROOM] if is_possible() else []


def fill(stage: Stage, pages: int) -> None:
    """Put the computer in use on a disk of its own that has room for so many pages; it is gone with this process."""
    computer = stage.home.parent
    before = computer.with_name(f"{computer.name}-before")
    computer.rename(before)
    computer.mkdir()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", f"size={_ROOMY}", "none", str(computer))
    shutil.copytree(before, computer, symlinks=True, dirs_exist_ok=True)
    used = os.statvfs(computer)
    kib = ((used.f_blocks - used.f_bfree) * used.f_frsize + pages * _PAGE) // 1024
    _mount("-o", f"remount,size={kib}k", str(computer))


def make_room(stage: Stage) -> None:
    """Delete something else, as a person does."""
    _mount("-o", f"remount,size={_ROOMY}", str(stage.home.parent))


def _mount(*words: str) -> None:
    subprocess.run([_program(), *words], check=True, capture_output=True)


@cache
def _program() -> str:
    return shutil.which("mount") or "mount"
