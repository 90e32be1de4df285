"""A name that was stopped comes back with the environment its notebooks ran in, not with the profile's default."""

from __future__ import annotations

import json

import pytest
from tests.aws.launch.conftest import Student

from gpulab.cli.main import run
from gpulab.launch.upkeep.prepare import prepare


@pytest.fixture
def stopped(student, ec2, monkeypatch):
    """A computer whose profile says tf2, on which `week4` was up with tf2-small and has ended."""
    launched = student.up("week4", environment="tf2-small")
    ec2.terminate_instances(InstanceIds=[launched.instance.id])
    student.sandbox.advance(seconds=3600)
    assert "tf2" == student.context.profile.environment
    monkeypatch.setattr("gpulab.cli.context.Context.launch", student.context)
    monkeypatch.setattr("gpulab.cli.context.Context.profile", student.context.profile)
    monkeypatch.setattr("gpulab.cli.context.Context.now", staticmethod(student.sandbox.now))
    return student


def planned(capsys, *words: str) -> tuple[str, list[str]]:
    """The environment that `up` would start with, and what it tells of the last one."""
    assert 0 == run(["up", *words, "--dry-run", "--json"])
    environment = json.loads(capsys.readouterr().out)["environment"]
    assert 0 == run(["up", *words, "--dry-run"])
    told = capsys.readouterr().out.splitlines()
    return environment, [line.strip() for line in told if " had " in line]


def test_a_stopped_name_comes_back_with_its_environment_and_says_so(stopped, capsys):
    """Notebooks of 2017 in a TensorFlow of today stop at their first cell."""
    environment, told = planned(capsys, "week4")

    assert "tf2-small" == environment
    assert ["note      week4 had tf2-small last; `--env tf2` changes it"] == told


@pytest.mark.parametrize("words", [("week4", "--env", "tf2"), ("week5",)], ids=["named", "new"])
def test_what_is_named_wins_and_a_new_name_gets_the_profiles(stopped, capsys, words):
    """Memory must not bind anybody, nor leak from one name into another."""
    assert ("tf2", []) == planned(capsys, *words)


def test_an_environment_that_is_gone_is_not_insisted_on(stopped, capsys, tmp_path):
    """The course's folder was deleted after the term; the work must come up all the same."""
    journal = stopped.context.folder.journal
    journal.write_text(journal.read_text("utf-8").replace('"tf2-small"', '"bio"'), "utf-8")

    assert ("tf2", []) == planned(capsys, "week4")


def test_a_journal_from_before_environments_were_tagged_is_read(stopped, capsys):
    """An old line must not cost the launch."""
    journal = stopped.context.folder.journal
    journal.write_text(journal.read_text("utf-8").replace("gpulab:env", "other:env"), "utf-8")

    assert ("tf2", []) == planned(capsys, "week4")
    assert ("",) == tuple(m.environment for m in stopped.context.journal.read().made)


@pytest.fixture
def elsewhere(sandbox, tmp_path, monkeypatch):
    """A computer that has never launched `week4`, of a student whose bucket has its work."""
    made = prepare(Student(sandbox, tmp_path / "first").context)
    profile = {"owner": made.owner, "keep_bucket": made.keep_bucket}
    other = Student(sandbox, tmp_path / "other", **profile, instance_role=made.instance_role)
    monkeypatch.setattr("gpulab.cli.context.Context.launch", other.context)
    monkeypatch.setattr("gpulab.cli.context.Context.profile", other.context.profile)
    monkeypatch.setattr("gpulab.cli.context.Context.now", staticmethod(sandbox.now))
    return other


def keep(student, name: str, manifest: dict) -> None:
    """Keep a name's work as its instance does."""
    student.context.cloud.client("s3", "us-east-1").put_object(
        Bucket=student.context.profile.keep_bucket,
        Key=f"{student.context.owner}/{name}/manifest.json",
        Body=json.dumps({"version": 1, "entries": [], **manifest}).encode(),
    )


@pytest.mark.parametrize(
    ("manifest", "environment"),
    [({"environment": "tf2-small"}, "tf2-small"), ({}, "tf2"), ({"environment": "bio"}, "tf2")],
    ids=["known", "from-before", "not-here"],
)
def test_another_computer_knows_the_environment_by_the_kept_work(
    elsewhere, capsys, manifest, environment
):
    """Begun in the lab, taken up again at home: the journal lies in the lab."""
    keep(elsewhere, "week4", manifest)

    assert environment == planned(capsys, "week4")[0]


def test_what_is_unverified_about_an_environment_is_said_with_the_price(stopped, capsys):
    """A GPU is paid for by the hour; that TensorFlow 1 does not use it must not be found out afterwards."""
    run(["up", "old", "--env", "tf1-legacy", "--dry-run"])

    told = [line for line in capsys.readouterr().out.splitlines() if "experimental" in line]
    assert ["  note      tf1-legacy is experimental. It needs an image with Python 3.7"] == [
        line.partition(",")[0] for line in told
    ]
