"""The machine kind `container`: puts bed, network, volumes and machines together; refuses what this host cannot do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpulab.sandbox.machines import Birth, CannotBoot
from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container import image
from gpulab.sandbox.machines.container.bed import Bed
from gpulab.sandbox.machines.container.boot import ContainerMachine, Room
from gpulab.sandbox.machines.container.commands import ToolFailed, run_tool
from gpulab.sandbox.machines.container.disks import Volumes
from gpulab.sandbox.machines.container.indexes import PackageSettings, read_settings
from gpulab.sandbox.machines.container.network import NAME_SERVER, Vpc
from gpulab.sandbox.machines.container.reaper import NotClean, reap
from gpulab.sandbox.machines.container.requirements import missing
from gpulab.sandbox.machines.container.site import PIP_CACHE, UV_CACHE, make_site
from gpulab.sandbox.machines.container.supervisor import dismiss, supervise
from gpulab.sandbox.machines.metadata import Guest, MetadataService

_CLOSE_SECONDS = 10

# The first login user of a machine, which owns the part of the cache that is not root's.
_FIRST_UID = 1000


def open_kind(environ: Mapping[str, str]) -> ContainerKind:
    """
    Make the network of a sandbox whose machines boot, after reaping every sandbox that was killed.

    Args:
        environ: This process's environment: the cache folder, package indexes, certificate authorities.

    Raises:
        CannotBoot: This host lacks something; the text says what and how to install it. Nothing is left behind.
    """
    lack = missing()
    if lack:
        raise CannotBoot(lack)
    root = image.built(environ)
    cache = image.cache_folder(environ)
    try:
        bed, lock = beds.claim(cache, reap=_reap_if_possible, routes=_routes)
    except (beds.BedTaken, ToolFailed, OSError) as error:
        raise CannotBoot(f"no network for the machines: {error}") from error
    claim = _Claim(bed, lock, supervise(bed.number))
    try:
        return ContainerKind(_furnish(bed, root, cache, environ), claim)
    except (ToolFailed, OSError) as error:
        claim.release()
        raise CannotBoot(f"the network of the machines could not be made: {error}") from error


class ContainerKind:
    """
    Machines that really boot; see `MachineKind`. Made by `open_kind`.

    The private and the public address of an instance are the same and stay for its life, across stop and start.
    """

    name = "container"

    def __init__(self, room: Room, claim: _Claim) -> None:
        self._room = room
        self._claim = claim
        self._guests: dict[str, Guest] = {}
        self._machines: dict[str, ContainerMachine] = {}
        self._is_closed = False
        self._lock = threading.Lock()
        self._metadata = MetadataService(room.vpc.metadata_listener(), self._guests.get)

    @property
    def number(self) -> int:
        """Which of this host's sandboxes it is; names of interfaces and cgroups carry it."""
        return self._room.bed.number

    @property
    def folder(self) -> Path:
        """Where its machines, volumes and logs are; gone after `close`."""
        return self._room.bed.folder

    @property
    def supervisor_pid(self) -> int:
        """The process that reaps when this one is killed."""
        return self._claim.supervisor.pid

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> ContainerMachine:
        """
        Start a machine and return at once.

        Raises:
            CannotBoot: The address is not one of `addresses`, the instance has a machine, or the kind has been closed.
        """
        if not self._room.vpc.is_ours(birth.private_address):
            raise CannotBoot(
                f"{birth.private_address or 'no address'} is not an address of this network"
            )
        guest = Guest(birth, subnet=str(self._room.bed.network))
        with self._lock:
            if self._is_closed:
                raise CannotBoot("the sandbox has been closed")
            if birth.instance_id in self._machines or birth.private_address in self._guests:
                raise CannotBoot(f"{birth.instance_id} or its address has a machine already")
            machine = ContainerMachine(
                self._room,
                birth,
                guest=guest,
                on_exit=self._unless_closed(on_exit),
                on_discard=self._forget,
            )
            self._guests[birth.private_address] = guest
            self._machines[birth.instance_id] = machine
        machine.power_on()
        return machine

    def addresses(self) -> tuple[str, str]:
        """
        Take an address for the next instance; it is free again when the machine is discarded.

        Raises:
            CannotBoot: About a thousand are in use.
        """
        try:
            address = self._room.vpc.take_address()
        except IndexError as error:
            raise CannotBoot("every address of the network is in use") from error
        return address, address

    def endpoint_host(self) -> str:
        """This host's end of the link: a server that listens there is reached by machines, and sees them by their address."""
        return self._room.bed.host_side

    def delete_volume(self, volume_id: str) -> None:
        """Remove a kept volume."""
        self._room.volumes.delete(volume_id)

    def close(self) -> None:
        """Cut every machine and give everything back; `on_exit` is not called any more. Harmless the second time."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            machines = list(self._machines.values())
        for machine in machines:
            machine.cut()
        for machine in machines:
            machine.wait_until_off(_CLOSE_SECONDS)
        self._metadata.close()
        self._room.vpc.close()
        self._claim.release()

    def _unless_closed(self, on_exit: Callable[[str], None]) -> Callable[[str], None]:
        def tell(instance_id: str) -> None:
            if not self._is_closed:
                on_exit(instance_id)

        return tell

    def _forget(self, birth: Birth) -> None:
        with self._lock:
            self._machines.pop(birth.instance_id, None)
            self._guests.pop(birth.private_address, None)
        self._room.vpc.give_back(birth.private_address)


@dataclass(frozen=True)
class _Claim:
    """A bed that is ours: its lock, and the supervisor that acts when we are killed."""

    bed: Bed
    lock: IO[str]
    supervisor: subprocess.Popen[bytes]

    def release(self) -> None:
        """Reap while the lock is still held, so that nobody takes the bed over before it is clean."""
        try:
            reap(self.bed)
        finally:
            dismiss(self.supervisor)
            self.lock.close()


def _furnish(bed: Bed, root: Path, cache: Path, environ: Mapping[str, str]) -> Room:
    packages = read_settings(environ)
    site = bed.folder / "site"
    make_site(site, environ=environ, packages=packages, name_server=NAME_SERVER)
    return Room(
        bed=bed,
        vpc=Vpc.open(bed),
        volumes=Volumes(bed.folder / "volumes", bed.devices),
        layers=(site, root),
        binds=_binds(cache, packages),
    )


def _reap_if_possible(bed: Bed) -> None:
    """What does not go, such as a process in the middle of a lost disk's answer, must not keep others from starting."""
    with contextlib.suppress(NotClean):
        reap(bed)


def _routes() -> str:
    return run_tool("ip", "-o", "-4", "route", "show", "table", "all")


def _binds(cache: Path, packages: PackageSettings) -> tuple[str, ...]:
    """The caches, kept for every later machine, and the folders of this host that its package settings name."""
    options = []
    for name, inside in (("uv", UV_CACHE), ("pip", PIP_CACHE)):
        options.append(f"--bind={_cache(cache / name)}:{inside}")
    return (*options, *(f"--bind-ro={folder}" for folder in packages.folders()))


def _cache(folder: Path) -> Path:
    """Root and the login user have a part each: one of them could not write into folders the other has made."""
    for name, owner in (("root", 0), ("user", _FIRST_UID)):
        part = folder / name
        if not part.is_dir():
            part.mkdir(parents=True)
            os.chown(part, owner, owner)
    return folder
