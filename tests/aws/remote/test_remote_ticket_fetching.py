"""Whoever opens a ticket has the work on their own computer, where the instance keeps nothing by itself; played, but for the copying."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime

import pytest

from gpulab.launch.context import Context
from gpulab.launch.running import fetching
from gpulab.launch.running.fetching import Fetcher
from gpulab.remote.process import Completed
from gpulab.remote.target import SshTarget
from gpulab.store.config import Profile
from gpulab.store.home import Folder

STATUS = (
    '{{"version": 1, "at": "2026-11-16T09:10:00Z", "phases": [], "idle_minutes": 60, "gpu": [],'
    ' "saved_at": {saved_at}, "jupyter": {{"port": 8888, "ready": true}}}}'
)


class Instance:
    """An instance over ssh that says whether it has kept its work."""

    def __init__(self, saved_at="null"):
        self.saved_at = saved_at

    def run(self, _command, **_more):
        return Completed(0, STATUS.format(saved_at=self.saved_at).encode(), "")


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    """Opens a ticket until its instance was looked at twice: the folder that was fetched into, and what was said."""
    monkeypatch.setattr(fetching, "EVERY_S", 0.01)

    def opened(instance_id="i-0123456789abcdef0", *, instance):
        into, said, twice, looks = [], [], threading.Event(), []

        def connect(_target):
            looks.append(1)
            if len(looks) > 2:
                twice.set()
            return instance

        def bring(self, _host):
            self._folder.mkdir(parents=True, exist_ok=True)
            into.append(self._folder.name)

        monkeypatch.setattr(Fetcher, "round", bring)
        context = Context(
            profile=Profile(name="test", keep_bucket="mine", instance_role="mine"),
            folder=Folder(tmp_path),
            environment={},
            now=lambda: datetime(2026, 11, 23, tzinfo=UTC),
            sleep=lambda s: None,
            random=random.Random(7),
            connect=connect,
        )
        target = SshTarget(instance_id, "192.0.2.7", "ubuntu", tmp_path / "key", tmp_path / "known")
        with fetching.fetching_by_ticket(context, "week4-s1", target, say=said.append):
            assert twice.wait(10)
        return sorted(set(into)), said

    return opened


def test_the_work_comes_to_the_students_computer_and_that_is_said(ticket, tmp_path):
    """The student's own bucket has nothing to do with an instance that is the teacher's."""
    into, said = ticket(instance=Instance())

    assert ["week4-s1"] == into
    folder = tmp_path / "work" / "week4-s1"
    assert [f"While this is open, the work is copied to {folder} every 0 s"] == said


def test_an_instance_that_keeps_its_work_by_itself_is_left_in_peace(ticket):
    """The line of an auditorium is everybody's."""
    assert ([], []) == ticket(instance=Instance('"2026-11-16T09:09:00Z"'))


def test_the_same_ticket_goes_on_and_another_instances_work_gets_a_folder_of_its_own(ticket):
    """A replacement that the teacher could not give the old work must not write over the only copy of it."""
    first = ticket(instance=Instance())[0]
    again = ticket(instance=Instance())[0]
    other = ticket("i-0aaaaaaaaaaaaaaaa", instance=Instance())[0]

    assert (["week4-s1"], ["week4-s1"], ["week4-s1-i-0aaaaaaaaaaaaaaaa"]) == (first, again, other)
