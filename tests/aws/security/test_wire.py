"""Between laptop and instance: an impostor in the middle of a lab, what an instance may ask of a laptop, and what its own sshd opens."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpulab.cli.main import run
from gpulab.errors import GpulabError, HostKeyMismatch
from gpulab.launch.running import instances
from gpulab.remote import hostkeys, paramiko_host, ports, rsync, tunnel
from gpulab.remote.host import Host
from gpulab.remote.keys import make_key_pair

_CONF = Path(__file__).parents[1] / "remote" / "conftest.py"
_spec = importlib.util.spec_from_file_location("remote_conftest", _CONF)
remote = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(remote)
sshd = remote.sshd

OURS = Path(__file__).parents[3] / "cloud-init" / "ssh" / "10-gpulab.conf"


class Page:
    """Something that answers on a port of the instance, as JupyterLab does; keeps what it was sent."""

    def __init__(self, address="127.0.0.1"):
        self.listening = socket.create_server((address, 0))
        self.port = self.listening.getsockname()[1]
        self.sent = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            with client:
                self.sent += client.recv(1 << 16)
                client.sendall(b"hello")


@pytest.fixture
def page():
    """A page on the instance's loopback."""
    one = Page()
    yield one
    one.listening.close()


def impostor(sshd, *, meanwhile=lambda: None):
    """Another machine takes over the address: same port, another host key."""
    sshd.stop()
    meanwhile()
    sshd.host_key_file.unlink()
    make_key_pair(sshd.host_key_file)
    sshd.start()


def plain_ssh(sshd, *options, command="true", given=""):
    """The system's ssh as many tools call it: whatever key is shown is fine."""
    words = ["ssh", "-F", "none", "-i", str(sshd.user_key_file), "-p", str(sshd.port)]
    careless = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    words += [word for option in careless for word in ("-o", option)]
    words += [*options, f"{getpass.getuser()}@127.0.0.1", *([command] if command else [])]
    return subprocess.run(
        words, input=given, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_key_swapped_in_the_middle_of_a_lab_ends_the_tunnel(sshd, page):
    """The instance's address is given to somebody else, or the campus network lies: nothing is sent there, not even a request that waits."""
    request = "GET /api/contents?token=s3cret HTTP/1.1\r\n\r\n"
    waiting = []

    def ask():
        waiting.append(socket.create_connection(("127.0.0.1", through.ports[page.port]), 30))
        waiting[0].sendall(request.encode())

    with tunnel.running(sshd.target(), ports.listen("week4", [page.port])) as through:
        through.wait_connected(30)
        impostor(sshd, meanwhile=ask)
        with pytest.raises(HostKeyMismatch) as error:
            through.wait_ended(60)
    with waiting[0] as client:
        answered = _rest_of(client)
    ours = page.sent
    plain_ssh(sshd, "-W", f"127.0.0.1:{page.port}", command=None, given=request)

    assert (b"", request) == (ours, page.sent.decode())
    assert b"hello" not in answered
    assert "is not i-0123456789abcdef0" in error.value.message
    assert sshd.host_key.fingerprint in error.value.message


def _rest_of(client):
    try:
        return client.recv(1 << 16)
    except ConnectionError:
        return b""


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


# Stands between ssh and the instance, says what it was given, and goes nowhere.
WITNESS = "import os, sys; open(sys.argv[1], 'a').write(' '.join(sorted(os.environ)))"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def by_ssh(target, folder):
    Host(target).run(["true"])


def by_paramiko(target, folder):
    paramiko_host._socket(target).process.wait()  # a login would wait 10 s for a banner


def by_rsync(target, folder):
    (folder / "a").write_text("work")
    rsync.send(Host(target), folder, "work", ["a"])


def by_tunnel(target, folder):
    with tunnel.running(target, ports.listen("week4", [8888])) as through:
        remote.wait_for((folder / "seen").exists)
        through.wait_connected(0)


def by_gpulab_ssh(target, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "find", lambda context, name: None)
        patch.setattr(instances, "host", lambda context, found: Host(target))
        run(["ssh", "week4", "--", "true"])


@pytest.mark.skipif(sys.platform == "win32", reason="only on Windows: ssh is not told by $SHELL")
@pytest.mark.parametrize("way", [by_ssh, by_paramiko, by_rsync, by_tunnel, by_gpulab_ssh])
def test_what_leads_to_an_instance_has_no_keys_in_its_environment(
    way, sshd, tmp_path, monkeypatch, capfd
):
    """Any process of the same user reads the environment of another, and a proxy command is a program of somebody else."""
    seen = tmp_path / "seen"
    for key in KEYS:
        monkeypatch.setenv(key, "s3cret")
    monkeypatch.setenv("AWS_PROFILE", "course")
    witness = (sys.executable, "-c", WITNESS, str(seen))

    subprocess.run(
        ["ssh", "-o", f"ProxyCommand={shlex.join(witness)}", "127.0.0.1"],
        capture_output=True,
        check=False,
    )
    weak = {*seen.read_text().split()}
    seen.unlink()
    with contextlib.suppress(GpulabError, TimeoutError):
        way(sshd.target(proxy_command=witness), tmp_path)
    ours = {*seen.read_text().split()}

    assert {*KEYS} <= weak
    assert {"AWS_PROFILE", "HOME", "PATH"} <= ours
    assert set() == {*KEYS} & ours


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


@pytest.fixture
def elsewhere():
    """A machine of the account's network, which the instance reaches and the laptop does not: this computer under another address."""
    try:
        one = Page("127.0.0.2")
    except OSError:
        pytest.skip("this computer has one loopback address only, as macOS does")
    yield one
    one.listening.close()


def ours_but_for_root():
    """The lines of the instances' sshd; these tests may run as root, which it logs in never."""
    lines = OURS.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if "PermitRootLogin" not in line)


def test_the_instances_sshd_lends_no_way_back(serving, page):
    """A forward back (-R) would put a listener of the instance's choice before the laptop's network."""
    weak, ours = serving("AllowTcpForwarding yes\n"), serving(ours_but_for_root())
    back = ("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:0:127.0.0.1:{page.port}")

    said = {
        "weak back": plain_ssh(weak, *back).returncode == 0,
        "ours back": plain_ssh(ours, *back).returncode == 0,
        "ours shell": plain_ssh(ours).returncode == 0,
    }

    assert {"weak back": True, "ours back": False, "ours shell": True} == said


def test_the_instances_sshd_leads_nowhere_but_to_itself(serving, page, elsewhere):
    """
    What the network of the account shows the instance, other students' machines say, is not one `ssh -W` away from a laptop.

    Whoever holds the key has a shell there, and reaches it from that; forwards to the instance's own ports stay open to them.
    """
    weak, ours = serving("AllowTcpForwarding local\n"), serving(ours_but_for_root())

    def asked(server, host, port):
        return plain_ssh(server, "-W", f"{host}:{port}", command=None, given="hi").stdout

    found = {
        "weak elsewhere": asked(weak, "127.0.0.2", elsewhere.port),
        "ours elsewhere": asked(ours, "127.0.0.2", elsewhere.port),
        "ours itself": asked(ours, "127.0.0.1", page.port),
        "ours by name": asked(ours, "localhost", page.port),
    }

    reached = {"weak elsewhere": "hello", "ours itself": "hello", "ours by name": "hello"}
    assert {**reached, "ours elsewhere": ""} == found


def test_ours_logs_in_no_root_and_takes_no_password(serving):
    """A guessed password is the commonest way in; there is none to guess."""
    wanted = {
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitrootlogin": "no",
        "allowagentforwarding": "no",
        "x11forwarding": "no",
        "allowtcpforwarding": "local",
        "permitopen": "127.0.0.1:* localhost:* [::1]:*",
    }
    careless = (
        "PasswordAuthentication",
        "KbdInteractiveAuthentication",
        "PermitRootLogin",
        "X11Forwarding",
    )
    weak = _settings(serving("".join(f"{name} yes\n" for name in careless)))

    ours = _settings(serving(OURS.read_text()))

    assert {"yes"} == {weak[name.lower()] for name in careless}
    # Not one of these is what an sshd does by itself or under these lines, so none is held by chance.
    assert {} == {name: value for name, value in wanted.items() if weak[name] == value}
    assert wanted == {name: ours[name] for name in wanted}


def _settings(server):
    """What an sshd says that it goes by."""
    program = ["/usr/sbin/sshd", "-T", "-f", str(server._config)]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_the_tunnels_ports_listen_on_this_computer_only():
    """Whoever sits in the same room must not reach a student's notebook through the student's laptop: a port of every address lets them in."""
    with socket.create_server(("0.0.0.0", 0)) as careless:  # noqa: S104 - the weak set-up
        weak = _is_answered("127.0.0.2", careless.getsockname()[1])
    taken = ports.listen("week4", [8888, 6006])
    try:
        numbers = [end.getsockname()[1] for end in taken.values()]
        addresses = {end.getsockname()[0] for end in taken.values()}
        others = [_is_answered("127.0.0.2", number) for number in numbers]
        own = [_is_answered("127.0.0.1", number) for number in numbers]
    finally:
        for end in taken.values():
            end.close()

    assert weak
    assert ({"127.0.0.1"}, [False, False], [True, True]) == (addresses, others, own)


def _is_answered(address, port):
    """Whether a connection to another address of this computer than the tunnel's is taken."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True
