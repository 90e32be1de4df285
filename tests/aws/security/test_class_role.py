"""One role for all instances of a class: each reaches its own work in the bucket and nobody else's, held by the simulated IAM."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from gpulab.rights.roles import class_role

BUCKET, OWNER = "gpulab-123456789012-us-east-1", "course-c1"


@pytest.fixture
def two(sandbox, client, running):
    """Two instances with the role of a class, as a student who is root there can use it."""
    client("s3").create_bucket(Bucket=BUCKET)
    iam = client("iam")
    made = iam.create_role(RoleName="work", AssumeRolePolicyDocument='{"Statement": []}')["Role"]
    rights = json.dumps(class_role(BUCKET, OWNER))
    iam.put_role_policy(RoleName="work", PolicyName="keep-work", PolicyDocument=rights)
    iam.create_instance_profile(InstanceProfileName="work")
    iam.add_role_to_instance_profile(InstanceProfileName="work", RoleName="work")
    sandbox.advance(20)

    def student():
        instance_id = running(IamInstanceProfile={"Name": "work"})
        given = sandbox.credentials.for_role("123456789012", "work", instance_id, sandbox.now())
        s3 = client(
            "s3",
            aws_access_key_id=given["AccessKeyId"],
            aws_secret_access_key=given["SecretAccessKey"],
            aws_session_token=given["Token"],
        )
        place = f"{OWNER}/{made['RoleId']}:{instance_id}/"
        s3.put_object(Bucket=BUCKET, Key=f"{place}work/a.ipynb", Body=b"{}")
        return SimpleNamespace(s3=s3, place=place)

    return student(), student()


def said(call, **params):
    try:
        call(Bucket=BUCKET, **params)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "done"


def acts(who, place):
    """Everything that can be done with somebody's kept work, and what became of it."""
    key = f"{place}work/a.ipynb"
    return {
        "read": said(who.s3.get_object, Key=key),
        "write": said(who.s3.put_object, Key=f"{place}manifest.json", Body=b"{}"),
        "list": said(who.s3.list_objects_v2, Prefix=place),
        "delete": said(who.s3.delete_object, Key=key),
    }


def test_an_instance_reaches_its_own_work(two):
    """Otherwise the denials below would prove nothing."""
    ann, _ = two

    assert dict.fromkeys(("read", "write", "list", "delete"), "done") == acts(ann, ann.place)


def test_an_instance_cannot_read_or_change_anothers_work(two):
    """A student is root on their instance, so the role is in their hands; another's notebook is an exam paper."""
    ann, bo = two

    assert dict.fromkeys(("read", "write", "list", "delete"), "AccessDenied") == acts(ann, bo.place)


@pytest.mark.parametrize(
    "prefix", ["", f"{OWNER}/", f"{OWNER}/AROA*", f"{OWNER}/*/", f"{OWNER}/.seats/"]
)
def test_nobody_sees_who_else_is_there(two, prefix):
    """A list of everybody's files tells who works on what; a wildcard in a request is a letter like any other."""
    ann, _ = two

    assert "AccessDenied" == said(ann.s3.list_objects_v2, Prefix=prefix)


def test_what_only_the_teacher_writes_cannot_be_forged(two, client):
    """The agent of all instances runs as root on each, and the list of seats says whose work is whose."""
    ann, _ = two
    agent, seats = f"{OWNER}/.agent/agent-1.py", f"{OWNER}/.seats/w1/1.json"
    for key in (agent, seats):
        client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"the teacher's")

    found = {
        "fetch the agent": said(ann.s3.get_object, Key=agent),
        "change the agent": said(ann.s3.put_object, Key=agent, Body=b""),
        "read the seats": said(ann.s3.get_object, Key=seats),
        "change the seats": said(ann.s3.put_object, Key=seats, Body=b""),
    }
    assert {
        "fetch the agent": "done",
        "change the agent": "AccessDenied",
        "read the seats": "AccessDenied",
        "change the seats": "AccessDenied",
    } == found
