"""
Machines of kind `process`, seen from the simulated EC2: start, power, metadata, volumes, and the end without any remains.

A machine is a tree of processes under one first process, a folder as its disk, and a metadata service on a port of its own.
The tree dies with this process, however this process dies: its standard input is the lifeline.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpulab.sandbox.machines import Birth, CannotBoot, Ingress, LiveMetadata
from gpulab.sandbox.machines import Disk as Volume
from gpulab.sandbox.machines.metadata import Guest, MetadataService
from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.machines.process.disk import MARK, Disk, environment_inside, format_disk
from gpulab.sandbox.machines.process.remains import reap, remove

_CLOSE_LIMIT_S = 30.0


class ProcessKind:
    """
    A way to make machines on any Linux or macOS computer, without root.

    Args:
        folder: Where the machines' disks lie; made if needed. One kind at a time uses it.
        host: The environment of this process; a machine sees the little of it that `environment_inside` lets in.
        grace_s: What programs have to end at a power-off, seconds, as systemd's `TimeoutStopSec=` of the agent's unit.

    Raises:
        CannotBoot: On Windows, which has no process groups, terminals and signals of this sort.
    """

    name = "process"

    def __init__(self, folder: Path, *, host: Mapping[str, str], grace_s: float = 20.0) -> None:
        if sys.platform == "win32":
            raise CannotBoot(
                "machines of kind `process` need Linux or macOS; in WSL they run, and"
                " `gpulab sandbox start --machines none` runs here"
            )
        self._folder = folder
        self._host = host
        self._grace_s = grace_s
        self._machines: dict[str, ProcessMachine] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "machines").mkdir(exist_ok=True, mode=0o700)
        (folder / "volumes").mkdir(exist_ok=True, mode=0o700)

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> ProcessMachine:
        """Make a disk and power the machine on; returns before its ssh server answers."""
        place = self._folder / "machines" / birth.instance_id
        machine = ProcessMachine(
            birth,
            place=place,
            volumes=self._folder / "volumes",
            host=self._host,
            grace_s=self._grace_s,
            on_exit=on_exit,
        )
        try:
            machine.power_on()
        except OSError as error:
            remove(place, trash=self._folder / "trash")
            raise CannotBoot(f"could not start {birth.instance_id}: {error}") from error
        self._machines[birth.instance_id] = machine
        return machine

    def addresses(self) -> tuple[str, str] | None:
        """Let the simulated EC2 choose: these machines are on this computer's loopback only."""
        return None

    def endpoint_host(self) -> str:
        """This computer, as seen from itself."""
        return "127.0.0.1"

    def delete_volume(self, volume_id: str) -> None:
        """Remove a kept volume."""
        remove(self._folder / "volumes" / Path(volume_id).name, trash=self._folder / "trash")

    def close(self) -> None:
        """Cut every machine off and remove every disk and volume."""
        for machine in self._machines.values():
            machine.cut()
        for machine in self._machines.values():
            machine.wait_until_off(_CLOSE_LIMIT_S)
        self._machines.clear()
        reap(self._folder)


@dataclass
class _Powered:
    """What a machine has only while it is on."""

    first: subprocess.Popen[bytes]
    metadata: MetadataService
    watcher: threading.Thread


class ProcessMachine:
    """One machine of kind `process`; see `Machine` for what its calls promise. May be used from several threads."""

    def __init__(
        self,
        birth: Birth,
        *,
        place: Path,
        volumes: Path,
        host: Mapping[str, str],
        grace_s: float,
        on_exit: Callable[[str], None],
    ) -> None:
        self.disk = Disk(place / "disk")
        self._birth = birth
        self._place = place
        self._volumes = volumes
        self._trash = volumes.with_name("trash")
        self._host = host
        self._grace_s = grace_s
        self._on_exit = on_exit
        self._guest = Guest(birth)
        self._ingress = birth.ingress
        self._attached = {disk.volume_id: disk for disk in birth.disks}
        self._lock = threading.RLock()
        self._powered: _Powered | None = None
        self._is_discarded = False

    @property
    def door(self) -> tuple[str, int] | None:
        """Where the ssh server listens; `None` before it does and when the machine is off."""
        if self._powered is None:
            return None
        try:
            return "127.0.0.1", int(self.disk.ssh_port.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    @property
    def ingress(self) -> tuple[Ingress, ...]:
        """What may come in; `gpulab sandbox connect` keeps to it."""
        return self._ingress

    def console(self) -> str:
        """Everything the machine wrote to its console, of all boots."""
        try:
            return self._console_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def publish(self, metadata: LiveMetadata) -> None:
        """Replace the changing part of the metadata."""
        self._guest.publish(metadata)

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        """Replace what may come in; connections that stand stay, as in EC2."""
        self._ingress = ingress

    def power_on(self) -> None:
        """Start the first process on the disk; harmless on a machine that is on."""
        with self._lock:
            if self._powered is not None or self._is_discarded:
                return
            hostname = "ip-" + (self._birth.private_address or "127.0.0.1").replace(".", "-")
            self._place.mkdir(parents=True, exist_ok=True, mode=0o700)
            format_disk(self.disk, hostname=hostname)
            for volume in self._attached.values():
                self._plug(volume)
            self._start()

    def power_off(self) -> None:
        """Ask the first process to end everything; it takes some seconds at most."""
        self._signal(signal.SIGTERM)

    def cut(self) -> None:
        """Kill everything at once."""
        with self._lock:
            powered = self._powered
        if powered is not None:
            threading.Thread(target=self._kill, args=(powered,), daemon=True).start()

    def attach(self, disk: Volume) -> None:
        """Show a volume as a folder under /mnt, named as its device; the folder is kept by volume id."""
        self._attached[disk.volume_id] = disk
        self._plug(disk)

    def detach(self, volume_id: str) -> None:
        """Take a volume's folder away; its content is kept."""
        volume = self._attached.pop(volume_id, None)
        if volume is not None:
            self._socket_of(volume).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the disk, after cutting a machine that is still on; volumes that outlive the instance stay."""
        with self._lock:
            self._is_discarded = True
        # Whoever holds the world's lock shall not wait for the end of the processes.
        threading.Thread(target=self._remove, name=f"discard {self._birth.instance_id}").start()

    def _remove(self) -> None:
        self.cut()
        self.wait_until_off(_CLOSE_LIMIT_S)
        for volume in self._attached.values():
            if volume.delete_on_termination and not volume.is_root:
                remove(self._volumes / Path(volume.volume_id).name, trash=self._trash)
        remove(self._place, trash=self._trash)

    def wait_until_off(self, limit_s: float) -> None:
        """Wait until the machine is off and `on_exit` has been called; not for the simulated EC2's own threads."""
        powered = self._powered
        if powered is not None:
            powered.watcher.join(limit_s)

    @property
    def _console_file(self) -> Path:
        return self._place / "console.log"

    def _start(self) -> None:
        metadata = MetadataService(_loopback(), lambda _address: self._guest)
        try:
            first = self._spawn(metadata.url)
        except OSError:
            metadata.close()
            raise
        record = {"pid": first.pid, "started": trees.started_at(first.pid)}
        (self._place / "machine.json").write_text(json.dumps(record), encoding="ascii")
        watcher = threading.Thread(
            target=self._watch, args=(first,), name=self._birth.instance_id, daemon=True
        )
        self._powered = _Powered(first, metadata, watcher)
        watcher.start()

    def _spawn(self, metadata_url: str) -> subprocess.Popen[bytes]:
        environment = environment_inside(self.disk, self._host, metadata_url=metadata_url)
        if path := self._host.get("PYTHONPATH"):
            environment["PYTHONPATH"] = (
                path  # how this very package was found; sessions do not see it
            )
        module = "gpulab.sandbox.machines.process.init"
        with _append(self._console_file) as console:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(self.disk.root), str(self._grace_s)],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                env=environment,
                cwd=self.disk.root,
                start_new_session=True,
            )

    def _watch(self, first: subprocess.Popen[bytes]) -> None:
        """Wait for the machine's end, remove what it left in the system, and report it."""
        first.wait()
        trees.kill_until_gone(lambda: trees.marked(MARK, str(self.disk.root).__eq__))
        with self._lock:
            powered = self._powered
            assert powered is not None
            powered.metadata.close()
            if first.stdin:
                with contextlib.suppress(OSError):
                    first.stdin.close()
            for name in (self.disk.ssh_port, self.disk.init_pid, self._place / "machine.json"):
                name.unlink(missing_ok=True)
            self._powered = None
        self._on_exit(self._birth.instance_id)

    def _kill(self, powered: _Powered) -> None:
        """Stop the first process first, so that it starts nothing again while its children are killed."""
        first = powered.first
        with contextlib.suppress(ProcessLookupError):
            first.send_signal(signal.SIGSTOP)
            trees.kill_until_gone(lambda: trees.descendants(first.pid))
            first.kill()

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._powered is not None:
                self._powered.first.send_signal(number)

    def _plug(self, volume: Volume) -> None:
        if volume.is_root:
            return
        folder = self._volumes / Path(volume.volume_id).name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = self._socket_of(volume)
        link.unlink(missing_ok=True)
        link.symlink_to(folder)

    def _socket_of(self, volume: Volume) -> Path:
        return self.disk.root / "mnt" / Path(volume.device).name


def _loopback() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _append(path: Path) -> IO[bytes]:
    return path.open("ab")
