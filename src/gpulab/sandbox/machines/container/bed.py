"""
The names, addresses and folders of one sandbox on this host, and the lock that says it is alive.

Several sandboxes run side by side: each claims a number, and everything it makes carries that number. The lock is freed by the
kernel however its owner ends, so a number whose lock is free but whose record exists is a sandbox that was killed.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

RECORDS = Path("/run/gpulab-sandbox")
BEDS = 16


class BedTaken(Exception):
    """The bed belongs to a living sandbox."""


@dataclass(frozen=True)
class Bed:
    """
    One sandbox's share of this host.

    Attributes:
        folder: Holds everything on disk; removed as a whole at the end.
    """

    number: int
    folder: Path

    @property
    def name(self) -> str:
        """The prefix of interfaces, cgroups and device folders: `gpulab0`."""
        return f"gpulab{self.number}"

    @property
    def block(self) -> ipaddress.IPv4Network:
        """All addresses of the bed: the instances' network and the link to the host."""
        return ipaddress.IPv4Network(f"10.{77 + self.number}.0.0/16")

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The VPC: `10.77.0.0/17`."""
        return next(self.block.subnets())

    @property
    def router(self) -> str:
        """The instances' default gateway."""
        return str(self.network[1])

    @property
    def host_side(self) -> str:
        """This host, as the instances see it."""
        return str(self.network.broadcast_address + 2)

    @property
    def vpc_side(self) -> str:
        """The VPC, as this host sees it."""
        return str(self.network.broadcast_address + 3)

    @property
    def addresses(self) -> list[str]:
        """What instances may have, in order of use."""
        candidates = (self.network[256 + n] for n in range(1024))
        return [str(a) for a in candidates if a.packed[3] not in (0, 255)]

    @property
    def devices(self) -> Path:
        """The folder of the loop devices' nodes; under `/dev`, since other folders are often mounted without devices."""
        return Path("/dev") / self.name

    def namespace(self, name: str) -> Path:
        """The file that holds a network namespace."""
        return self.folder / "net" / name


def claim(
    cache: Path, *, reap: Callable[[Bed], None], routes: Callable[[], str]
) -> tuple[Bed, IO[str]]:
    """
    Take the first free number, after reaping every sandbox that was killed.

    Args:
        cache: The sandbox's folder; the bed's own is made in it.
        reap: Removes what a killed sandbox left, and its record; a number whose record stays is passed over.
        routes: Reads `ip -o -4 route show table all`; a number whose addresses this host uses otherwise is passed over.

    Returns:
        The bed and the open lock; closing the lock gives the number back.

    Raises:
        BedTaken: All numbers are in use.
    """
    taken: tuple[Bed, IO[str]] | None = None
    for number in range(BEDS):
        if taken is not None and recorded(number) is None:
            continue
        try:
            lock = hold(number)
        except BedTaken:
            continue
        left = recorded(number)
        if left is not None:
            reap(left)
        bed = Bed(number, cache / "beds" / str(number))
        is_clean = recorded(number) is None
        if taken is None and is_clean and not _overlaps(bed, routes()):
            taken = bed, lock
        else:
            lock.close()
    if taken is None:
        raise BedTaken(f"all {BEDS} sandbox networks of this host are in use")
    _record(taken[0])
    taken[0].folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return taken


def hold(number: int) -> IO[str]:
    """
    Lock a number, for as long as the returned file stays open.

    Raises:
        BedTaken: Another process holds it.
    """
    RECORDS.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = (RECORDS / f"{number}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise BedTaken(f"sandbox network {number} is in use") from error
    return lock


def recorded(number: int) -> Bed | None:
    """The bed that was claimed under a number and not yet given back."""
    with suppress(FileNotFoundError, ValueError, KeyError):
        record = json.loads(_record_file(number).read_text())
        return Bed(number, Path(record["folder"]))
    return None


def forget(bed: Bed) -> None:
    """Say that nothing is left of a bed."""
    _record_file(bed.number).unlink(missing_ok=True)


def note_process(bed: Bed, name: str, pid: int) -> None:
    """Record a process of the bed, with its start time so that a reused id is never taken for it."""
    folder = bed.folder / "pids"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{pid} {start_time(pid)}\n")


def noted_processes(bed: Bed) -> Iterator[int]:
    """The recorded processes that still run."""
    for file in sorted((bed.folder / "pids").glob("*")):
        with suppress(ValueError):
            pid, started = file.read_text().split()
            if start_time(int(pid)) == started:
                yield int(pid)


def remove_nspawn_traces(machines: str) -> None:
    """Remove the empty folders systemd-nspawn leaves where `/run` is no tmpfs; `machines` is a pattern of names."""
    for folder in Path("/run/systemd/nspawn/propagate").glob(machines):
        with suppress(OSError):
            folder.rmdir()


def start_time(pid: int) -> str:
    """Ticks since boot at which a process started, as `/proc` says it; empty for one that is gone or a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


def _record(bed: Bed) -> None:
    new = _record_file(bed.number).with_suffix(".new")
    new.write_text(json.dumps({"folder": str(bed.folder), "owner": os.getpid()}))
    new.replace(_record_file(bed.number))


def _record_file(number: int) -> Path:
    return RECORDS / f"{number}.json"


def _overlaps(bed: Bed, routes: str) -> bool:
    """Whether this host reaches any address of the bed otherwise; the default route does not count."""
    for word in routes.split():
        with suppress(ValueError):
            network = ipaddress.IPv4Network(word)
            if network.prefixlen and network.overlaps(bed.block):
                return True
    return False
