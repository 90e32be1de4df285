"""
Volumes as files behind loop devices: hides the ioctls. A device frees itself when nobody uses it any more, whoever was killed.

Source: Linux `include/uapi/linux/loop.h`; LOOP_CONFIGURE needs Linux 5.8.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpulab.sandbox.machines.container.commands import run_tool

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_AUTOCLEAR = 4
_LOOP_MAJOR = 7
_GIB = 1024**3
_PATIENCE = 600
_PAUSE_SECONDS = 0.05


class Volumes:
    """
    The volumes of one bed, by volume id; each is a sparse file that keeps its content until it is deleted.

    Args:
        folder: Where the files are.
        devices: Where the nodes are made.
    """

    def __init__(self, folder: Path, devices: Path) -> None:
        self._folder = folder
        self._devices = devices
        folder.mkdir(parents=True, exist_ok=True)
        devices.mkdir(mode=0o755, parents=True, exist_ok=True)

    def create(self, volume_id: str, size_gib: int) -> bool:
        """Make an empty volume, unless it is there; return whether it is new."""
        with suppress(FileExistsError), self._file(volume_id).open("xb") as file:
            file.truncate(size_gib * _GIB)
            return True
        return False

    def delete(self, volume_id: str) -> None:
        """Remove a volume and its content; harmless when it is not there."""
        self._file(volume_id).unlink(missing_ok=True)

    def open(self, volume_id: str, *, sleep: Callable[[float], None] = time.sleep) -> LoopDevice:
        """
        Put a volume behind a loop device.

        Waits for the device it had before: the kernel writes what is left after its last user has gone, and one file behind
        two devices would be destroyed.

        Raises:
            OSError: It is still mounted somewhere, the kernel has no loop devices, or none is free.
        """
        for _ in range(_PATIENCE):
            if not _is_behind_a_device(self._file(volume_id)):
                return LoopDevice(self._file(volume_id), self._devices / volume_id)
            sleep(_PAUSE_SECONDS)
        raise OSError(f"volume {volume_id} is still in use")

    def format_root(self, volume_id: str) -> None:
        """Make the file system of a root volume; without a journal, since a cut machine does not lose what the host has cached."""
        options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1"]
        run_tool("mkfs.ext4", *options, self._file(volume_id))

    def _file(self, volume_id: str) -> Path:
        return (
            self._folder / f"{volume_id.replace('/', '_')}.img"
        )  # the id may come from anybody's API call


class LoopDevice:
    """
    A file as a block device, until `close` and the last user are gone.

    Attributes:
        node: Its device node on this host.
        minor: Its minor number; the major number is 7.
    """

    def __init__(self, file: Path, node: Path) -> None:
        self.node = node
        self.minor, self._held = _configure(file, node)

    def close(self) -> None:
        """Let go of the device; a file system that is still mounted keeps it until it is unmounted."""
        os.close(self._held)
        self.node.unlink(missing_ok=True)


def _is_behind_a_device(file: Path) -> bool:
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if device.read_text().rstrip("\n") == str(file):
                return True
    return False


def _configure(file: Path, node: Path) -> tuple[int, int]:
    """Another process may take the free device in between; then the next one is asked for."""
    with file.open("r+b") as backing:
        for _ in range(50):
            minor = _free_minor()
            _make_node(node, minor)
            held = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(held, _LOOP_CONFIGURE, _loop_config(backing.fileno()))
            except OSError:
                os.close(held)
                node.unlink()
                continue
            return minor, held
    raise OSError(f"no loop device for {file.name}")


def _free_minor() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _make_node(node: Path, minor: int) -> None:
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(_LOOP_MAJOR, minor))


def _loop_config(file: int) -> bytes:
    """`struct loop_config`: the file, the block size (0: default), `struct loop_info64`, eight reserved words."""
    info = struct.pack("=5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("=2I", file, 0) + info + bytes(64)
