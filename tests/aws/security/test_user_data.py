"""What our launches write where others read it: user data and tags, unpacked as the instance does it and searched for secrets."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import random
import re
from typing import Any

import pytest
from tests.aws.conftest import a_client
from tests.aws.fleets.conftest import Klass, build
from tests.aws.launch import test_launch_bake as baking
from tests.aws.launch.conftest import Student

from gpulab.sandbox import Sandbox

# What is a secret by its form. Key ids begin as AWS says; the long random word is what a session token or a password of a program looks like.
SHAPES = {
    "key id": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "named": r"(?i)(?:token|password|secret|external_?id)\w*[\"']?\s*[:=]\s*[\"']?[\w+/=-]{20,}",
    "address": r"[\w.+-]+@[\w-]+\.[a-z]{2,}\b(?!\.service)",
}
PACKED = re.compile(r'b64decode\("([^"]+)"\)')


def unpacked(user_data: str) -> str:
    """Everything that is written in it, as the instance reads it: cloud-config, files, and the agent out of its wrapping."""
    text = gzip.decompress(base64.b64decode(user_data)).decode()
    files = [file["content"] for file in json.loads(text.partition("\n")[2])["write_files"]]
    agents = [
        bz2.decompress(base64.b64decode(p)).decode() for f in files for p in PACKED.findall(f)
    ]
    assert 1 == len(agents)
    return "\n".join([text, *files, *agents])


def written(sandbox: Sandbox) -> dict[str, str]:
    """User data and tags of every instance there has ever been, by its id: as anyone of the account can ask for them."""
    found = {}
    for instance in sandbox.instances():
        asked: dict[str, Any] = {"InstanceId": instance["InstanceId"], "Attribute": "userData"}
        answer = a_client("ec2").describe_instance_attribute(**asked)
        found[instance["InstanceId"]] = unpacked(answer["UserData"]["Value"]) + json.dumps(
            instance["Tags"]
        )
    return found


def secrets_in(text: str, known: list[str]) -> list[str]:
    """The names of what is found by its form, and the first letters of what is known to be secret."""
    by_form = [name for name, shape in SHAPES.items() if re.search(shape, text)]
    return by_form + [secret[:4] for secret in known if secret in text]


def secrets_of(student: Student) -> list[str]:
    """What this computer has and nobody else may: keys of the account, and each line of the key for ssh."""
    keys = student.context.cloud._open().get_credentials()
    lines = student.context.folder.key.read_text(encoding="utf-8").splitlines()[1:-1]
    return [keys.access_key, keys.secret_key, *lines]


CARELESS = {
    "key": lambda student: student.context.cloud._open().get_credentials().secret_key,
    "key for ssh": lambda student: secrets_of(student)[2],
    "token": lambda student: f"token={random.Random(7).randbytes(16).hex()}",
}


@pytest.fixture
def student(sandbox, tmp_path):
    """A student's computer before its account."""
    return Student(sandbox, tmp_path)


def test_a_careless_launch_is_found_out(sandbox, student):
    """The search is worth as much as what it finds: each kind of secret, put into what an instance is born with, below all wrapping."""
    sandbox.set_quota("L-3819A6DF", "us-east-1", 5000)
    student.up("first")  # makes the key for ssh
    launched = {
        what: student.up(f"week{n}", lab=secret(student)).instance.id
        for n, (what, secret) in enumerate(CARELESS.items())
    }

    texts = written(sandbox)

    found = {what: secrets_in(texts[id_], secrets_of(student)) for what, id_ in launched.items()}
    assert dict.fromkeys(CARELESS, 1) == {what: len(names) for what, names in found.items()}
    by_form = secrets_in("AKIAIOSFODNN7EXAMPLE of ann@student.example -----BEGIN PRIVATE KEY", [])
    assert ["key id", "private key", "address"] == by_form


@pytest.mark.parametrize("has_bucket", [False, True], ids=["no-bucket", "bucket"])
def test_a_students_launch_writes_no_secret(sandbox, tmp_path, has_bucket):
    """Everybody in the account may ask for user data, and every process on the instance reads it from the metadata."""
    student = baking.with_bucket(sandbox, tmp_path) if has_bucket else Student(sandbox, tmp_path)
    instance = student.up(course="dl-2026", lab="w1").instance

    found = written(sandbox)

    assert [instance.id] == list(found)
    assert "dl-2026" in found[instance.id]
    assert [] == secrets_in(found[instance.id], secrets_of(student))


def test_a_bake_writes_no_secret(sandbox, student):
    """What a builder is born with may stay in the image, which is shared."""
    baker = baking.with_host(student)
    baking.baked(baker)

    found = written(sandbox)

    assert 2 == len(found)
    assert set() == {s for text in found.values() for s in secrets_in(text, secrets_of(baker))}


def test_a_class_writes_neither_secrets_nor_addresses(sandbox, tmp_path):
    """A class shares one account: what one student's instance is born with, each of the others may read."""
    klass = Klass(sandbox, tmp_path, 3)
    klass.up()
    seats = klass.wish().everyone
    known = [build.SECRET.decode(), build.SECRET.hex()]
    known += [*(s.email for s in klass.people), *(s.name for s in klass.people)]
    known += [seat.account.external_id for seat in seats if seat.account.external_id]

    found = written(sandbox)

    assert 3 == len(found)
    assert set() == {s for text in found.values() for s in secrets_in(text, known)}
