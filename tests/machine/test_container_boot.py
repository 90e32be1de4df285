"""Machines that really boot: from power on to ssh, what cloud-init made of the user data, and every way a machine goes off."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gpulab.sandbox.machines import CannotBoot, Ingress, LiveMetadata
from gpulab.sandbox.machines.container.site import authorities_of

TOKEN = (
    "T=$(curl -sS -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60'"
    " http://169.254.169.254/latest/api/token)"
)
READ = 'curl -sS -m 5 -H "X-aws-ec2-metadata-token: $T" http://169.254.169.254/latest/meta-data/'


# A network namespace behind a router, as a container engine makes one; the router is the machine itself.
IN_A_CONTAINER = """
set -e
ip netns add box
ip link add boxport type veth peer name eth9 netns box
ip addr add 192.168.99.1/24 dev boxport
ip link set boxport up
ip -n box addr add 192.168.99.2/24 dev eth9
ip -n box link set eth9 up
ip -n box route add default via 192.168.99.1
echo 1 > /proc/sys/net/ipv4/ip_forward
nft add table ip box
nft 'add chain ip box leave { type nat hook postrouting priority 100; }'
nft add rule ip box leave ip saddr 192.168.99.0/24 masquerade
token() {
  "$@" curl -s -m 2 -o /dev/null -w '%{http_code}' -X PUT \
    -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token || true
}
echo "own $(token env), container $(token ip netns exec box)"
"""


NOTICES = ("spot/instance-action", "events/recommendations/rebalance")


def metadata(booted, path: str) -> str:
    return booted.run(f"{TOKEN}; {READ}{path}")


def metadata_status(booted, path: str) -> str:
    return booted.run(f"{TOKEN}; {READ}{path} -o /dev/null -w '%{{http_code}}'")


@pytest.mark.slow
def test_a_machine_runs_its_user_data_as_on_ec2(machines):
    """Everything the product does on an instance stands on this: unpatched cloud-init, the Ec2 datasource, a healthy systemd."""
    booted = machines.boot().wait_for_ssh()

    status = booted.run("cloud-init status --wait")
    cloud = booted.run("cloud-init query cloud_name")
    source = booted.run("cloud-init query subplatform")
    health = booted.run("systemctl is-system-running --wait")
    ran = booted.run("sudo ls /root/user-data-ran")
    name = booted.run("hostname; sudo -n id -un")

    assert (status.splitlines()[-1], cloud, health) == ("status: done", "aws", "running")
    assert source == "metadata (http://169.254.169.254)"
    assert ran == "/root/user-data-ran"
    assert name == f"ip-{booted.birth.private_address.replace('.', '-')}\nroot"


@pytest.mark.slow
def test_the_metadata_service_needs_a_token_and_follows_what_is_published(machines):
    """The agent ends a machine on a notice it reads here, and learns of an extension from a tag."""
    booted = machines.boot(role="gpulab-work").wait_for_ssh()
    notice = {"action": "terminate", "time": "2026-10-01T09:00:00Z"}
    rebalance_at = datetime(2026, 10, 1, 8, 58, tzinfo=UTC)
    quiet = [metadata_status(booted, path) for path in NOTICES]

    without = booted.run(
        "curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/latest/meta-data/"
    )
    before = metadata(booted, "tags/instance/gpulab:name")
    booted.machine.publish(
        LiveMetadata(tags={"gpulab:name": "week5"}, notice=notice, rebalance_at=rebalance_at)
    )
    after = metadata(booted, "tags/instance/gpulab:name")
    seen = json.loads(metadata(booted, "spot/instance-action"))

    recommended = json.loads(metadata(booted, "events/recommendations/rebalance"))

    assert (without, before, after, seen) == ("401", "week4", "week5", notice)
    assert (quiet, recommended) == (["404", "404"], {"noticeTime": "2026-10-01T08:58:00Z"})
    assert metadata(booted, "instance-id") == booted.birth.instance_id


@pytest.mark.slow
def test_a_power_cut_keeps_the_disk_and_the_identity(machines):
    """Stop and start, and a crash, come back as the same machine: its files, its host key, its address."""
    booted = machines.boot().wait_for_ssh()
    booted.run("echo kept > f; sync")
    keys = booted.host_keys()
    door = booted.machine.door

    booted.machine.cut()
    booted.wait_until_off()
    door_while_off = booted.machine.door
    booted.machine.power_on()
    booted.wait_for_ssh()

    assert (booted.run("cat f"), booted.machine.door) == ("kept", door)
    assert door_while_off is None
    assert set(keys) == set(booted.host_keys())
    assert booted.exits == [booted.birth.instance_id]


@pytest.mark.slow
def test_a_power_off_from_outside_stops_services_in_order(machines):
    """TerminateInstances gives the agent its moment to save; a cut would not."""
    booted = machines.boot().wait_for_ssh()

    booted.machine.power_off()
    booted.wait_until_off()

    assert "Reached target" in booted.machine.console()
    assert "System Power Off" in booted.machine.console() or "Power-Off" in booted.machine.console()
    assert booted.exits == [booted.birth.instance_id]


@pytest.mark.slow
def test_a_machine_that_powers_itself_off_tells_once(machines):
    """The agent ends an instance this way at its deadline; the simulated EC2 has to hear of it, and only then bills no more."""
    booted = machines.boot().wait_for_ssh()

    booted.ssh("sudo poweroff")
    booted.wait_until_off()
    booted.machine.power_off()
    booted.machine.cut()

    assert (booted.exits, booted.machine.door) == ([booted.birth.instance_id], None)


@pytest.mark.slow
def test_a_reboot_is_not_an_end(machines, eventually):
    """Installing a driver ends in a reboot; for EC2 the instance runs all the time."""
    booted = machines.boot().wait_for_ssh()
    first = booted.run("cat /proc/sys/kernel/random/boot_id; journalctl --list-boots -q | wc -l")

    booted.ssh("sudo reboot")
    eventually(
        lambda: booted.ssh("journalctl --list-boots -q | wc -l").stdout.strip() == "2",
        lambda: booted.machine.console()[-3000:],
    )

    assert first.splitlines()[-1] == "1"
    assert booted.exits == []


@pytest.mark.slow
def test_a_machine_whose_host_process_dies_is_off(machines):
    """The kernel ends processes of a host that is short of memory; the instance must not stay `running` for ever."""
    booted = machines.boot().wait_for_ssh()
    noted = machines.kind.folder / "pids" / booted.birth.instance_id

    os.kill(int(noted.read_text().split()[0]), signal.SIGKILL)
    booted.wait_until_off()
    booted.machine.power_on()
    booted.wait_for_ssh()

    assert booted.exits == [booted.birth.instance_id]


@pytest.mark.slow
def test_a_machine_installs_packages_as_its_host_does(machines, container_environment):
    """Behind a proxy with its own authority, or with an index of its own, nothing could be installed otherwise."""
    booted = machines.boot().wait_for_ssh()
    bundle = authorities_of(container_environment)
    assert bundle is not None

    trusted = booted.run("sha256sum < /etc/ssl/certs/ca-certificates.crt").split()[0]
    settings = booted.run("pip3 config list")
    caches = booted.run("cd /var/cache/uv && sudo touch root/.seen && touch user/.seen && ls -d *")

    assert trusted == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert "global.cert='/etc/ssl/certs/ca-certificates.crt'" in settings
    assert caches == "root\nuser"


@pytest.mark.slow
def test_a_power_off_right_after_power_on_is_not_lost(machines):
    """A launch that is cancelled at once: the system does not listen to signals in its first moments."""
    booted = machines.boot()

    booted.machine.power_off()
    booted.wait_until_off()

    assert booted.exits == [booted.birth.instance_id]


@pytest.mark.slow
def test_ten_machines_boot_at_once(machines):
    """A fleet in the tests is ten; each has its own address, keys and name."""
    fleet = [machines.boot() for _ in range(10)]

    for booted in fleet:
        booted.wait_for_ssh()
    names = {booted.run("hostname") for booted in fleet}
    keys = {key for booted in fleet for key in booted.host_keys() if key.startswith("ssh-ed25519")}

    assert (len(names), len(keys)) == (10, 10)


@pytest.mark.slow
def test_two_machines_meet_only_where_a_rule_lets_them(machines):
    """Jupyter of one student must not be reached by the machine of another."""
    host = machines.kind.endpoint_host()
    from_host = Ingress("tcp", 22, 22, f"{host}/32")
    one, other = (machines.boot(ingress=(from_host,)) for _ in range(2))
    one.wait_for_ssh()
    other.wait_for_ssh()
    address = other.birth.private_address
    knock = f"timeout 2 bash -c '</dev/tcp/{address}/22' && echo open || echo closed"

    before = one.run(knock)
    other.machine.admit((from_host, Ingress("tcp", 22, 22, f"{one.birth.private_address}/32")))
    allowed = one.run(knock)
    other_port = one.run(knock.replace("/22'", "/8888'"))
    other.machine.admit((from_host,))
    after = one.run(knock)

    assert (before, allowed, other_port, after) == ("closed", "open", "closed", "closed")


@pytest.mark.slow
def test_without_a_rule_nothing_comes_in_and_everything_goes_out(machines, eventually):
    """A security group without rules is closed; what a machine asks for is answered all the same."""
    booted = machines.boot(ingress=())
    eventually(lambda: bool(booted.host_keys()), booted.machine.console)

    closed = booted.ssh("true")
    booted.machine.admit((Ingress("tcp", 22, 22, f"{machines.kind.endpoint_host()}/32"),))
    booted.wait_for_ssh()
    out = booted.run("getent hosts localhost >/dev/null; ip route get 198.51.100.1 | head -1")

    assert closed.returncode == 255
    assert "timed out" in closed.stderr
    assert "via" in out


@pytest.mark.slow
def test_hop_limit_and_tags_are_as_the_launch_decided(machines):
    """The hop limit keeps the role's credentials from what a student runs in a container; tags are readable only where allowed."""
    pair = [machines.boot(hop_limit=limit, tags_in_metadata=limit == 1) for limit in (1, 2)]

    answers = [
        booted.wait_for_ssh().run(f"sudo bash -c {shlex.quote(IN_A_CONTAINER)}") for booted in pair
    ]
    # Two machines are here: one was launched with its tags in the metadata and one without.
    tags = [metadata_status(booted, "tags/instance/gpulab:name") for booted in pair]

    assert answers == ["own 200, container 000", "own 200, container 200"]
    assert tags == ["200", "404"]


@pytest.mark.slow
def test_a_machine_reaches_the_simulated_aws_on_this_host_and_the_caller_is_known(machines):
    """The agent calls EC2 and S3 from the machine; the server tells machines apart by their address."""
    booted = machines.boot().wait_for_ssh()
    callers: list[str] = []

    with socket.create_server((machines.kind.endpoint_host(), 0)) as server:
        thread = threading.Thread(target=lambda: callers.append(server.accept()[1][0]))
        thread.start()
        booted.run(
            f"timeout 5 bash -c '</dev/tcp/{machines.kind.endpoint_host()}/{server.getsockname()[1]}'"
        )
        thread.join()

    assert callers == [booted.birth.private_address]


@pytest.mark.slow
def test_a_program_that_needs_more_memory_than_there_is_is_ended(machines):
    """A notebook that is too large must not take the machine with it; the agent has to explain it."""
    booted = machines.boot().wait_for_ssh()
    booted.machine.limit_memory(400)

    said = booted.run("python3 -c 'print(len(bytearray(900 * 1024**2)))'; echo ended with $?")

    assert said == "ended with 137"
    assert booted.run("echo alive") == "alive"


def test_a_boot_that_fails_tells_and_says_why(machines):
    """RunInstances has answered by then; the instance goes off, and its console has the reason."""
    booted = machines.boot(disks=(replace(machines.disk("root", is_root=True), size_gib=0),))

    booted.wait_until_off()

    assert booted.exits == [booted.birth.instance_id]
    assert "[gpulab sandbox] the boot failed: `mkfs.ext4" in booted.machine.console()


def test_one_instance_has_one_machine(machines):
    """Two machines behind one id would share a disk and destroy it."""
    booted = machines.boot()

    with pytest.raises(CannotBoot, match="has a machine already"):
        machines.boot(instance_id=booted.birth.instance_id)
