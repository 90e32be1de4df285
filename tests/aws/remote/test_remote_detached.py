"""Tunnels without a terminal: started, found again, ended, and never mistaken for another process."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from gpulab.errors import Unreachable, WrongUsage
from gpulab.remote import detached

# What `gpulab open --detach` starts: announces itself and stays.
_PROGRAM = """
import sys, time
from pathlib import Path
from gpulab.remote import detached
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
print("connecting", flush=True)
detached.announce(folder, name="lab", instance_id="i-0123456789abcdef0", ports={8888: 20001}, log_file=log)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    """Where tunnels leave their files; nothing runs on after the test."""
    place = tmp_path / "tunnels"
    yield place
    detached.stop(place, "lab")


def open_one(folder: Path) -> detached.TunnelRecord:
    log = folder / "lab.log"
    return detached.start(
        [sys.executable, "-c", _PROGRAM, str(folder), str(log)],
        folder=folder,
        name="lab",
        log_file=log,
    )


def test_a_detached_tunnel_is_found_and_ended(folder):
    """`ls` shows it from any terminal, and `stop` ends it."""
    started = open_one(folder)

    found = detached.listing(folder)
    stopped = detached.stop(folder, "lab")

    assert (started,) == found
    assert started == stopped
    assert {8888: 20001} == started.ports
    assert () == detached.listing(folder)
    assert "connecting\n" == (folder / "lab.log").read_text()


def test_it_does_not_end_with_the_terminal(folder):
    """Closing the window sends a signal to everything in its session."""
    started = open_one(folder)

    assert os.getsid(started.pid) != os.getsid(0)


def test_its_files_are_private(folder):
    """Ports and names are nobody else's business."""
    open_one(folder)

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    assert {"lab.json": 0o600, "lab.log": 0o600} == modes


def test_one_name_has_one_tunnel(folder):
    """Two would fight for the port."""
    started = open_one(folder)

    with pytest.raises(WrongUsage) as error:
        open_one(folder)

    assert f"a tunnel to lab is already open (process {started.pid})" == error.value.message


def test_a_tunnel_that_fails_says_why(folder):
    """The reason is in a log that nobody would look for."""
    log = folder / "lab.log"

    with pytest.raises(Unreachable) as error:
        detached.start(
            [sys.executable, "-c", "import sys; sys.exit('no such instance')"],
            folder=folder,
            name="lab",
            log_file=log,
        )

    assert "the tunnel to lab ended: no such instance" == error.value.message
    assert f"See {log}" == error.value.hint


def test_a_tunnel_that_never_comes_up_is_ended(folder):
    """It must not come up an hour later, unasked."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    with pytest.raises(Unreachable) as error:
        detached.start(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            folder=folder,
            name="lab",
            log_file=folder / "lab.log",
            timeout_s=60,
            sleep=sleep,
            monotonic=lambda: now[0],
        )

    assert "the tunnel to lab did not come up within 60 s: no reason given" == error.value.message


def test_a_process_id_that_was_given_to_somebody_else_is_left_alone(folder):
    """After a restart of the computer the id belongs to another program."""
    folder.mkdir()
    record = {
        "version": 1,
        "name": "lab",
        "instance_id": "i-0123456789abcdef0",
        "pid": os.getpid(),
        "born": "1",
        "ports": {"8888": 20001},
        "log_file": "",
    }
    (folder / "lab.json").write_text(json.dumps(record))

    stopped = detached.stop(folder, "lab")

    assert stopped is None
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"version": 2}',
        '{"version": 1, "ports": {"a": 1}}',
        "\x00",
        "[" * 99999,
    ],
)
def test_a_damaged_file_is_as_good_as_none(folder, text):
    """A full disk leaves such files behind; `ls` must still work."""
    folder.mkdir()
    (folder / "lab.json").write_text(text)

    assert () == detached.listing(folder)


def test_a_tunnel_that_was_asked_to_end_can_see_it(folder):
    """On Windows a process without a console hears no signal; it looks for its file."""
    detached.announce(
        folder, name="lab", instance_id="i-0123456789abcdef0", ports={}, log_file=folder / "log"
    )
    before = detached.is_announced(folder, "lab")

    detached.withdraw(folder, "lab")

    assert (True, False) == (before, detached.is_announced(folder, "lab"))


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "."])
def test_a_name_is_never_a_path(folder, name):
    """The name becomes a file name."""
    with pytest.raises(WrongUsage):
        detached.find(folder, name)
