"""Calls to a sandbox in a process of its own are judged like those to one in the test's: what no policy allows is found there too."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.judge import Judge, Kept

from gpulab.aws.session import Cloud
from gpulab.cli.main import run
from gpulab.sandbox import server, witnesses
from gpulab.sandbox.calls import from_inside
from gpulab.sandbox.witnesses import said_in_calls

ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Rehearsed:
    """A user's folder, and the file in which their sandbox keeps its calls; those of other tests are beside it."""

    home: Path
    file: Path

    def kept(self) -> list[witnesses.Seen]:
        """Every call so far."""
        return [witnesses.Seen.read(line) for line in self.file.read_text().splitlines()]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Iterator[Rehearsed]:
    """A user whose sandbox runs."""
    home, folder = tmp_path_factory.mktemp("asked-home"), Path(os.environ[witnesses.KEPT_IN])
    before = set(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULAB_HOME", str(home))
        assert 0 == run(["sandbox", "start"])
        (file,) = set(folder.iterdir()) - before
        yield Rehearsed(home, file)
        assert 0 == run(["sandbox", "stop"])


@pytest.fixture(autouse=True)
def _use(rehearsed, monkeypatch) -> None:
    monkeypatch.setenv("GPULAB_HOME", str(rehearsed.home))
    monkeypatch.setenv("GPULAB_PROFILE", "sandbox")


def client(service: str) -> Any:
    """A client as gpulab makes it: its calls say that they are gpulab's."""
    profile = tomllib.loads((Path(os.environ["GPULAB_HOME"]) / "config.toml").read_text())
    mine = profile["profiles"]["sandbox"]
    cloud = Cloud(
        aws_profile=mine["aws_profile"],
        config_file=Path(mine["aws_config_file"]),
        credentials_file=Path(mine["aws_credentials_file"]),
    )
    return cloud.client(service, "us-east-1", is_patient=False)


def found(judge: Judge) -> list[str]:
    """What the judge finds in the calls of a test that asks for too much on purpose."""
    judge.read()
    said, judge.forbidden = judge.forbidden, []
    return said


@pytest.mark.slow
def test_a_students_first_day_asks_for_nothing_without_a_right(judge, rehearsed):
    """What is typed against `gpulab sandbox start` is what a course types: each call is of the command, the person or the role that makes it."""
    words = ["up", "lab", "--env", "tf2-small", "--no-open", "--yes"]
    program = [sys.executable, "-m", "gpulab"]

    codes = [run(["init", "--yes"])]
    codes += [
        subprocess.run(
            [*program, *typed], env=os.environ | said_in_calls(typed), check=False
        ).returncode
        for typed in (words, ["stop", "lab", "--yes"])
    ]
    judge.read()

    assert ([0, 0, 0], []) == (codes, judge.forbidden)
    agents = {seen.name: seen.agent for seen in rehearsed.kept()}
    assert "app/init" in agents["s3:CreateBucket"]
    assert "app/up" in agents["ec2:RunInstances"]
    assert "app/stop" in agents["ec2:TerminateInstances"]
    assert [] != [s for s in rehearsed.kept() if _caller(s).startswith("assumed-role/gpulab-work-")]
    assert judge.count > 60


def _caller(seen: witnesses.Seen) -> str:
    return seen.asked[0].context["aws:principalarn"][0].rpartition(":")[2]


@pytest.mark.parametrize(
    ("service", "operation", "parameters", "said"),
    [
        (
            "ec2",
            "modify_instance_attribute",
            {"InstanceId": "i-0123456789abcdef0", "UserData": {"Value": b"#!/bin/sh"}},
            "ec2:ModifyInstanceAttribute on arn:aws:ec2:us-east-1:123456789012:instance/i-0123456789abcdef0: allowed by []",
        ),
        (
            "ec2",
            "run_instances",
            {"ImageId": "ami-12345678", "MinCount": 1, "MaxCount": 1},
            "ec2:RunInstances on arn:aws:ec2:us-east-1:123456789012:instance/new: allowed by []",
        ),
        ("iam", "create_user", {"UserName": "me"}, "user/me: allowed by []"),
    ],
)
def test_a_call_that_no_policy_allows_is_found(judge, service, operation, parameters, said):
    """A change that asks for more than a teacher was told to allow must not pass because the test's AWS ran elsewhere."""
    with contextlib.suppress(ClientError):  # it was asked for all the same
        getattr(client(service), operation)(**parameters)

    assert [] != [word for word in found(judge) if said in word]


def test_a_right_of_another_command_is_found(judge, monkeypatch):
    """Whoever allows `gpulab prices` only must not be asked for more by it; the call says which command makes it."""
    monkeypatch.setenv(*next(iter(said_in_calls(["prices"]).items())))

    client("ec2").describe_spot_price_history(MaxResults=1)
    client("ec2").describe_key_pairs()

    assert ["ec2:DescribeKeyPairs on *: not of ['prices']"] == found(judge)


def test_a_call_of_somebody_else_is_not_gpulabs_to_answer_for(judge, rehearsed):
    """Tests look at AWS as a console does, and play thieves; none of that is in the policies."""
    ec2 = client("ec2")
    ec2.meta.events.register("before-send", _as_somebody_else)

    ec2.describe_network_acls()
    judge.read()

    assert ([], 0) == (judge.forbidden, judge.count)
    assert "somebody" in {s.agent for s in rehearsed.kept() if "NetworkAcls" in s.name}


def _as_somebody_else(request: Any, **_: Any) -> None:
    request.headers["User-Agent"] = "somebody"


def test_a_malformed_call_is_refused_as_if_nobody_looked_and_found(judge):
    """Looking must change nothing; and a call of which nobody can tell what it asks for is one without a right."""
    iam = client("iam")
    iam.meta.events.register("before-call.iam.GetRole", _without_its_name)

    with pytest.raises(ClientError, match="NoSuchEntity"):
        iam.get_role(RoleName="nobody")

    assert ["iam:GetRole: nobody can tell what it asks for"] == found(judge)


def _without_its_name(params: Any, **_: Any) -> None:
    del params["body"]["RoleName"]


def test_a_sandbox_that_cannot_keep_what_is_asked_does_not_start(tmp_path, capsys):
    """It would run unjudged, and every test that uses it would pass."""
    folder = tmp_path / "gone"

    code = server.main(["--folder", str(tmp_path)], {witnesses.KEPT_IN: str(folder)})

    said = capsys.readouterr().err
    assert 1 == code
    assert f"error: could not keep in {folder}/" in said
    assert "No such file or directory" in said


def test_a_full_disk_refuses_no_call(tmp_path, monkeypatch):
    """Who looks changes nothing, whatever happens to what was seen."""
    witnesses.keep_in({witnesses.KEPT_IN: str(tmp_path)})
    witness = witnesses.EVERYWHERE.pop()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(witnesses.os, "write", full)

    witness(from_inside(ACCOUNT, "us-east-1", "ec2", "StopInstances", {}), [])

    assert [""] == [file.read_text() for file in tmp_path.iterdir()]


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    """A server writes while the test reads: half a line is no call, and the next one is not lost."""
    whole = json.dumps({"agent": "a", "name": "ec2:StopInstances", "asked": []}) + "\n"
    file, told = tmp_path / "one.jsonl", Kept(tmp_path)

    seen = []
    for written in (whole + whole[:20], whole[20:] + whole, ""):
        with file.open("a") as end:
            end.write(written)
        seen.append(len(list(told.new())))

    assert [1, 2, 0] == seen
