"""Copying work over a real sshd: nothing lost, nothing half done, nothing left behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gpulab.errors import CommandFailed, StoreError, Unreachable, UnsafeArchive, WrongUsage
from gpulab.remote import copying, manifest, rsync
from gpulab.remote.copying import pull, push, verify
from gpulab.remote.host import Host
from gpulab.remote.manifest import Skipped
from gpulab.remote.openssh import OpenSsh
from gpulab.remote.paramiko_host import Paramiko


@pytest.fixture
def work(tmp_path):
    """A small folder of work with awkward names."""
    folder = tmp_path / "here"
    (folder / "week 4" / "ünder").mkdir(parents=True)
    (folder / "lab.ipynb").write_text('{"cells": []}')
    (folder / "week 4" / "it's $HOME.py").write_text("print(1)\n")
    (folder / "week 4" / "ünder" / "empty").write_text("")
    (folder / "big.bin").write_bytes(os.urandom(3 << 20))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*gpulab*")]


def test_a_pull_clears_what_a_killed_one_left(sshd, work, tmp_path, monkeypatch):
    """Half of somebody's work would lie hidden beside the whole of it for ever."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = tmp_path / f".gpulab-copy-{int(gone.stdout)}-abcdefgh"
    left.mkdir()
    monkeypatch.setattr("gpulab.remote.leftovers._OLD_S", -1)

    pull(Host(sshd.target(), starter=OpenSsh("ssh")), str(work), tmp_path / "back")

    assert [] == leftovers(tmp_path)


@pytest.mark.parametrize("is_new", [True, False])
def test_what_comes_back_is_its_owners_alone(sshd, work, tmp_path, is_new):
    """On a shared computer the others would read the work: files have the instance's 0644 there, and a umask may take nothing."""
    back, before = tmp_path / "back", os.umask(0)
    if not is_new:
        back.mkdir(mode=0o755)
    try:
        pull(Host(sshd.target(), starter=OpenSsh("ssh")), str(work), back)
    finally:
        os.umask(before)

    assert 0o755 == (work / "run.sh").stat().st_mode & 0o777
    modes = {p.relative_to(back).as_posix(): p.stat().st_mode & 0o777 for p in back.rglob("*")}
    assert {
        "lab.ipynb": 0o600,
        "big.bin": 0o600,
        "run.sh": 0o700,
        "week 4": 0o700,
        "week 4/it's $HOME.py": 0o600,
        "week 4/ünder": 0o700,
        "week 4/ünder/empty": 0o600,
    } == modes


@pytest.mark.parametrize("starter", [OpenSsh("ssh"), Paramiko()], ids=["ssh", "paramiko"])
def test_work_comes_back_as_it_went(sshd, work, tmp_path, starter):
    """Push and pull are how work outlives a spot instance."""
    host = Host(sshd.target(), starter=starter)

    pushed = push(host, work, str(tmp_path / "there"))
    pulled = pull(host, str(tmp_path / "there"), tmp_path / "back")

    assert contents(work) == contents(tmp_path / "there") == contents(tmp_path / "back")
    assert (5, 5, "tar") == (pushed.files, pushed.verified_files, pushed.way)
    assert pushed.verified_sha256 == pulled.verified_sha256
    assert os.access(tmp_path / "back" / "run.sh", os.X_OK)
    assert (work / "big.bin").stat().st_mtime_ns == (
        tmp_path / "back" / "big.bin"
    ).stat().st_mtime_ns
    assert [] == leftovers(tmp_path)


@pytest.mark.parametrize("by", ["tar", "rsync"])
def test_only_what_has_changed_is_copied_again(host, work, tmp_path, by):
    """A second `push` over a slow line must not take as long as the first."""
    if by == "rsync" and not rsync.is_usable(host, manifest.read_remote(host, str(tmp_path))):
        pytest.skip("needs rsync 3.4 or newer")
    starter = host.starter if by == "rsync" else _WithoutRsync(host.starter)
    there, back = tmp_path / "there", tmp_path / "back"
    host = Host(host.target, starter=starter)
    push(host, work, str(there))
    pull(host, str(there), back)
    (work / "lab.ipynb").write_text('{"cells": [1]}')
    (work / "week 4" / "new file").write_text("new")
    (there / "theirs.txt").write_text("stays")

    pushed = push(host, work, str(there))
    pulled = pull(host, str(there), back)
    again = push(host, work, str(there))

    assert (2, 17, 4, by) == (pushed.files, pushed.bytes, pushed.unchanged, pushed.way)
    assert (3, 22, 4, by) == (pulled.files, pulled.bytes, pulled.unchanged, pulled.way)
    assert (0, 6, "none") == (again.files, again.unchanged, again.way)
    assert contents(there) == contents(back) == {**contents(work), "theirs.txt": b"stays"}
    assert [] == leftovers(tmp_path)


def test_part_of_a_folder_can_be_copied(host, work, tmp_path):
    """`gpulab push lab.ipynb` sends one file; `--exclude` keeps a data set at home."""
    push(host, work, str(tmp_path / "one"), only=["lab.ipynb", "week 4"], exclude=["ünder"])

    assert ["lab.ipynb", "week 4/it's $HOME.py"] == sorted(contents(tmp_path / "one"))


def test_links_and_pipes_are_left_out_and_said(host, work, tmp_path):
    """A link to /etc would copy files nobody meant; a pipe would hang the copy."""
    (work / "data").symlink_to("/etc")
    os.mkfifo(work / "pipe")

    pushed = push(host, work, str(tmp_path / "there"))

    assert (
        Skipped("data", "a link"),
        Skipped("pipe", "not a regular file"),
    ) == pushed.skipped
    assert not (tmp_path / "there" / "data").exists()


def test_names_that_cannot_be_kept_everywhere_are_skipped_with_the_reason(host, work, tmp_path):
    """One oddly named file must not stop `stop` from saving the other thousand."""
    (work / "a:b.png").write_text("x")
    (work / "LAB.ipynb").write_text("y")

    pulled = pull(host, str(work), tmp_path / "back")

    assert {
        Skipped("a:b.png", "a name with `\\` or `:`"),
        Skipped("lab.ipynb", "the same file as 'LAB.ipynb' on some systems"),
    } == set(pulled.skipped)
    assert 5 == pulled.verified_files


def test_verify_finds_what_is_missing_or_different(host, work, tmp_path):
    """`stop` ends the instance only after this said that the copy is complete."""
    pull(host, str(work), tmp_path / "back")
    complete = verify(host, str(work), tmp_path / "back")
    (tmp_path / "back" / "lab.ipynb").unlink()
    (tmp_path / "back" / "run.sh").write_text("changed")

    broken = verify(host, str(work), tmp_path / "back")

    assert (True, 5) == (complete.is_complete, complete.files)
    assert (False, ("lab.ipynb",), ("run.sh",)) == (
        broken.is_complete,
        broken.missing,
        broken.different,
    )


def test_progress_counts_files_and_bytes(host, work, tmp_path):
    """A copy over a home line takes minutes; the student sees it move."""
    seen: list[copying.Progress] = []

    push(host, work, str(tmp_path / "there"), on_progress=seen.append)

    assert list(range(1, 6)) == [progress.files for progress in seen]
    assert {(5, seen[-1].bytes)} == {(p.total_files, p.total_bytes) for p in seen}


def test_a_connection_lost_while_pushing_leaves_the_old_state(host, sshd, work, tmp_path):
    """The other half of a notebook is worth nothing."""
    there = tmp_path / "there"
    push(host, work, str(there), exclude=["big.bin"])
    before = contents(there)
    (work / "lab.ipynb").write_text("new")
    (work / "zzz.bin").write_bytes(os.urandom(40 << 20))

    def cut(progress):
        sshd.kill_sessions()

    with pytest.raises(Unreachable):
        push(
            Host(host.target, starter=_WithoutRsync(host.starter)),
            work,
            str(there),
            on_progress=cut,
        )

    assert before == contents(there)


def test_a_connection_lost_while_pulling_leaves_the_old_state(host, sshd, work, tmp_path):
    """The copy on the laptop may be the only one a minute later."""
    back = tmp_path / "back"
    pull(host, str(work), back, exclude=["big.bin"])
    before = contents(back)
    (work / "lab.ipynb").write_text("new")
    (work / "zzz.bin").write_bytes(os.urandom(40 << 20))

    def cut(progress):
        sshd.kill_sessions()

    with pytest.raises(Unreachable):
        pull(
            Host(host.target, starter=_WithoutRsync(host.starter)), str(work), back, on_progress=cut
        )

    assert before == contents(back)
    assert [] == leftovers(tmp_path)


def test_a_file_that_is_written_to_meanwhile_is_copied_whole(host, work, tmp_path):
    """A training log grows all the time; saving the rest must not depend on it."""
    log = work / "train.log"
    log.write_text("0\n")
    host = Host(host.target, starter=_WritingTo(log, host.starter))

    pulled = pull(host, str(work), tmp_path / "back")

    assert ("train.log",) == pulled.changing
    assert (tmp_path / "back" / "train.log").read_text() in log.read_text()
    assert 5 == pulled.verified_files


def test_a_folder_in_the_place_of_a_file_stops_before_anything_changes(host, work, tmp_path):
    """Replacing a folder by a file would delete what is in it."""
    back = tmp_path / "back"
    (back / "run.sh").mkdir(parents=True)
    (back / "lab.ipynb").write_text("mine")

    with pytest.raises(StoreError) as error:
        pull(host, str(work), back)

    assert "a folder where a file should be" in error.value.message
    assert {"lab.ipynb": b"mine"} == contents(back)


def test_a_link_in_the_copy_is_never_written_through(host, work, tmp_path):
    """A link `week 4 -> ~` in the local folder would put files into the home."""
    back, outside = tmp_path / "back", tmp_path / "outside"
    outside.mkdir()
    back.mkdir()
    (back / "week 4").symlink_to(outside)

    with pytest.raises(StoreError):
        pull(host, str(work), back)

    assert [] == list(outside.iterdir())


def test_a_missing_folder_is_said_on_either_side(host, tmp_path):
    """A mistyped folder must not look like an empty one."""
    with pytest.raises(CommandFailed) as remote:
        pull(host, str(tmp_path / "gone"), tmp_path / "back")
    with pytest.raises(WrongUsage) as local:
        push(host, tmp_path / "gone", "x")

    assert f"there is no folder {tmp_path / 'gone'} on i-0123456789abcdef0" == remote.value.message
    assert f"there is no folder {tmp_path / 'gone'} on this computer" == local.value.message


def test_a_file_of_the_users_cannot_take_the_place_of_the_library(
    host, work, tmp_path, monkeypatch
):
    """Students call their files `random.py` and `json.py`; python finds those first."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    command = manifest.program("list", str(work))

    ran = host.run(
        ["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(tmp_path), *command], given=b"{}\n"
    )

    assert '{"end": 5}' == ran.text.splitlines()[-1]


@pytest.mark.parametrize(
    "listing",
    [
        "",
        "hello",
        "[]",
        '{"version": 1, "exists": true, "rsync": false}',
        '{"version": 1, "exists": true, "rsync": false}\n{"end": 1}',
        '{"version": 1, "exists": true, "rsync": false}\n{"path": 7}\n{"end": 1}',
        '{"version": 1, "exists": true, "rsync": false}\n'
        '{"path": "a", "size": -1, "mtime_ns": 0, "sha256": "", "executable": 0}\n{"end": 1}',
        "[" * 100_000,
    ],
)
def test_a_nonsense_listing_is_an_error_not_a_traceback(sshd, tmp_path, listing):
    """The instance may be hostile, or its python broken."""
    host = Host(
        sshd.target(), starter=_Saying(OpenSsh("ssh"), {"list": listing.encode()}, tmp_path)
    )

    with pytest.raises(CommandFailed) as error:
        pull(host, "work", tmp_path / "back")

    assert error.value.message.startswith("the instance sent no usable listing of work (")


def test_an_archive_with_more_than_was_asked_for_is_refused(sshd, tmp_path):
    """A hostile instance answers the listing truthfully and the request with `.bashrc`."""
    listing = (
        '{"version": 1, "exists": true, "rsync": false}\n'
        '{"path": "a", "size": 1, "mtime_ns": 0, "sha256": "'
        + "0"
        * 64
        + '", "executable": false}\n'
        '{"end": 1}\n'
    )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(".bashrc"))
    said = {"list": listing.encode(), "pack": stream.getvalue()}
    host = Host(sshd.target(), starter=_Saying(OpenSsh("ssh"), said, tmp_path))

    with pytest.raises(UnsafeArchive) as error:
        pull(host, "work", tmp_path / "back")

    assert (
        "the instance sent '.bashrc', a file that was not asked for; nothing was unpacked"
        == error.value.message
    )
    assert not (tmp_path / "back").exists()


class _WithoutRsync:
    """The same ssh under another class, so that rsync, which needs the program, is left alone."""

    def __init__(self, ssh):
        self._ssh = ssh

    def start(self, target, command):
        return self._ssh.start(target, command)


class _WritingTo:
    """An instance on which a file grows whenever it is looked at."""

    def __init__(self, log, ssh):
        self._log = log
        self._ssh = ssh

    def start(self, target, command):
        with self._log.open("a") as file:
            file.write("more\n")
        return self._ssh.start(target, command)


class _Saying:
    """An instance whose side of a copy was replaced: it says what it likes."""

    def __init__(self, ssh, said, folder):
        self._ssh = ssh
        self._files = {}
        for name, what in said.items():
            self._files[name] = folder / f"said-{name}"
            self._files[name].write_bytes(what)

    def start(self, target, command):
        return self._ssh.start(target, ["cat", str(self._files[command[4]])])


def test_rsync_sends_only_the_changed_part_of_a_large_file(host, tmp_path):
    """A data set that grew by a line costs a line, not the data set."""
    if not rsync.is_usable(host, manifest.read_remote(host, str(tmp_path))):
        pytest.skip("needs rsync 3.4 or newer")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "data").write_bytes(os.urandom(1 << 20))
    push(host, here, str(there))
    with (here / "data").open("ab") as file:
        file.write(b"one line more")

    report = push(host, here, str(there))

    assert "rsync" == report.way
    assert (here / "data").read_bytes() == (there / "data").read_bytes()
    assert shutil.which("rsync") is not None
