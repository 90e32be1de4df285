"""Who may log in to an instance: run by a real shell on a real file, on disks with and without room."""

from __future__ import annotations

import resource
import signal
import subprocess

import pytest

from gpulab.errors import CommandFailed
from gpulab.remote import authorized_keys
from gpulab.remote.process import Completed

TEACHER = "ssh-ed25519 AAAATEACHER teacher\n"
OURS = 'expiry-time="202611231700Z" ssh-ed25519 AAAASTUDENT gpulab\n'
LATER = 'expiry-time="202611231800Z" ssh-ed25519 AAAASTUDENT gpulab'


class Home:
    """
    A home folder whose shell runs here.

    Attributes:
        room: How many bytes a file may have there; `None` for any number.
    """

    def __init__(self, folder):
        self.folder, self.file, self.room = folder, folder / ".ssh" / "authorized_keys", None

    def run(self, command, **_):
        done = subprocess.run(
            command,
            env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            preexec_fn=self._limit,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(done.stderr.decode())
        return Completed(0, done.stdout, "")

    def _limit(self):
        # A write that does not fit fails with an error, as on a full disk, where an empty file can still be made.
        if self.room is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.room))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def let_in(home, line):
    authorized_keys.let_in(home, line, key="AAAASTUDENT", timeout_s=5)


def test_a_key_is_let_in_beside_those_that_were(home):
    """The teacher's key and the student's own stay; the same key's earlier line does not."""
    home.file.parent.mkdir()
    home.file.write_text(OURS + TEACHER)

    let_in(home, LATER)

    assert f"{TEACHER}{LATER}\n" == home.file.read_text()
    assert 0o600 == home.file.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, "", OURS], ids=["no file", "empty", "only the same key"])
def test_the_first_key_of_a_file_is_let_in(home, before):
    """No line but the new one: grep calls that a failure, and it is none."""
    if before is not None:
        home.file.parent.mkdir()
        home.file.write_text(before)

    let_in(home, LATER)

    assert f"{LATER}\n" == home.file.read_text()


@pytest.mark.parametrize("room", [0, len(TEACHER)], ids=["for nothing", "for the others' lines"])
def test_a_full_disk_shuts_nobody_out_and_is_told(home, room):
    """A student has filled the disk: whoever saves the work must still get in, and the ticket is not to be called ready."""
    home.file.parent.mkdir()
    home.file.write_text(TEACHER)
    home.room = room

    with pytest.raises(CommandFailed):
        let_in(home, LATER)

    assert TEACHER == home.file.read_text()
    assert [home.file] == list(home.file.parent.iterdir())


def test_only_ends_of_ours_are_moved_and_on_a_full_disk_none(home):
    """The lecture runs late; a student's own line with another option is theirs."""
    own = 'from="10.0.0.1" ssh-ed25519 AAAAOWN own\n'
    home.file.parent.mkdir()
    home.file.write_text(TEACHER + OURS + own)

    authorized_keys.move_ends(home, 'expiry-time="202611231800Z"', timeout_s=5)
    moved = home.file.read_text()
    home.room = 0
    with pytest.raises(CommandFailed):
        authorized_keys.move_ends(home, 'expiry-time="202611231900Z"', timeout_s=5)

    assert f"{TEACHER}{LATER}\n{own}" == moved
    assert moved == home.file.read_text()


def test_an_instance_without_the_file_has_no_ends_to_move(home):
    """It lets in by the console only; nothing is made there."""
    authorized_keys.move_ends(home, 'expiry-time="202611231800Z"', timeout_s=5)

    assert [] == list(home.folder.iterdir())
