"""What comes to a laptop is its user's alone, from the first byte on and whatever the umask; and what killed copies left goes, what may be in use stays."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpulab.aws import workspace
from gpulab.aws.workspace import KeptFile
from gpulab.remote import leftovers
from gpulab.remote.instance_side import STAGE_PREFIX, make_stage
from gpulab.store.files import copy_private
from gpulab.store.locks import locked

DAY_S = 24 * 3600


@pytest.fixture(autouse=True)
def _everybody_may_read():
    """The umask of somebody who never thought of it, or of a computer that shares everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def a_file(path: Path, content: str = "work", *, with_mode: int = 0o644) -> Path:
    path.write_text(content)
    path.chmod(with_mode)
    return path


def test_a_plain_copy_would_be_readable_by_everybody(tmp_path):
    """The attack works where nothing is done about it: another user of the computer reads the work."""
    source, place = a_file(tmp_path / "a.ipynb"), tmp_path / "plain.ipynb"

    place.write_bytes(source.read_bytes())

    assert 0o666 == mode(place)


@pytest.mark.parametrize(("given", "expected"), [(0o644, 0o600), (0o777, 0o700), (0o440, 0o600)])
def test_a_copy_of_kept_work_is_its_owners_alone(tmp_path, given, expected):
    """Files keep whether they can be run and when they were written, not who else may read them."""
    source = a_file(tmp_path / "run.sh", with_mode=given)
    os.utime(source, ns=(10**18, 10**18 + 1))

    copy_private(source, tmp_path / "new/deeper/run.sh")

    place = tmp_path / "new/deeper/run.sh"
    assert (expected, "work", 10**18 + 1) == (
        mode(place),
        place.read_text(),
        place.stat().st_mtime_ns,
    )
    assert [0o700, 0o700] == [mode(place.parent), mode(place.parent.parent)]
    assert [place] == list(place.parent.iterdir())


@pytest.mark.parametrize("name", ["a.ipynb", ".gpulab-a.ipynb"])
def test_a_copy_takes_the_place_of_a_link_and_leaves_what_it_points_to(tmp_path, name):
    """Somebody else may have laid a link where the copy goes: written through, it would overwrite their choice of our files."""
    target = a_file(tmp_path / "diary.txt", "mine")
    place = tmp_path / "a.ipynb"
    (tmp_path / name).symlink_to(target)

    copy_private(a_file(tmp_path / "source.ipynb"), place)

    assert ("mine", "work", False) == (target.read_text(), place.read_text(), place.is_symlink())


def test_a_download_is_closed_before_its_first_byte(tmp_path):
    """A large file takes minutes, in a folder that may be open to everybody."""
    seen = []

    class Body:
        def iter_chunks(self, _size):
            seen.append(mode(tmp_path / "part"))
            yield b"half"
            seen.append(mode(tmp_path / "part"))
            yield b"whole"

    digest = hashlib.sha256(b"halfwhole").hexdigest()
    file = KeptFile("big.bin", "key", "", 9, digest, 0o644, 10**18)
    workspace._write(Body(), tmp_path / "part", file)

    assert ([0o600, 0o600], b"halfwhole") == (seen, (tmp_path / "part").read_bytes())


def test_a_download_does_not_go_through_a_link(tmp_path):
    """The same for what comes from the bucket."""
    target, part = a_file(tmp_path / "diary.txt", "mine"), tmp_path / "part"
    part.symlink_to(target)

    class Body:
        def iter_chunks(self, _size):
            yield b"whole"

    file = KeptFile("a", "key", "", 5, hashlib.sha256(b"whole").hexdigest(), 0o644, 10**18)
    workspace._write(Body(), part, file)

    assert ("mine", b"whole", False) == (target.read_text(), part.read_bytes(), part.is_symlink())


def test_folders_of_a_lock_are_closed(tmp_path):
    """They lie below the work, and whoever can write there can hold every command up."""
    with locked(tmp_path / "a/b/work.lock") as is_ours:
        assert is_ours

    assert [0o700, 0o700, 0o600] == [
        mode(tmp_path / name) for name in ("a", "a/b", "a/b/work.lock")
    ]


def test_a_stage_and_the_folders_above_it_have_the_mode_they_are_given(tmp_path):
    """`parents=True` gives the folders above whatever the umask leaves."""
    stage = make_stage(tmp_path / "one/two/work", mode=0o700)

    assert [0o700] * 3 == [mode(p) for p in (stage, stage.parent, stage.parent.parent)]


# -- what killed copies left ------------------------------------------------------------------------------------------------


def a_dead_process() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def a_stage(folder: Path, owner: object) -> Path:
    stage = folder / f"{STAGE_PREFIX}{owner}-abc"
    (stage / "data").mkdir(parents=True)
    (stage / "data/half.csv").write_text("1,2")
    return stage


def test_a_dead_processs_copy_goes_after_a_day(tmp_path):
    """It holds a student's work for ever under a name that nobody sees, and takes the disk."""
    stage = a_stage(tmp_path, a_dead_process())
    beside = a_file(tmp_path / "week4.ipynb")

    leftovers.clear(tmp_path, now_s=stage.stat().st_ctime + DAY_S - 60)
    young = stage.is_dir()
    leftovers.clear(tmp_path, now_s=stage.stat().st_ctime + DAY_S + 60)

    assert (True, [beside]) == (young, list(tmp_path.iterdir()))


@pytest.mark.parametrize("owner", ["alive", "", "0", "week4", "12x"])
def test_a_copy_that_may_be_in_use_or_is_not_ours_stays(tmp_path, owner):
    """A process of that id lives, or the name is not one that we give: deleting what is somebody's is worse than leaving half a copy."""
    stage = a_stage(tmp_path, os.getpid() if owner == "alive" else owner)

    leftovers.clear(tmp_path, now_s=stage.stat().st_ctime + 100 * DAY_S)

    assert (stage / "data/half.csv").is_file()


def test_a_link_with_such_a_name_leads_to_no_deletion(tmp_path):
    """Whoever can write beside the work must not choose what we delete."""
    target = tmp_path / "precious"
    target.mkdir()
    a_file(target / "thesis.tex")
    link = tmp_path / f"{STAGE_PREFIX}{a_dead_process()}-abc"
    link.symlink_to(target)

    leftovers.clear(tmp_path, now_s=link.lstat().st_ctime + 100 * DAY_S)

    assert (target / "thesis.tex").is_file()
    assert link.is_symlink()
