"""The work of an instance without a bucket, followed over a real sshd while a tunnel is open."""

from __future__ import annotations

import json
import os
import random
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpulab.errors import CommandFailed
from gpulab.launch.context import Context
from gpulab.launch.running import fetching, lineage
from gpulab.launch.running.fetching import Fetcher
from gpulab.model.instance import Instance, State
from gpulab.model.market import Market, Place
from gpulab.remote.glance import Glance, glance
from gpulab.remote.host import Host
from gpulab.remote.process import Completed
from gpulab.store.config import Profile
from gpulab.store.home import Folder

LONG_AGO = 1_700_000_000
AN_INSTANCE = Instance(
    id="i-0123456789abcdef0",
    name="week4",
    owner="me",
    place=Place("us-east-1", "us-east-1a", "g4dn.xlarge", Market.SPOT),
    state=State.RUNNING,
    state_reason="",
    address="127.0.0.1",
    private_address="",
    launched_at=datetime(2026, 11, 23, tzinfo=UTC),
    expires_at=None,
    launch_id="",
)


@pytest.fixture
def there(tmp_path):
    """The work folder on the instance: two notebooks that were written long ago."""
    folder = tmp_path / "there"
    put(folder, "a.ipynb", "one")
    put(folder, "deep er/b.ipynb", "two")
    return folder


@pytest.fixture
def said():
    """What the student was told."""
    return []


@pytest.fixture
def fetcher(tmp_path, there, said):
    """Follows that folder."""
    return Fetcher(tmp_path / "here", said.append, source=str(there))


def put(folder: Path, name: str, text: str, *, at: int = LONG_AGO) -> None:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    os.utime(place, (at, at))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_every_round_brings_what_has_changed(host, there, fetcher, tmp_path, said):
    """AWS takes the instance back and there is no bucket: what came in the last round is all there is."""
    fetcher.round(host)
    first = contents(tmp_path / "here")
    put(there, "a.ipynb", "one, edited", at=LONG_AGO + 9)
    put(there, "new.py", "three")
    (there / "deep er/b.ipynb").unlink()

    fetcher.round(host)

    assert {"a.ipynb": "one", "deep er/b.ipynb": "two"} == first
    assert {"a.ipynb": "one, edited", "deep er/b.ipynb": "two", "new.py": "three"} == contents(
        tmp_path / "here"
    )
    assert [] == said


def test_what_did_not_change_is_neither_read_nor_sent(host, there, fetcher, tmp_path):
    """A checkpoint hashed twice a minute would look like a training, and the instance would never be idle."""
    fetcher.round(host)
    (tmp_path / "here/a.ipynb").write_text("touched here")
    put(there, "new.py", "three")

    fetcher.round(host)

    assert {"a.ipynb": "touched here", "deep er/b.ipynb": "two", "new.py": "three"} == contents(
        tmp_path / "here"
    )


def test_a_glance_sends_nothing_while_nothing_changes(host, there):
    """Twice a minute for hours, on a hotel's network."""
    first = glance(host, str(there), Glance())
    answers = []

    again = glance(Recording(host.run, answers), str(there), first)

    assert again is first
    assert json.loads(answers[0])["files"] is None


class Recording:
    """Passes commands on and keeps the answers."""

    def __init__(self, run, answers):
        self._run, self._answers = run, answers

    def run(self, *args, **more):
        done = self._run(*args, **more)
        self._answers.append(done.stdout)
        return done


def test_a_file_written_in_the_moment_of_the_look_is_looked_at_again(
    host, there, fetcher, tmp_path
):
    """Same size, same time stamp: a file system's clock is coarse, so a young file is never believed unchanged."""
    place = there / "young.txt"
    place.write_text("one")
    # Ahead of the clock, so that it is young however long a busy computer takes to look.
    stamp = place.stat().st_mtime_ns + 600 * 10**9
    os.utime(place, ns=(stamp, stamp))
    fetcher.round(host)
    place.write_text("two")
    os.utime(place, ns=(stamp, stamp))

    fetcher.round(host)

    assert "two" == contents(tmp_path / "here")["young.txt"]


def test_what_is_left_out_is_said_once(host, there, fetcher, tmp_path, said, monkeypatch):
    """A student who counts on the copy must be told what is not in it; half a gigabyte would take the lecture's network."""
    monkeypatch.setattr(fetching, "LARGEST_BYTES", 1 << 20)
    put(there, "model.ckpt", "x" * (1 << 20) + "x")
    put(there, "other.ckpt", "x" * (1 << 20) + "x")
    put(there, "__pycache__/x.pyc", "compiled")

    fetcher.round(host)
    put(there, "new.py", "three")
    fetcher.round(host)

    assert {"a.ipynb", "deep er/b.ipynb", "new.py"} == contents(tmp_path / "here").keys()
    assert [
        "model.ckpt and 1 more, over 1 MiB, comes to this computer at `gpulab stop` only"
    ] == said


def test_what_cannot_be_copied_is_named_once(host, there, fetcher, tmp_path, said):
    """A link to a data set, a name that Windows cannot hold: a student who counts on the copy must not find out after the cut."""
    fetcher.round(host)
    (there / "data").symlink_to("/srv/data")
    put(there, "a:b.txt", "odd")
    fetcher.round(host)
    put(there, "new.py", "three")
    fetcher.round(host)
    os.mkfifo(there / "pipe\n")
    (there / "socket").symlink_to("nowhere")
    fetcher.round(host)

    assert {"a.ipynb", "deep er/b.ipynb", "new.py"} == contents(tmp_path / "here").keys()
    assert [
        "a:b.txt (a name with `\\` or `:`) and 1 more will not come to this computer",
        "'pipe\\n' (not a regular file) and 1 more will not come to this computer",
    ] == said


def test_an_instance_that_lacks_the_kept_work_replaces_none_of_it(fetcher, tmp_path, said):
    """A push that failed, then fresh notebooks of the same name: the term's edits would be gone within a minute."""
    put(tmp_path / "here", "a.ipynb", "a term of edits")

    fetcher.round(None)
    fetcher.round(None)

    assert {"a.ipynb": "a term of edits"} == contents(tmp_path / "here")
    assert [
        f"The work is not copied here meanwhile: what is kept in {tmp_path / 'here'} did not reach this instance"
    ] == said


def test_a_failure_is_told_once_and_tried_again(host, sshd, there, fetcher, tmp_path, said):
    """This computer's disk is full for a moment: told every half minute it would only annoy."""
    (tmp_path / "here").write_text("a file where the folder should be")
    fetcher.round(host)
    fetcher.round(host)
    (tmp_path / "here").unlink()

    fetcher.round(host)

    assert 1 == len(said)
    assert said[0].startswith("The work is not copied here: ")
    assert {"a.ipynb": "one", "deep er/b.ipynb": "two"} == contents(tmp_path / "here")


def test_a_lost_link_is_left_to_the_tunnel(sshd, there, fetcher, said):
    """The tunnel says that the link is lost; a second voice would say it every half minute."""
    sshd.stop()

    fetcher.round(Host(sshd.target()))

    assert [] == said


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"files": [[1]]}', b'{"files": 7, "now_ns": 1}'])
def test_nonsense_is_an_error_and_no_traceback(answer):
    """The instance belongs to a student and may say anything."""

    class Silly:
        run = staticmethod(lambda *_, **__: Completed(0, answer, ""))

    with pytest.raises(CommandFailed, match="sent no usable list of work"):
        glance(Silly(), "work", Glance())


def test_it_runs_beside_a_tunnel_only_where_there_is_no_bucket(tmp_path, monkeypatch, host, there):
    """With a bucket the instance keeps its work itself, and the laptop's line stays free."""
    monkeypatch.setattr(fetching, "EVERY_S", 0.01)
    rounds = {}

    for bucket in ("", "kept-work"):
        arrived = threading.Event()
        monkeypatch.setattr(Fetcher, "round", lambda self, host, done=arrived: done.set())
        context = a_context(tmp_path / f"home-{bucket}", host, bucket)
        with fetching.fetching(context, AN_INSTANCE, target=lambda: host.target, say=print):
            rounds[bucket] = arrived.wait(10 if not bucket else 0.2)

    assert {"": True, "kept-work": False} == rounds


def test_only_the_instance_that_got_the_kept_work_is_followed(tmp_path, monkeypatch, host):
    """Where nothing was kept yet there is nothing to lose, and the first instance is followed from its first minute."""
    monkeypatch.setattr(fetching, "EVERY_S", 0.01)
    hosts = []
    arrived = threading.Event()
    monkeypatch.setattr(Fetcher, "round", lambda self, host: (hosts.append(host), arrived.set()))
    context = a_context(tmp_path / "home", host, "")

    def follow() -> object:
        arrived.clear()
        with fetching.fetching(context, AN_INSTANCE, target=lambda: host.target, say=print):
            arrived.wait(10)
        return hosts[-1]

    first = follow()
    (context.folder.work / AN_INSTANCE.name).mkdir()
    same = follow()
    context.notes.write(dict.fromkeys(context.notes.below("has-work/")))
    stranger = follow()

    assert (host, host, None) == (first, same, stranger)


def test_nothing_is_fetched_while_another_command_fills_the_folder(
    host, there, fetcher, tmp_path, said
):
    """A round that listed the notebook before `gpulab stop` did would put the older one over the one that was compared."""
    with lineage.filling(tmp_path / "here") as is_ours:
        fetcher.round(host)
        meanwhile = contents(tmp_path / "here")
    fetcher.round(host)

    assert (True, {}) == (is_ours, meanwhile)
    assert {"a.ipynb": "one", "deep er/b.ipynb": "two"} == contents(tmp_path / "here")
    assert [] == said


def test_what_nobody_foresaw_is_said_once_and_the_next_round_comes(tmp_path, monkeypatch, host):
    """Without a bucket this thread is all that stands between a spot end and lost work."""
    monkeypatch.setattr(fetching, "EVERY_S", 0.01)
    rounds, told, done = [], [], threading.Event()

    def fail(self, host) -> None:
        rounds.append(host)
        if len(rounds) > 3:
            done.set()
        raise ValueError("a note that is none")

    monkeypatch.setattr(Fetcher, "round", fail)
    context = a_context(tmp_path / "home", host, "")

    with fetching.fetching(context, AN_INSTANCE, target=lambda: host.target, say=told.append):
        is_done = done.wait(10)

    assert is_done
    assert ["The work was not copied here: ValueError: a note that is none"] == told


@pytest.mark.parametrize("note", ["{", "[]"])
def test_a_damaged_note_of_whose_work_is_here_is_none(tmp_path, host, note):
    """Then both versions are kept; a traceback would keep nothing."""
    context = a_context(tmp_path / "home", host, "")
    (context.folder.work / "week4").mkdir()
    context.notes.write({"held/week4": note})

    lineage.note_part(context, "week4", "i-2")

    assert {"i-2": None} == lineage.held(context, "week4")


def a_context(folder, host, bucket):
    return Context(
        profile=Profile(name="test", keep_bucket=bucket, instance_role=bucket and "role"),
        folder=Folder(folder),
        environment={},
        now=lambda: datetime(2026, 11, 23, tzinfo=UTC),
        sleep=lambda s: None,
        random=random.Random(7),
        connect=lambda target: host,
    )
