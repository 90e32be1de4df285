"""Between laptop and instance: an impostor in the middle of a lab, what an instance may ask of a laptop, and what its own sshd opens."""

from __future__ import annotations

import getpass
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpulab.errors import HostKeyMismatch
from gpulab.remote import hostkeys, ports, tunnel
from gpulab.remote.host import Host
from gpulab.remote.keys import make_key_pair

_CONF = Path(__file__).parents[1] / "remote" / "conftest.py"
_spec = importlib.util.spec_from_file_location("remote_conftest", _CONF)
remote = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(remote)
sshd = remote.sshd

OURS = Path(__file__).parents[3] / "cloud-init" / "ssh" / "10-gpulab.conf"


@pytest.fixture
def page():
    """Something that answers on a port of the instance, as JupyterLab does; keeps what it was sent."""
    listening = socket.create_server(("127.0.0.1", 0))
    yield listening
    listening.close()


def impostor(sshd):
    """Another machine takes over the address: same port, another host key."""
    sshd.stop()
    sshd.host_key_file.unlink()
    make_key_pair(sshd.host_key_file)
    sshd.start()


def plain_ssh(sshd, *options, command="true"):
    """The system's ssh as many tools call it: whatever key is shown is fine."""
    words = ["ssh", "-F", "none", "-i", str(sshd.user_key_file), "-p", str(sshd.port)]
    careless = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    words += [word for option in careless for word in ("-o", option)]
    words += [*options, f"{getpass.getuser()}@127.0.0.1", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def test_a_key_swapped_in_the_middle_of_a_lab_ends_the_tunnel(sshd, page):
    """The instance's address is given to somebody else, or the campus network lies: nothing is sent there, not even a request that waits."""
    refused = []
    with tunnel.running(sshd.target(), ports.listen("week4", [page.getsockname()[1]])) as through:
        through.wait_connected(30)
        impostor(sshd)
        with pytest.raises(HostKeyMismatch) as error:
            through.wait_ended(60)
        refused.append(error.value.message)

    assert 0 == plain_ssh(sshd).returncode
    assert "is not i-0123456789abcdef0" in refused[0]
    assert sshd.host_key.fingerprint in refused[0]


def test_a_copy_to_an_impostor_sends_nothing(sshd, tmp_path):
    """`push` holds a student's work; a wrong machine gets none of it."""
    (tmp_path / "got").mkdir()
    impostor(sshd)

    weak = plain_ssh(sshd, command=f"touch {tmp_path}/got/weak")
    with pytest.raises(HostKeyMismatch):
        Host(sshd.target()).run(["touch", f"{tmp_path}/got/ours"])

    assert 0 == weak.returncode
    assert ["weak"] == [path.name for path in (tmp_path / "got").iterdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="only on Windows: its ssh has no agent socket")
def test_nothing_of_the_users_own_ssh_settings_reaches_the_instance(sshd, tmp_path, monkeypatch):
    """`ForwardAgent yes` in ~/.ssh/config would lend every key of the laptop to whatever notebook runs there."""
    settings = tmp_path / "config"
    settings.write_text("Host *\n ForwardAgent yes\n SetEnv GPULAB_LEAK=1\n")
    agent = tmp_path / "agent"
    began = subprocess.run(
        ["ssh-agent", "-s", "-a", str(agent)], capture_output=True, text=True, check=True
    )
    pid = int(began.stdout.split("SSH_AGENT_PID=")[1].split(";")[0])
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    look = ["sh", "-c", 'echo "${SSH_AUTH_SOCK:-no agent}"']

    try:
        weak = plain_ssh(sshd, "-F", str(settings), command='echo "${SSH_AUTH_SOCK:-no agent}"')
        ours = Host(sshd.target()).run(look).text
    finally:
        os.kill(pid, 15)

    assert "no agent\n" == ours
    assert "no agent" not in weak.stdout


def test_keys_in_the_laptops_environment_stay_there(serving, monkeypatch):
    """AWS keys are often variables; an instance that accepts any variable gets none from us."""
    server = serving("AcceptEnv *\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    look = "echo ${AWS_SECRET_ACCESS_KEY:-nothing}"

    weak = plain_ssh(server, "-o", "SendEnv=AWS_*", command=look).stdout
    ours = Host(server.target()).run(["sh", "-c", look]).text

    assert ("s3cret\n", "nothing\n") == (weak, ours)


class Configured(remote.Sshd):
    """An sshd with the lines that user data puts on an instance in front of its own."""

    first = ""

    def _settings(self):
        own = [
            line
            for line in super()._settings().splitlines()
            if not line.strip().startswith(("AllowTcpForwarding", "X11"))
        ]
        return self.first + "\n".join(own)


@pytest.fixture
def serving(sshd, tmp_path):
    """Start an sshd with these lines, which the first word of decides."""
    made = []

    def start(first):
        folder = tmp_path / f"configured-{len(made)}"
        folder.mkdir(mode=0o700)
        kind = type("One", (Configured,), {"first": first})
        server = kind(folder)
        server.start()
        hostkeys.pin(folder / "known_hosts", remote.INSTANCE_ID, [server.host_key])
        made.append(server)
        return server

    yield start
    for server in made:
        server.stop()


def test_the_instances_sshd_forwards_only_towards_itself(serving, page):
    """
    A forward back (-R) would put a listener of the instance's choice before the laptop's network, and an agent would lend keys.

    Forwards to the instance stay open to whoever holds the key: that person has a shell there anyway.
    """
    port = page.getsockname()[1]
    first = "\n".join(
        line for line in OURS.read_text().splitlines() if "PermitRootLogin" not in line
    )
    weak, ours = serving("AllowTcpForwarding yes\n"), serving(first + "\n")
    back = ("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:0:127.0.0.1:{port}")

    said = {
        "weak back": plain_ssh(weak, *back).returncode == 0,
        "ours back": plain_ssh(ours, *back).returncode == 0,
        "ours shell": plain_ssh(ours).returncode == 0,
    }

    assert {"weak back": True, "ours back": False, "ours shell": True} == said


def test_ours_logs_in_no_root_and_takes_no_password(serving):
    """A guessed password is the commonest way in; there is none to guess."""
    wanted = {
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitrootlogin": "no",
        "allowagentforwarding": "no",
        "x11forwarding": "no",
        "allowtcpforwarding": "local",
    }
    server = serving(OURS.read_text())

    program = ["/usr/sbin/sshd", "-T", "-f", str(server._config)]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout

    found = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert wanted == {name: found[name] for name in wanted}


def test_the_tunnels_ports_listen_on_this_computer_only():
    """Whoever sits in the same room must not reach a student's notebook through the student's laptop."""
    taken = ports.listen("week4", [8888, 6006])
    try:
        addresses = {end.getsockname()[0] for end in taken.values()}
    finally:
        for end in taken.values():
            end.close()

    assert {"127.0.0.1"} == addresses
