"""Nothing is left on the host: not by a sandbox that closes, not by one that is killed, not by one whose supervisor is killed too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpulab.sandbox.machines import CannotBoot
from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container import cgroups, open_kind
from gpulab.sandbox.machines.container.bed import Bed
from gpulab.sandbox.machines.container.reaper import mounts_under

# A sandbox of its own: boots the machine it is given, says where it is, and waits to be killed.
OWNER = """
import json, os, sys, time
from datetime import UTC, datetime
from gpulab.sandbox.machines import Birth, Disk
from gpulab.sandbox.machines.container import open_kind
kind = open_kind(os.environ)
address, _ = kind.addresses()
disk = Disk("vol-left", "/dev/sdf", 1, is_root=False, delete_on_termination=False)
machine = kind.boot(
    Birth("i-00000000000left00", "1", "us-east-1", "us-east-1a", "t3.micro", "ami-0", "spot", address,
          address, "", b"", {}, datetime.now(UTC), disks=(disk,)),
    on_exit=lambda instance_id: None)
while "Welcome" not in machine.console():
    time.sleep(0.1)
print(json.dumps({"number": kind.number, "folder": str(kind.folder), "supervisor": kind.supervisor_pid}), flush=True)
time.sleep(600)
"""


def an_owner(environ: dict[str, str]) -> tuple[subprocess.Popen[str], Bed, int]:
    """A second sandbox with a machine that boots; its process, its bed, its supervisor."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environ
    )
    assert owner.stdout is not None
    said = json.loads(owner.stdout.readline())
    return owner, Bed(said["number"], Path(said["folder"])), said["supervisor"]


def kill(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()


def leftovers(bed: Bed) -> dict[str, object]:
    """Everything of a bed that this host still shows, by kind; empty when nothing is left."""
    links = json.loads(subprocess.check_output(["ip", "-j", "link"], env=os.environ | SBIN))
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    found: dict[str, object] = {
        "processes": cgroups.members(bed.name) | set(beds.noted_processes(bed)),
        "mounts": mounts_under(bed.folder),
        "interfaces": [link["ifname"] for link in links if link["ifname"] == bed.name],
        "cgroups": [
            top for top in (cgroups.ROOT, *cgroups.ROOT.iterdir()) if (top / bed.name).exists()
        ],
        "devices": [f for f in backing if f.read_text().startswith(str(bed.folder))],
        "folders": [path for path in (bed.folder, bed.devices) if path.exists()],
        "nspawn": list(Path("/run/systemd/nspawn/propagate").glob(f"{bed.name}-*")),
        "record": [] if beds.recorded(bed.number) is None else [bed.number],
    }
    return {name: things for name, things in found.items() if things}


SBIN = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


@pytest.mark.slow
def test_a_killed_sandbox_is_reaped_by_its_supervisor(
    container_kind, container_environment, eventually
):
    """A crashed simulator must not leave machines that run, mounts that stay, or a network that is in the way."""
    owner, bed, _ = an_owner(container_environment)
    while_it_ran = leftovers(bed)

    kill(owner)
    eventually(lambda: not leftovers(bed), lambda: str(leftovers(bed)))

    assert {"processes", "mounts", "interfaces", "cgroups", "devices", "folders"} <= set(
        while_it_ran
    )
    assert bed.number != container_kind.number


@pytest.mark.slow
def test_what_nobody_could_reap_is_reaped_at_the_next_start(
    container_kind, container_environment, eventually
):
    """When the supervisor was killed as well, the next sandbox cleans up before it begins."""
    owner, bed, supervisor = an_owner(container_environment)
    os.kill(supervisor, signal.SIGKILL)
    kill(owner)
    while_dead = leftovers(bed)

    kind = open_kind(container_environment)
    taken_over = kind.number
    kind.close()
    eventually(lambda: not leftovers(bed), lambda: str(leftovers(bed)))

    assert {"processes", "mounts"} <= set(while_dead)
    assert taken_over == bed.number


@pytest.mark.slow
def test_closing_gives_everything_back(container_kind, container_environment):
    """`gpulab sandbox stop` with machines that run, twice; the host is as it was, its settings and firewall included."""
    before = host_settings()
    kind = open_kind(container_environment)
    bed = Bed(kind.number, kind.folder)
    while_it_ran = host_settings()

    kind.close()
    kind.close()

    assert leftovers(bed) == {}
    assert while_it_ran == before == host_settings()


def host_settings() -> dict[str, str]:
    """The settings and the firewall of this host, which belong to its owner."""
    names = ("ip_forward", "conf/all/forwarding", "conf/all/rp_filter", "conf/all/proxy_arp")
    settings = {name: Path("/proc/sys/net/ipv4", name).read_text() for name in names}
    rules = subprocess.run(
        ["nft", "list", "ruleset"],
        capture_output=True,
        text=True,
        env=os.environ | SBIN,
        check=False,
    )
    return settings | {"firewall": rules.stdout}


def test_a_closed_kind_boots_nothing(container_kind, container_environment, machines):
    """A launch that races with the stop of the sandbox is refused, not lost."""
    kind = open_kind(container_environment)
    birth = replace(machines.birth(), private_address=kind.addresses()[0])
    kind.close()

    with pytest.raises(CannotBoot, match="has been closed"):
        kind.boot(birth, on_exit=lambda instance_id: None)


def test_an_address_of_elsewhere_is_refused(machines):
    """A machine with an address that nothing routes to would boot and never be reached."""
    birth = machines.birth()

    with pytest.raises(CannotBoot, match=r"192\.0\.2\.9 is not an address of this network"):
        machines.boot(private_address="192.0.2.9", instance_id=birth.instance_id)
