"""What was collected stays as new as it was: an older copy from elsewhere never replaces it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import pytest

from gpulab.fleets import acting
from gpulab.fleets.members import members

_spec = importlib.util.spec_from_file_location(
    "instances_that_keep", Path(__file__).with_name("instances_that_keep.py")
)
keeping = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keeping)


@pytest.fixture
def machines(sandbox, tmp_path):
    return keeping.Machines(sandbox, tmp_path / "machines")


@pytest.fixture
def ann(make_class, machines, sandbox, tmp_path):
    """One student whose work was saved at nine and collected over ssh a minute later, with what was written between."""
    klass = make_class(1)
    (outcome,) = klass.up().outcomes
    ann = machines.boot(outcome.instance.id)
    ann.klass, ann.accounts = klass, klass.accounts(connect=machines.connect)
    ann.context = ann.accounts.account(outcome.account).context
    ann.name = outcome.instance.name
    keeping.pin(ann.context.folder.known_hosts, ann.instance_id)
    ann.write("a.ipynb", b"old")
    ann.save()
    sandbox.advance(60)
    ann.write("a.ipynb", b"new")
    assert "1 new, 0 unchanged, 1 verified by hash" == collect(ann, tmp_path / "in")
    return ann


def collect(ann, folder):
    """What `fleet collect` says of her."""
    wish = ann.klass.wish()
    found = members(ann.accounts, wish.lab, wish.everyone, with_extras=True)
    live = [m for m in found if m.instance]
    gone = [m for m in found if not m.instance]
    homes = acting.homes(ann.accounts, wish.lab, gone)
    (outcome,) = (
        *acting.collect(ann.accounts, live, folder, is_anonymous=False),
        *acting.collect_kept(ann.accounts, gone, homes, folder, is_anonymous=False),
    )
    return outcome.detail or outcome.trouble.message


@pytest.fixture
def in_the_open():
    """A place that everybody may enter, and a umask that keeps nothing from anybody, as some shared computers have."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    before = os.umask(0)
    yield place
    os.umask(before)
    shutil.rmtree(place)


def opens(file):
    """Whether another user of this computer reads a file; only root can try to be one, else its modes are asked."""
    if os.geteuid() == 0:
        return (
            subprocess.run(["cat", file], user=65534, group=65534, extra_groups=[]).returncode == 0
        )
    return all(path.stat().st_mode & 0o005 for path in (file, *file.parents))


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: files have no modes")
@pytest.mark.parametrize("is_gone", [False, True], ids=["from the instance", "from the copy"])
def test_another_user_of_the_teachers_computer_reads_no_ones_work(
    ann, machines, in_the_open, is_gone
):
    """A class is collected into a folder of the teacher's choice, on a computer of the institute; marks are made of what is in it."""
    weak = in_the_open / "weak" / "a.ipynb"
    weak.parent.mkdir()
    weak.write_bytes(b"new")
    if is_gone:
        machines.end(ann.instance_id)

    collect(ann, in_the_open / "in" / "week4")

    ours = in_the_open / "in" / "week4" / "s000000" / "a.ipynb"
    assert ours.is_file()
    assert (True, False) == (opens(weak), opens(ours))
    for folder in (ours.parent, ours.parents[1]):
        assert 0o700 == stat.S_IMODE(folder.stat().st_mode)


def handed_in(folder):
    return (folder / "s000000" / "a.ipynb").read_bytes()


def test_an_instance_that_has_died_since_does_not_take_back_what_was_collected(ann, tmp_path):
    """It hung a minute after the hand-in; what it kept by itself is from the minute before."""
    ann.is_off = True

    said = collect(ann, tmp_path / "in")

    assert b"new" == handed_in(tmp_path / "in")
    assert said.startswith("left as it was collected, which is newer than what is kept (as the")
    assert said.endswith("it does not answer itself (Connection timed out)")


def test_what_an_instance_kept_later_is_collected(ann, sandbox, tmp_path):
    """The students worked on after the first collection, and that is what counts."""
    sandbox.advance(60)
    ann.write("a.ipynb", b"last")
    ann.save()
    ann.is_off = True

    said = collect(ann, tmp_path / "in")

    assert b"last" == handed_in(tmp_path / "in")
    assert said.startswith("1 new, 0 unchanged, as the instance kept it in the bucket")


@pytest.mark.parametrize(("kept_later", "expected"), [(False, b"new"), (True, b"last")])
def test_of_an_instance_that_is_gone_only_newer_work_is_collected(
    ann, machines, sandbox, tmp_path, kept_later, expected
):
    """AWS took it back without a notice, so that the last minute is nowhere but in the collected folder; or with one."""
    sandbox.advance(60)
    if kept_later:
        ann.write("a.ipynb", b"last")
        ann.save()
    machines.end(ann.instance_id)

    said = collect(ann, tmp_path / "in")

    assert expected == handed_in(tmp_path / "in")
    assert kept_later == (not said.startswith("left as it was collected"))


def test_what_stop_saved_before_does_not_replace_what_was_collected_since(ann, machines, tmp_path):
    """This computer's own copy is of an earlier instance; both moments are by this computer's clock."""
    keep = ann.spec["keep"]
    place = keep["prefix"].replace("{instance}", ann.instance_id)
    boto3.client("s3").delete_object(Bucket=keep["bucket"], Key=f"{place}manifest.json")
    saved = ann.context.folder.work / ann.name / "a.ipynb"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"stopped")
    earlier = ann.context.now().timestamp() - 3600
    os.utime(saved.parent, (earlier, earlier))
    machines.end(ann.instance_id)

    said = collect(ann, tmp_path / "in")

    assert b"new" == handed_in(tmp_path / "in")
    assert said.endswith("(from the saved work)")


def test_an_emptied_folder_is_filled_with_what_there_is(ann, tmp_path):
    """Whoever moved the first collection away wants a copy, an older one rather than none."""
    ann.is_off = True
    (tmp_path / "in" / "s000000").rename(tmp_path / "first")

    said = collect(ann, tmp_path / "in")

    assert b"old" == handed_in(tmp_path / "in")
    assert said.startswith("1 new, 0 unchanged, as the instance kept it in the bucket")


def test_a_new_instance_that_has_only_the_handout_does_not_replace_the_hand_in(
    ann, machines, tmp_path
):
    """AWS took the first one back, and the teacher's laptop was shut before the work was on the second: it has the empty notebook."""
    machines.end(ann.instance_id)
    (outcome,) = ann.klass.up(accounts=ann.klass.accounts(connect=_silent)).outcomes
    second = machines.boot(outcome.instance.id)
    second.write("a.ipynb", b"empty")

    said = collect(ann, tmp_path / "in")
    second.write("a.ipynb", b"begun")
    again = collect(ann, tmp_path / "in")

    aside = tmp_path / "in" / f"s000000-before-{second.instance_id}"
    assert said.endswith(f"; what it never got is in {aside}")
    assert "1 new, 0 unchanged, 1 verified by hash" == again
    assert (b"new", b"begun") == ((aside / "a.ipynb").read_bytes(), handed_in(tmp_path / "in"))


def _silent(target):
    return keeping.soaking().Host(keeping.Machines(None, Path()), target)
