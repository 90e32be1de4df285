"""The stand-in for cloud-init: what it applies, what it leaves out and says so, and what it refuses."""

from __future__ import annotations

import base64
import gzip
import json

import pytest

from gpulab.sandbox.machines.process.disk import Disk
from gpulab.sandbox.machines.process.userdata import (
    Refused,
    apply,
    authorize,
    read_config,
    write_file,
)


@pytest.fixture
def disk(tmp_path) -> Disk:
    root = tmp_path / "disk"
    root.mkdir()
    return Disk(root)


@pytest.mark.parametrize(
    "raw",
    [
        b'#cloud-config\n{"write_files": []}',
        gzip.compress(b'#cloud-config\n{"write_files": []}', mtime=0),
        b"#cloud-config\nwrite_files: []\n",
    ],
)
def test_json_yaml_and_gzip_are_read_alike(raw):
    """Gpulab sends gzipped JSON; a person who tries something writes YAML."""
    assert {"write_files": []} == read_config(raw)


def test_no_user_data_is_an_empty_configuration():
    """An instance without user data boots all the same, as on EC2."""
    assert {} == read_config(b"")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"#!/bin/sh\nrm -rf ~\n", "begins with `#!/bin/sh` is not run here"),
        (b"Content-Type: multipart/mixed\n", "begins with `Content-Type: multipart/mixed`"),
        (b"\x1f\x8bnot gzip at all", "not readable as gzip"),
        (b"#cloud-config\n{a: [", "not readable as YAML"),
        (b"#cloud-config\n- a list", "not a mapping"),
    ],
)
def test_what_is_not_a_cloud_config_is_refused_by_name(raw, reason):
    """A script as user data would run on somebody's laptop, so it is refused and the console says so."""
    with pytest.raises(Refused, match=reason.replace("!", "\\!")):
        read_config(raw)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("text/plain", "hello"),
        ("b64", base64.b64encode(b"hello").decode()),
        ("gz+b64", base64.b64encode(gzip.compress(b"hello", mtime=0)).decode()),
    ],
)
def test_files_are_decoded_and_get_their_mode(disk, encoding, content):
    """The agent travels compressed and must arrive executable."""
    entry = {"path": "/usr/local/bin/tool", "encoding": encoding, "content": content}

    place = write_file({**entry, "permissions": "0755"}, disk)

    assert (disk.root / "usr/local/bin/tool", b"hello", 0o755) == (
        place,
        place.read_bytes(),
        place.stat().st_mode & 0o777,
    )


@pytest.mark.parametrize("path", ["/../../escaped", "relative", "/a/../../b", "/nul\0"])
def test_a_path_out_of_the_disk_is_refused(disk, path):
    """User data must not write into the home of whoever runs the sandbox."""
    with pytest.raises(Refused, match="not an absolute path"):
        write_file({"path": path, "content": "x"}, disk)


def test_a_link_out_of_the_disk_is_refused(disk, tmp_path):
    """A link that one entry or a program left must not carry the next entry outside."""
    (disk.root / "out").symlink_to(tmp_path)

    with pytest.raises(Refused, match="leads out of the disk"):
        write_file({"path": "/out/escaped", "content": "x"}, disk)

    assert not (tmp_path / "escaped").exists()


def test_what_is_left_out_is_named(disk):
    """A simulator that skips a part silently would let it pass here and fail on AWS."""
    said: list[str] = []

    apply({"packages": ["htop"], "runcmd": ["true"], "write_files": []}, disk, said.append)

    assert ["not applied on machines of kind `process`: packages, runcmd"] == said


def test_one_bad_file_does_not_stop_the_others(disk):
    """As in cloud-init, the rest of the configuration still counts."""
    said: list[str] = []
    files = [{"path": "no"}, {"path": "/etc/motd", "content": "hi"}]

    apply({"write_files": files}, disk, said.append)

    assert "hi" == (disk.root / "etc/motd").read_text()
    assert 1 == len(said)


def test_a_key_is_authorized_once(disk):
    """A restart reads the same key again."""
    authorize(disk, ["ssh-ed25519 AAAA me\n"])
    authorize(disk, ["ssh-ed25519 AAAA me", "ssh-ed25519 BBBB you", ""])

    expected = "ssh-ed25519 AAAA me\nssh-ed25519 BBBB you\n"
    assert (expected, 0o600) == (
        disk.authorized_keys.read_text(),
        disk.authorized_keys.stat().st_mode & 0o777,
    )


def test_the_login_user_is_the_one_of_the_specification(disk):
    """Images have their own user; the home and the login follow the specification."""
    write_file({"path": "/etc/gpulab/spec.json", "content": json.dumps({"user": "student"})}, disk)

    assert ("student", disk.root / "home/student") == (disk.user, disk.home)


@pytest.mark.parametrize("text", ['{"user": "../../x"}', "{", '{"user": 7}', "[]"])
def test_a_strange_user_is_not_followed(disk, text):
    """The user becomes part of a path."""
    write_file({"path": "/etc/gpulab/spec.json", "content": text}, disk)

    assert "ubuntu" == disk.user
