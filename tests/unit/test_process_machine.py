"""Machines of kind `process` as the simulated EC2 uses them: really started, logged in to by ssh, ended in every way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpulab.sandbox.machines import Birth, Disk, LiveMetadata
from gpulab.sandbox.machines.process import ProcessKind, trees
from gpulab.sandbox.machines.process.disk import MARK
from gpulab.sandbox.machines.process.kind import ProcessMachine
from gpulab.sandbox.machines.process.remains import reap

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="machines of kind `process` need POSIX"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]
_PATIENCE_S = 30.0


def until(is_so: Callable[[], object]) -> bool:
    """Wait for something that other processes do."""
    limit = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Bench:
    """A kind with a key, and what its machines told at their end."""

    kind: ProcessKind
    folder: Path
    key: Path
    ended: list[str]

    def birth(self, name: str = "i-0a", **changes: object) -> Birth:
        """What EC2 would say of an instance."""
        birth = Birth(
            instance_id=name,
            account="123456789012",
            region="us-east-1",
            zone="us-east-1a",
            instance_type="g4dn.xlarge",
            image_id="ami-1",
            market="spot",
            private_address="10.0.0.5",
            public_address="54.210.1.2",
            public_key=self.key.with_suffix(".pub").read_text(),
            user_data=b"",
            tags={},
            launched_at=datetime(2026, 11, 23, tzinfo=UTC),
        )
        return replace(birth, **changes)

    def boot(self, name: str = "i-0a", **changes: object) -> ProcessMachine:
        """Start a machine and wait until its ssh server listens."""
        machine = self.kind.boot(self.birth(name, **changes), on_exit=self.ended.append)
        assert until(lambda: machine.door), machine.console()
        return machine

    def ssh(
        self, machine: ProcessMachine, *command: str, key: Path | None = None, user: str = "ubuntu"
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command by the system's ssh, with the host key pinned from the console."""
        return subprocess.run(
            [*self.argv(machine, key=key), f"{user}@127.0.0.1", *command],
            capture_output=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def argv(self, machine: ProcessMachine, key: Path | None = None) -> list[str]:
        """The start of an ssh command line."""
        line = next(x for x in machine.console().splitlines() if x.startswith("ssh-ed25519 "))
        known = self.folder / "known_hosts"
        known.write_text(f"box {line}\n")
        assert machine.door is not None
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": "box",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(key or self.key), "-p", str(machine.door[1]), *flags]


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    key = new_key(tmp_path / "key")
    bench = Bench(ProcessKind(tmp_path / "kind", host=os.environ, grace_s=1.0), tmp_path, key, [])
    yield bench
    bench.kind.close()


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def alive(machine: ProcessMachine) -> set[int]:
    return trees.marked(MARK, str(machine.disk.root).__eq__)


def test_a_command_runs_in_the_machines_own_world(bench):
    """What a student runs over ssh sees the machine's home and metadata; its exit code comes back."""
    machine = bench.boot()

    done = bench.ssh(machine, "pwd; hostname; echo $AWS_EC2_METADATA_SERVICE_ENDPOINT; exit 7")

    home, hostname, metadata = done.stdout.decode().splitlines()
    assert (7, str(machine.disk.home), "ip-10-0-0-5") == (done.returncode, home, hostname)
    assert metadata.startswith("http://127.0.0.1:")


def test_only_the_instances_key_and_user_log_in(bench):
    """A simulator that let anyone in would hide a wrong key until it is a real instance."""
    machine = bench.boot()
    stranger = new_key(bench.folder / "stranger")

    refusals = [
        bench.ssh(machine, "true", key=stranger),
        bench.ssh(machine, "true", user="root"),
    ]

    assert [255, 255] == [r.returncode for r in refusals]
    assert all(b"Permission denied (publickey)" in r.stderr for r in refusals)


def test_a_wrong_host_key_is_noticed(bench):
    """Each machine has a key of its own; pinning the first one's must fail on the second."""
    first, second = bench.boot("i-0a"), bench.boot("i-0b")
    argv = bench.argv(first)
    argv[argv.index("-p") + 1] = str(second.door[1])

    done = subprocess.run([*argv, "ubuntu@127.0.0.1", "true"], capture_output=True, check=False)

    assert 255 == done.returncode
    assert b"Host key verification failed" in done.stderr


def test_many_bytes_pass_both_ways_unchanged(bench):
    """Push and pull are a tar stream through a command; a lost last piece is a broken copy."""
    machine = bench.boot()
    sent = os.urandom(6_000_000)

    done = subprocess.run(
        [*bench.argv(machine), "ubuntu@127.0.0.1", "cat"],
        input=sent,
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (0, True) == (done.returncode, sent == done.stdout)


def test_a_terminal_is_a_real_one_that_wall_reaches(bench):
    """Warnings before the end are written to the terminals that are logged in."""
    machine = bench.boot()

    done = subprocess.run(
        [*bench.argv(machine), "-tt", "ubuntu@127.0.0.1"],
        input=b"tty; who; wall ending soon\nexit 4\n",
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert 4 == done.returncode
    assert b"/dev/" in done.stdout
    assert b"ending soon" in done.stdout.split(b"Broadcast message")[1]


@pytest.mark.parametrize("port", [8888, 8889])
def test_a_forward_reaches_the_machine_and_not_the_host(bench, port):
    """Port 8888 of the machine is where its agent says; a port of the host's own is closed to it."""
    machine = bench.boot()
    inside, outside = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    ports = {8888: inside, 8889: outside}
    machine.disk.ports.write_text(json.dumps({"8888": inside.getsockname()[1]}))
    wanted = 8888 if port == 8888 else outside.getsockname()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    argv = [*bench.argv(machine), "-N", "-L", f"127.0.0.1:{local}:127.0.0.1:{wanted}"]
    tunnel = subprocess.Popen([*argv, "ubuntu@127.0.0.1"], stderr=subprocess.PIPE)

    assert until(lambda: _answers(local))
    ports[port].settimeout(1.0)
    try:
        ports[port].accept()
        was_reached = True
    except TimeoutError:
        was_reached = False

    tunnel.kill()
    _, errors = tunnel.communicate()
    assert (port == 8888) is was_reached
    assert (port != 8888) is (b"Connection refused" in errors)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_power_off_from_inside_ends_everything_and_is_told(bench):
    """The scheduled end of an instance is a `poweroff` inside; EC2 then terminates it."""
    machine = bench.boot()
    bench.ssh(machine, "setsid nohup sleep 300 >/dev/null 2>&1 & true")

    bench.ssh(machine, "sudo shutdown -h now")

    assert until(lambda: bench.ended)
    assert (["i-0a"], set(), None) == (bench.ended, alive(machine), machine.door)


def test_a_program_that_does_not_listen_is_killed_at_power_off(bench):
    """A stuck notebook must not keep an instance alive, and its bill."""
    machine = bench.boot()
    bench.ssh(
        machine,
        "trap '' TERM HUP; setsid sh -c \"trap '' TERM; sleep 300; sleep 300\" >/dev/null 2>&1 & true",
    )

    machine.power_off()

    assert until(lambda: bench.ended)
    assert set() == alive(machine)


def test_a_hard_cut_leaves_no_process(bench):
    """After a spot interruption nothing of the machine runs on; a daemon's daemon neither."""
    machine = bench.boot()
    bench.ssh(
        machine,
        "(setsid nohup sleep 300 &) >/dev/null 2>&1; env -i /bin/sh -c 'setsid sleep 301 &' >/dev/null 2>&1",
    )
    first = int(machine.disk.init_pid.read_text())
    family = trees.descendants(first)

    machine.cut()

    assert until(lambda: bench.ended)
    assert 3 == len(family)
    assert set() == {pid for pid in family if trees.started_at(pid)}


def test_a_stopped_instance_starts_again_with_its_disk_and_key(bench):
    """Stop and start keep the root volume and the host key, so a pinned key stays right."""
    machine = bench.boot()
    bench.ssh(machine, "echo kept > work/note")
    before = machine.disk.host_key.read_bytes()
    machine.power_off()
    assert until(lambda: bench.ended)

    machine.power_on()

    assert until(lambda: machine.door)
    done = bench.ssh(machine, "cat work/note")
    assert (b"kept\n", before) == (done.stdout, machine.disk.host_key.read_bytes())


def test_reboot_keeps_the_machine_on(bench):
    """A reboot ends no instance."""
    machine = bench.boot()
    door = machine.door

    bench.ssh(machine, "sudo reboot")

    assert until(lambda: machine.door not in (None, door))
    assert (0, []) == (bench.ssh(machine, "true").returncode, bench.ended)


def test_a_scheduled_shutdown_comes(bench):
    """The backstop timer of the agent is such a one."""
    machine = bench.boot()
    at = int(time.time() * 1_000_000)
    file = machine.disk.scheduled_shutdown
    file.parent.mkdir(parents=True)
    file.write_text(f"USEC={at}\nMODE=poweroff\n")

    os.kill(int(machine.disk.init_pid.read_text()), signal.SIGHUP)

    assert until(lambda: bench.ended)
    assert ["i-0a"] == bench.ended


def test_the_machine_reads_its_metadata_and_a_notice(bench):
    """The agent learns of an interruption there, with session tokens as on EC2."""
    machine = bench.boot()
    machine.publish(LiveMetadata(notice={"action": "terminate", "time": "2026-11-23T00:02:00Z"}))
    program = (
        "import os,urllib.request as u;b=os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT'];"
        "t=u.urlopen(u.Request(b+'/latest/api/token',method='PUT',headers={'X-aws-ec2-metadata-token-ttl-seconds':'60'})).read().decode();"
        "print(u.urlopen(u.Request(b+'/latest/meta-data/spot/instance-action',headers={'X-aws-ec2-metadata-token':t})).read().decode())"
    )

    done = bench.ssh(machine, f'{sys.executable} -c "{program}"')

    assert {"action": "terminate", "time": "2026-11-23T00:02:00Z"} == json.loads(done.stdout)


def test_the_agent_of_the_user_data_is_armed_and_kept_running(bench):
    """What gpulab renders is started in its order; a watcher that dies is started again."""
    agent = (
        "import os,sys,time\n"
        "root,word=sys.argv[2],sys.argv[3]\n"
        "open(root+'/var/log/words','a').write(word+' '+str(os.path.exists(root+'/run/sandbox/ssh.port'))+'\\n')\n"
        "sys.exit(0 if word!='watch' else 1)\n"
    )
    files = [{"path": "/usr/local/bin/gpulab-agent", "content": agent, "permissions": "0755"}]
    user_data = b"#cloud-config\n" + json.dumps({"write_files": files}).encode()

    machine = bench.boot(user_data=user_data)

    log = machine.disk.root / "var/log/words"
    assert until(lambda: log.exists() and log.read_text().count("watch") >= 2)
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert ("arm", ["setup", "watch"]) == (words[0], sorted(words[1:3]))
    assert "watch ended with code 1; started again in 2 s" in machine.console()


def test_a_volume_outlives_its_machine_unless_it_goes_with_it(bench):
    """EC2 keeps a volume that is not deleted on termination."""
    data = Disk("vol-1", "/dev/sdf", 20, is_root=False, delete_on_termination=False)
    scratch = Disk("vol-2", "/dev/sdg", 20, is_root=False, delete_on_termination=True)
    machine = bench.boot(disks=(data, scratch))
    bench.ssh(machine, "echo a > $GPULAB_ROOT/mnt/sdf/file; echo b > $GPULAB_ROOT/mnt/sdg/file")

    machine.discard()

    volumes = bench.folder / "kind/volumes"
    assert until(lambda: not machine.disk.root.exists())
    assert (True, False) == ((volumes / "vol-1/file").exists(), (volumes / "vol-2").exists())


def test_closing_the_kind_ends_every_machine_and_removes_their_folders(bench):
    """`gpulab sandbox stop` leaves nothing behind."""
    machines = [bench.boot("i-0a"), bench.boot("i-0b")]

    bench.kind.close()

    assert [] == list((bench.folder / "kind/machines").iterdir())
    assert [set(), set()] == [alive(m) for m in machines]


# What a killed sandbox leaves: run as a program of its own, so that it can be killed.
_KILLED = """
import os, sys
from pathlib import Path
from datetime import datetime, UTC
from gpulab.sandbox.machines import Birth
from gpulab.sandbox.machines.process import ProcessKind
kind = ProcessKind(Path(sys.argv[1]), host=os.environ)
kind.boot(Birth("i-0a", "1", "us-east-1", "us-east-1a", "t3.micro", "ami-1", "spot", "10.0.0.5", "", "", b"", {},
    datetime.now(UTC)), on_exit=print)
sys.stdin.read()
"""


def test_machines_die_with_a_sandbox_that_is_killed(bench):
    """Without this, `kill -9` of the server would leave ssh servers and notebooks on the laptop for ever."""
    folder = bench.folder / "killed"
    server = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder)], stdin=subprocess.PIPE)
    port = folder / "machines/i-0a/disk/run/sandbox/ssh.port"
    assert until(port.exists)
    disk = str(folder / "machines/i-0a/disk")

    server.kill()
    server.communicate()

    assert until(lambda: not trees.marked(MARK, disk.__eq__))
    assert (("i-0a",), ()) == (reap(folder), reap(folder))


def test_what_survived_even_that_is_reaped_at_the_next_start(bench):
    """If the machine's first process was killed as well, its children are found by their mark."""
    disk = bench.folder / "kind/machines/i-0c/disk"
    disk.mkdir(parents=True)
    orphan = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK: str(disk)})
    waiter = threading.Thread(target=orphan.wait)
    waiter.start()

    found = reap(bench.folder / "kind")

    waiter.join(_PATIENCE_S)
    assert (("i-0c",), -signal.SIGKILL) == (found, orphan.returncode)


def test_a_number_that_means_another_process_now_is_spared(bench):
    """After a restart of the laptop a recorded number belongs to somebody else."""
    machine = bench.folder / "kind/machines/i-0d"
    machine.mkdir(parents=True)
    stranger = subprocess.Popen(["sleep", "300"])
    record = {"pid": stranger.pid, "started": "another boot:1"}
    (machine / "machine.json").write_text(json.dumps(record))

    reap(bench.folder / "kind")

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
