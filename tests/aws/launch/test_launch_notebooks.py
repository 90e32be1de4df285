"""`--notebooks`: what it takes, what is sent to the instance, and that a lab without notebooks is still a lab."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpulab.errors import CommandFailed, Unreachable, WrongUsage
from gpulab.launch.events import NotebooksBrought, PhaseChanged, Ready
from gpulab.launch.running import booting, notebooks
from gpulab.launch.running.notebooks import read_notebooks
from gpulab.model.course import DataSet, Notebooks
from gpulab.remote.process import Completed

SHA = "7518e19ad8e9dcc5509e44d275e370c49c553178"
REPOSITORY = "https://github.com/DeepLearningDTU/02456-deep-learning"
LAB = Notebooks(REPOSITORY, SHA, "labs")
STATUS = {
    "version": 1,
    "at": "2026-11-23T12:00:00Z",
    "phases": [],
    "jupyter": {"port": 8888, "ready": True},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REPOSITORY, Notebooks(REPOSITORY)),
        (f"{REPOSITORY}.git", Notebooks(f"{REPOSITORY}.git")),
        (f"{REPOSITORY}@{SHA}", Notebooks(REPOSITORY, SHA)),
        (
            f"{REPOSITORY}@week/1:notebooks/lab 1/",
            Notebooks(REPOSITORY, "week/1", "notebooks/lab 1"),
        ),
        (f"{REPOSITORY}:labs", Notebooks(REPOSITORY, "", "labs")),
        (
            "https://git.example.org:8443/a/b@v1",
            Notebooks("https://git.example.org:8443/a/b", "v1"),
        ),
    ],
)
def test_repository_commit_and_folder_are_read(text, expected):
    """One option instead of three."""
    assert expected == read_notebooks(text)


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:a/b",
        "http://github.com/a/b",
        "https://token@github.com/a/b",
        "https://user:secret@github.com/a/b",
        f"{REPOSITORY}@--upload-pack=x",
        f"{REPOSITORY}:../../etc",
        f"{REPOSITORY}:/etc",
        "file:///etc",
        "",
    ],
)
def test_what_is_no_public_https_address_is_refused(text):
    """A password in it would be readable for everybody on the instance; the rest would fail there, minutes later."""
    with pytest.raises(WrongUsage, match="does not name notebooks"):
        read_notebooks(text)


def test_data_sets_need_their_sum():
    """Without it nobody notices that the file has changed."""
    named = read_notebooks(REPOSITORY, [f"https://example.org/a.zip#{'0' * 64}"])

    assert (DataSet("https://example.org/a.zip", "0" * 64),) == named.data
    with pytest.raises(WrongUsage, match="does not name a data set"):
        read_notebooks(REPOSITORY, ["https://example.org/a.zip"])


class Host:
    """An instance that is ready and answers the notebooks' command as told."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def run(self, command, *, given=b"", **_more):
        if command[0] != "sudo":
            return Completed(0, json.dumps(STATUS).encode() if "status" in command else b"", "")
        self.asked.append((command, given))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ready(student, host, *, is_new=True, **profile):
    instance = student.up().instance
    context = replace(
        student.context,
        connect=lambda target: host,
        profile=replace(student.context.profile, **profile),
    )
    return list(booting.until_ready(context, instance, is_new=is_new, wanted=LAB))


def test_without_a_bucket_they_come_over_ssh(student):
    """A student's own account often has none; the lab must be there all the same."""
    host = Host(Completed(0, b"~/work/x is at 7518e19: 9 new\n", ""))

    events = ready(student, host)

    ((command, given),) = host.asked
    assert ["sudo", "-n", "python3", "-", "lab"] == command[:5]
    assert {"repository": REPOSITORY, "commit": SHA, "folder": "labs"} == json.loads(command[5])
    assert b"A lab's notebooks and data sets on an instance" in given
    assert ["~/work/x is at 7518e19: 9 new"] == [
        e.text for e in events if type(e) is NotebooksBrought
    ]


@pytest.mark.parametrize(
    "answer", [Completed(1, b"", "x\nhttps://x: not found\n"), Unreachable("https://x: not found")]
)
def test_notebooks_that_cannot_be_had_do_not_cost_the_instance(student, answer):
    """GitHub is down; the student has paid for a GPU and has other things to do on it."""
    events = ready(student, Host(answer))

    told = [(e.state, e.message) for e in events if type(e) is PhaseChanged]
    assert [
        ("running", REPOSITORY),
        ("failed", "https://x: not found; the same command tries again"),
    ] == told
    assert Ready is type(events[-1])


def test_a_new_instance_with_a_bucket_fetches_them_by_itself(student):
    """Thirty instances of a class start while one laptop sleeps."""
    host = Host(Completed(0, b"", ""))

    ready(student, host, keep_bucket="b-us-east-1", instance_role="r")

    assert [] == host.asked


def test_an_instance_that_is_up_already_gets_the_newer_ones_at_once(student):
    """The TA corrects an exercise at 14:00; the same command again brings it."""
    host = Host(Completed(0, b"ok", ""))

    ready(student, host, is_new=False, keep_bucket="b-us-east-1", instance_role="r")

    assert 1 == len(host.asked)


def test_a_reason_is_given_even_when_the_instance_gives_none(student):
    """An empty sentence helps nobody."""
    host = Host(Completed(3, b"", ""))
    instance = student.up().instance
    context = replace(student.context, connect=lambda target: host)

    with pytest.raises(CommandFailed, match="exit code 3"):
        notebooks.bring(context, instance, Notebooks(REPOSITORY))
