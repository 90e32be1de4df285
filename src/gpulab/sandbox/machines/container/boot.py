"""
One machine: its disk, its boot, its end. Hides systemd-nspawn; refuses nothing, a boot that fails is a machine that went off.

Everything slow happens in order on the machine's own thread, so each call returns at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpulab.sandbox.machines import Birth, Disk, Ingress, LiveMetadata
from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container import cgroups
from gpulab.sandbox.machines.container.bed import Bed
from gpulab.sandbox.machines.container.commands import (
    ToolFailed,
    in_network,
    run_tool,
    tool_environment,
)
from gpulab.sandbox.machines.container.disks import LoopDevice, Volumes
from gpulab.sandbox.machines.container.network import Vpc
from gpulab.sandbox.machines.container.site import HARDWARE, VOLUME_LIST, volume_lines
from gpulab.sandbox.machines.metadata import Guest

SSH_PORT = 22

# A machine that has not gone off by then is cut, as EC2 does with an instance whose system hangs.
_POWER_OFF_SECONDS = 120
_ASK_AGAIN_SECONDS = 2
_DEFAULT_ROOT_GIB = 8

# What systemd-nspawn returns with `--keep-unit` when the system inside wants to boot again; src/nspawn/nspawn.c.
_REBOOT = 133

# Arguments: device, its mount point, options of the overlay, the overlay's mount point, and what to run.
_MOUNT_AND_RUN = """
mount -t ext4 "$1" "$2" && mkdir -p "$2/upper" "$2/work" && mount -t overlay -o "$3" overlay "$4" || exit
shift 4
exec "$@"
"""

# systemd(1): SIGRTMIN+4 starts poweroff.target.
_POWER_OFF_SIGNAL = signal.SIGRTMIN + 4


@dataclass(frozen=True)
class Room:
    """
    What the machines of one bed share.

    Attributes:
        layers: The read-only layers under each machine's disk, upper first.
        binds: systemd-nspawn's `--bind` options for the caches and for the host's package folders.
    """

    bed: Bed
    vpc: Vpc
    volumes: Volumes
    layers: tuple[Path, ...]
    binds: tuple[str, ...]


class ContainerMachine:
    """A `Machine` that boots; made switched off, `power_on` starts it."""

    def __init__(
        self,
        room: Room,
        birth: Birth,
        *,
        guest: Guest,
        on_exit: Callable[[str], None],
        on_discard: Callable[[Birth], None],
    ) -> None:
        self._room = room
        self._birth = birth
        self._guest = guest
        self._on_exit = on_exit
        self._on_discard = on_discard
        self._folder = room.bed.folder / "machines" / birth.instance_id
        self._disks = {disk.volume_id: disk for disk in birth.disks if not disk.is_root}
        self._root = next((d for d in birth.disks if d.is_root), _default_root(birth.instance_id))
        self._open: dict[str, LoopDevice] = {}
        self._numbers: dict[str, int] = {}
        self._memory_mib: int | None = None
        self._ingress = birth.ingress
        self._process: subprocess.Popen[bytes] | None = None
        self._is_off = threading.Event()
        self._is_off.set()
        self._last_console = ""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=birth.instance_id)
        (self._folder / "hardware").mkdir(parents=True)

    @property
    def door(self) -> tuple[str, int] | None:
        """Its own address, from the moment it has power."""
        return None if self._is_off.is_set() else (self._birth.private_address, SSH_PORT)

    def console(self) -> str:
        """Everything since its first boot, with line feeds only."""
        with contextlib.suppress(FileNotFoundError):
            text = self._console_file.read_bytes().decode(errors="replace")
            self._last_console = text.replace("\r", "")
        return self._last_console

    def publish(self, metadata: LiveMetadata) -> None:
        """Replace the changing part of the metadata, at once."""
        self._guest.publish(metadata)

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        """Replace the rules of what may come in, at once where it has power."""
        self._ingress = ingress
        self._later(self._apply_ingress)

    def power_on(self) -> None:
        """Boot, after what was asked before is done."""
        self._is_off.clear()
        if self._later(self._start) is None:
            self._is_off.set()

    def power_off(self) -> None:
        """Begin a clean power-off; cut after two minutes, as EC2 does."""
        self._later(self._begin_power_off)

    def cut(self) -> None:
        """Cut the power, at once."""
        self._later(self._kill)

    def attach(self, disk: Disk) -> None:
        """Attach a volume: `/dev/nvme1n1` and up, also under `/dev/disk/by-id` as on EC2's Nitro system."""
        self._later(self._attach, disk)

    def detach(self, volume_id: str) -> None:
        """Detach a volume; a file system that is still mounted keeps it in use until it is unmounted."""
        self._later(self._detach, volume_id)

    def discard(self) -> None:
        """Remove its disk, its address and the volumes that end with it; one that has power is cut."""
        self._later(self._kill)
        threading.Thread(target=self._discard_when_off, daemon=True).start()

    def limit_memory(self, mib: int) -> None:
        """Let the kernel end processes of the machine where it needs more than `mib` MiB in all; a fault for tests."""
        self._memory_mib = mib
        self._later(cgroups.limit_memory, self._room.bed.name, self._birth.instance_id, mib)

    def wait_until_off(self, seconds: float) -> bool:
        """Wait for the machine to be off and cleaned up; return whether it is."""
        return self._is_off.wait(seconds)

    @property
    def _console_file(self) -> Path:
        return self._folder / "console.log"

    def _later(self, act: Callable[..., None], *arguments: object) -> Future[None] | None:
        with contextlib.suppress(RuntimeError):  # it has been discarded
            return self._worker.submit(self._safely, act, *arguments)
        return None

    def _safely(self, act: Callable[..., None], *arguments: object) -> None:
        """What goes wrong is written where its owner looks: the console."""
        try:
            act(*arguments)
        except (OSError, ToolFailed, subprocess.SubprocessError) as error:
            self._say(f"{act.__name__.strip('_')}: {error}")

    def _say(self, text: str) -> None:
        with self._console_file.open("a") as console:
            console.write(f"[gpulab sandbox] {text}\n")

    # Power.

    def _start(self) -> None:
        if self._process is not None:
            return
        try:
            self._process = process = self._launch()
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        except (OSError, ToolFailed, subprocess.SubprocessError) as error:
            self._say(f"the boot failed: {error}")
        finally:
            if self._process is None:
                self._after_off()

    def _launch(self) -> subprocess.Popen[bytes]:
        address = self._birth.private_address
        self._open_root()
        self._open_volumes()
        space = self._room.vpc.plug(address)
        self._room.vpc.admit(address, self._ingress)
        return self._spawn(space)

    def _spawn(self, space: Path) -> subprocess.Popen[bytes]:
        bed, name = self._room.bed, self._birth.instance_id
        words = self._with_disk(in_network(space, self._nspawn()))
        if self._memory_mib is not None:
            cgroups.limit_memory(bed.name, name, self._memory_mib)
        with self._console_file.open("ab") as console:
            process = subprocess.Popen(
                cgroups.enter(bed.name, name, words),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=tool_environment() | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        beds.note_process(bed, name, process.pid)
        return process

    def _nspawn(self) -> list[str | Path]:
        """
        The words that boot.

        The namespace is entered before: nspawn's own option for it takes CAP_NET_ADMIN away and shows the host's
        interfaces. There may be no machine manager to register with. `read-only` is the one way to have a console and
        its output in a file.
        """
        address = self._birth.private_address.replace(".", "-")
        return [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self._folder / 'root'}"),
            *(
                f"--machine={self._room.bed.name}-{self._birth.instance_id}",
                f"--hostname=ip-{address}",
            ),
            *("--register=no", "--keep-unit", "--capability=CAP_NET_ADMIN,CAP_NET_RAW"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"),
            *(f"--bind-ro={self._folder / 'hardware'}:{VOLUME_LIST}", *self._room.binds),
        ]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        is_reboot = process.wait() == _REBOOT
        self._later(self._after_reboot if is_reboot else self._after_off)

    def _after_reboot(self) -> None:
        """`reboot` inside ends systemd-nspawn too; for EC2 the instance has been running all the time."""
        self._clean_up()
        self._start()

    def _after_off(self) -> None:
        """Tell, once all is given back: whoever waits for `_is_off` finds the host clean."""
        try:
            self._clean_up()
        finally:
            self._is_off.set()
            self._on_exit(self._birth.instance_id)

    def _clean_up(self) -> None:
        """Give back what a running machine takes; what is inside outlives a systemd-nspawn that was killed."""
        self._process = None
        cgroups.end(self._room.bed.name, self._birth.instance_id)
        self._close_volumes()
        self._room.vpc.unplug(self._birth.private_address)
        cgroups.remove(self._room.bed.name, self._birth.instance_id)
        beds.remove_nspawn_traces(f"{self._room.bed.name}-{self._birth.instance_id}")

    def _begin_power_off(self) -> None:
        if self._process is not None:
            threading.Thread(target=self._end_cleanly, daemon=True).start()

    def _end_cleanly(self) -> None:
        """Ask again and again: a systemd that has just started, or is about to boot again, does not listen."""
        for _ in range(_POWER_OFF_SECONDS // _ASK_AGAIN_SECONDS):
            first = self._first_process()
            if first is not None:
                _signal(first, _POWER_OFF_SIGNAL)
            if self._is_off.wait(_ASK_AGAIN_SECONDS):
                return
        self.cut()

    def _first_process(self) -> int | None:
        process = self._process
        return None if process is None else _first_process(process.pid)

    def _kill(self) -> None:
        """End every process at once, systemd-nspawn and what it is just starting included."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            cgroups.end(self._room.bed.name, self._birth.instance_id)

    # Disks.

    def _open_root(self) -> None:
        """The root volume is a file system of its size, whose upper layer lies over the base."""
        volumes, root = self._room.volumes, self._root
        if volumes.create(root.volume_id, root.size_gib):
            volumes.format_root(root.volume_id)
        self._open[root.volume_id] = volumes.open(root.volume_id)
        for folder in ("disk", "root"):
            (self._folder / folder).mkdir(exist_ok=True)

    def _with_disk(self, words: list[str]) -> list[str]:
        """
        The words that mount the disk and then run others, in a mount namespace of their own.

        So the disk is free when the machine is off: a mount of the host's would be copied, and held, by every program that
        happens to make a mount namespace meanwhile.
        """
        disk = self._folder / "disk"
        lower = ":".join(map(str, self._room.layers))
        options = f"lowerdir={lower},upperdir={disk / 'upper'},workdir={disk / 'work'}"
        node = self._open[self._root.volume_id].node
        places = [str(place) for place in (node, disk, options, self._folder / "root")]
        return ["unshare", "--mount", "sh", "-c", _MOUNT_AND_RUN, "sh", *places, *words]

    def _open_volumes(self) -> None:
        for disk in self._disks.values():
            self._open_volume(disk)
        self._write_volume_list()

    def _open_volume(self, disk: Disk) -> None:
        self._room.volumes.create(disk.volume_id, disk.size_gib)
        self._open[disk.volume_id] = self._room.volumes.open(disk.volume_id)

    def _close_volumes(self) -> None:
        for device in self._open.values():
            device.close()
        self._open.clear()

    def _attach(self, disk: Disk) -> None:
        if disk.volume_id in self._disks:
            return
        self._disks[disk.volume_id] = disk
        if self._process is not None:
            self._open_volume(disk)
            self._show_volumes()

    def _detach(self, volume_id: str) -> None:
        self._disks.pop(volume_id, None)
        device = self._open.pop(volume_id, None)
        if device is not None:
            self._show_volumes()
            device.close()

    def _show_volumes(self) -> None:
        self._write_volume_list()
        first = self._first_process()
        if first is not None:
            run_tool("nsenter", f"--target={first}", "--mount", "--pid", "--root", HARDWARE)

    def _write_volume_list(self) -> None:
        """A volume keeps its number for as long as it is attached; the root is number 0, as on EC2."""
        attached = {v: self._open[v].minor for v in self._disks if v in self._open}
        self._numbers = _numbered(self._disks, self._numbers)
        names = {f"nvme{self._numbers[v]}n1": (minor, v) for v, minor in attached.items()}
        (self._folder / "hardware" / "volumes").write_text(volume_lines(names))

    # The rest.

    def _apply_ingress(self) -> None:
        if self._process is not None:
            self._room.vpc.admit(self._birth.private_address, self._ingress)

    def _discard_when_off(self) -> None:
        if self._is_off.wait(_POWER_OFF_SECONDS):
            self._later(self._discard)
            self._worker.shutdown(wait=False)

    def _discard(self) -> None:
        self.console()
        self._room.vpc.expel(self._birth.private_address)
        for disk in (self._root, *self._disks.values()):
            if disk.delete_on_termination:
                self._room.volumes.delete(disk.volume_id)
        run_tool("rm", "-rf", "--one-file-system", self._folder)
        self._on_discard(self._birth)


def _default_root(instance_id: str) -> Disk:
    return Disk(
        f"root-{instance_id}",
        "/dev/sda1",
        _DEFAULT_ROOT_GIB,
        is_root=True,
        delete_on_termination=True,
    )


def _numbered(volume_ids: Iterable[str], before: Mapping[str, int]) -> dict[str, int]:
    """Give each volume the lowest free number, unless it has one."""
    numbers = {volume: before[volume] for volume in volume_ids if volume in before}
    for volume in volume_ids:
        if volume not in numbers:
            numbers[volume] = next(n for n in range(1, 1000) if n not in numbers.values())
    return numbers


def _first_process(nspawn: int) -> int | None:
    """The host's id of the process that is number 1 inside; `None` before it is there and after it has gone."""
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
    except OSError:
        return None
    return next((int(child) for child in children if _number_inside(child) == "1"), None)


def _number_inside(pid: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
    return ""


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
