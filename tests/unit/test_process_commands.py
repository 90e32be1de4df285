"""`shutdown`, `poweroff` and their like on a machine of kind `process`: they reach the machine and never the host."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from gpulab.sandbox.machines.process import commands
from gpulab.sandbox.machines.process.disk import Disk, environment_inside, format_disk

NOW = 1_795_400_000.0


@pytest.fixture
def root(tmp_path):
    """A machine that is off: no process could get a signal."""
    disk = Disk(tmp_path / "disk")
    format_disk(disk, hostname="ip-10-0-0-1")
    return disk.root


@pytest.fixture
def first(root):
    """Something that stands for the machine's first process and ends with the signal it gets."""
    # Under `nohup` a child would inherit a deaf ear for SIGHUP.
    process = subprocess.Popen(
        ["sleep", "60"], preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    )
    (root / "run/sandbox/init.pid").write_text(str(process.pid))
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("name", "arguments", "number"),
    [
        ("poweroff", [], signal.SIGTERM),
        ("halt", [], signal.SIGTERM),
        ("reboot", [], signal.SIGUSR1),
        ("systemctl", ["--no-block", "poweroff"], signal.SIGTERM),
        ("shutdown", ["-h", "now"], signal.SIGTERM),
        ("shutdown", ["-r", "+0"], signal.SIGUSR1),
    ],
)
def test_power_commands_tell_the_first_process(root, first, name, arguments, number):
    """The agent and the student end a machine by these words; only this machine ends."""
    code = commands.main(root, name, arguments, now=NOW)

    assert (0, -number) == (code, first.wait(timeout=10))


def test_a_later_shutdown_is_written_down_as_systemd_does(root, first):
    """Tools look into that file, and the machine's first process acts on it."""
    code = commands.main(root, "shutdown", ["-P", "+5", "good night"], now=NOW)

    text = (root / "run/systemd/shutdown/scheduled").read_text()
    expected = f"USEC={int((NOW + 300) * 1_000_000)}\nWARN_WALL=1\nMODE=poweroff\n"
    assert (0, expected, -signal.SIGHUP) == (code, text, first.wait(timeout=10))


def test_a_shutdown_can_be_called_off(root, first):
    """`extend` on a real machine does the same."""
    file = root / "run/systemd/shutdown/scheduled"
    file.parent.mkdir(parents=True)
    file.write_text("USEC=1\nMODE=poweroff\n")

    code = commands.main(root, "shutdown", ["-c"], now=NOW)

    assert (0, False) == (code, file.exists())


def test_a_clock_time_that_has_passed_is_tomorrow(root, first):
    """As `shutdown` has it."""
    at = time.strftime("%H:%M", time.localtime(NOW - 3600))

    commands.main(root, "shutdown", [at], now=NOW)

    usec = int((root / "run/systemd/shutdown/scheduled").read_text().split("\n")[0][5:])
    assert 22 * 3600 < usec / 1_000_000 - NOW <= 23 * 3600


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("poweroff", [], "the machine is off"),
        ("shutdown", ["whenever"], "not a time: whenever"),
        ("systemctl", ["start", "nginx"], "there is no systemd"),
    ],
)
def test_what_cannot_be_done_is_said(root, capsys, name, arguments, words):
    """A plain sentence, not a traceback, and never a command of the host instead."""
    code = commands.main(root, name, arguments, now=NOW)

    assert 1 == code
    assert words in capsys.readouterr().err


def test_the_machine_sees_little_of_the_host(tmp_path):
    """Real credentials and Jupyter settings must not leak in; caches and certificates must."""
    disk = Disk(tmp_path)
    host = {
        "HOME": "/home/me",
        "PATH": "/usr/bin",
        "AWS_SECRET_ACCESS_KEY": "real",
        "JUPYTER_TOKEN": "x",
        "GPULAB_HOME": "/home/me/.gpulab",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "UV_INDEX_URL": "https://index.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/ca.pem",
        "https_proxy": "http://proxy:3128",
    }

    inside = environment_inside(disk, host, metadata_url="http://127.0.0.1:1")

    assert {"AWS_EC2_METADATA_SERVICE_ENDPOINT"} == {n for n in inside if n.startswith("AWS_")}
    assert not {"JUPYTER_TOKEN", "GPULAB_HOME", "SSH_AUTH_SOCK"} & set(inside)
    assert "/home/me/.cache/uv" == inside["UV_CACHE_DIR"]
    assert ("https://index.example/simple", "/etc/ssl/ca.pem", "http://proxy:3128") == (
        inside["UV_INDEX_URL"],
        inside["SSL_CERT_FILE"],
        inside["https_proxy"],
    )
    assert inside["PATH"].startswith(f"{tmp_path}/usr/local/sbin:{tmp_path}/usr/local/bin:/usr/bin")


def test_a_restart_clears_what_lives_in_memory(root):
    """A process number from before the restart would name a stranger after it."""
    stale = root / "run/gpulab/end.pid"
    stale.write_text("4711")
    kept = root / "var/lib/gpulab.json"
    kept.write_text("{}")

    format_disk(Disk(root), hostname="ip-10-0-0-1")

    assert (False, True) == (stale.exists(), kept.exists())
