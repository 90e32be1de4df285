"""Many instances with one role: each keeps the work under its own id, and all fetch one agent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from gpulab.agent import agent
from gpulab.agent.agent import Here, Metadata, Problem
from gpulab.bootstrap import Keep

BODY = Keep("b", "", "us-east-1", "").agent_body
KEEP = Keep(
    "kept-work", "course-c1/AROA1:{instance}/", "us-east-1", "http://s3", shared="course-c1/.agent/"
)


class S3:
    """A bucket in memory, behind the agent's own requests."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {f"/kept-work/{KEEP.agent_key}": BODY}
        self.status, self.headers, self.body = 0, {"x-amz-version-id": "1"}, b""

    def request(self, method: str, path: str, body: bytes = b"", **_: Any) -> None:
        place = unquote(urlsplit(path).path)
        if method == "PUT":
            self.objects[place] = body
        self.status = 200 if place in self.objects else 404
        self.body = self.objects.get(place, b"")

    def getresponse(self) -> S3:
        return self

    def read(self) -> bytes:
        return self.body


@pytest.fixture
def s3(monkeypatch, metadata_service) -> S3:
    role = {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "Token": "token"}
    metadata_service.said["meta-data/iam/security-credentials/"] = "work"
    metadata_service.said["meta-data/iam/security-credentials/work"] = json.dumps(role)
    bucket = S3()
    monkeypatch.setattr(agent, "connect", lambda endpoint: bucket)
    return bucket


@pytest.fixture
def classmate(a_here) -> Callable[[str], Here]:
    keep = {"bucket": KEEP.bucket, "prefix": KEEP.prefix, "region": KEEP.region}
    keep.update(endpoint=KEEP.endpoint, agent=KEEP.agent_sha256, shared=KEEP.shared)

    def make(name: str) -> Here:
        here = a_here(name, keep=keep)
        (here.work / "a.ipynb").write_bytes(name.encode())
        return here

    return make


def test_each_instance_keeps_its_work_under_its_own_id(s3, classmate, metadata_service):
    """Two of a class in one folder would overwrite each other; and IAM lets each write under its own id only."""
    for name in ("i-0ann", "i-0bo"):
        metadata_service.said["meta-data/instance-id"] = name
        agent.save(classmate(name), Metadata(metadata_service.url))

    kept = {key: body for key, body in s3.objects.items() if key.endswith(".ipynb")}
    assert {
        "/kept-work/course-c1/AROA1:i-0ann/work/a.ipynb": b"i-0ann",
        "/kept-work/course-c1/AROA1:i-0bo/work/a.ipynb": b"i-0bo",
    } == kept


def test_the_id_is_remembered_when_the_metadata_service_is_silent(s3, classmate, metadata_service):
    """The last save of a dying machine must not fail because one service went first."""
    here = classmate("one")
    agent.arm(here, Metadata(metadata_service.url))
    metadata_service.said.pop("meta-data/instance-id")

    agent.save(here, Metadata(metadata_service.url))

    assert "/kept-work/course-c1/AROA1:i-0abc/manifest.json" in s3.objects


def test_an_instance_that_does_not_know_its_id_says_so(s3, classmate, metadata_service):
    """Work under a name with a brace in it would be refused by IAM, in words that lead nowhere."""
    metadata_service.said.pop("meta-data/instance-id")

    with pytest.raises(Problem, match="does not say which instance this is"):
        agent.save(classmate("one"), Metadata(metadata_service.url))


def test_the_whole_agent_comes_from_where_all_find_it(s3, classmate, metadata_service, monkeypatch):
    """It is put there once for a class; three hundred copies of it would be half an hour of uploads."""
    here, metadata = classmate("one"), Metadata(metadata_service.url)
    ran: list[list[str]] = []
    done = type("Done", (), {"returncode": 0})
    monkeypatch.setattr(agent.subprocess, "run", lambda words, **_: ran.append(words) or done)

    agent.become_whole(here, metadata, "locks")

    fetched = here.path(f"opt/gpulab/agent-{KEEP.agent_sha256[:16]}.py")
    assert (BODY, str(fetched)) == (fetched.read_bytes(), ran[0][1])
