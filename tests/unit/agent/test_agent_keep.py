"""The work and its kept copy: nothing is lost silently, and what comes back is what was saved."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer

from gpulab.agent import agent
from gpulab.agent.agent import (
    Glance,
    Here,
    Problem,
    Watch,
    change_limits,
    manifest,
    read_json,
    restore,
    save,
    scan,
    write_json,
)
from gpulab.bootstrap import Keep
from gpulab.bootstrap.shipping import shipped_agent, whole_agent

PREFIX = "s-1/week4/"
WHOLE = hashlib.sha256(whole_agent()).hexdigest()
LONG_AGO = 1_700_000_000
# Four hours before the end of the instances here: the day on which the tests run must not matter.
NOW = datetime(2026, 11, 23, 13, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def s3_server():
    """A simulated S3 on this host."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An S3 client with a fresh, versioned bucket `kept-work`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    client = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")

    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST"))  # noqa: S310 - our own server
    client.create_bucket(Bucket="kept-work")
    client.put_bucket_versioning(Bucket="kept-work", VersioningConfiguration={"Status": "Enabled"})
    keep = Keep("kept-work", PREFIX, "us-east-1", s3_server)
    client.put_object(Bucket="kept-work", Key=keep.agent_key, Body=keep.agent_body)
    return client


@pytest.fixture
def keeper(a_here, s3, s3_server, metadata_service):
    """Makes instances that keep their work in the bucket."""
    role = {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "Token": "token"}
    metadata_service.said["meta-data/iam/security-credentials/"] = "student"
    metadata_service.said["meta-data/iam/security-credentials/student"] = json.dumps(role)
    keep = {"bucket": "kept-work", "prefix": PREFIX, "region": "us-east-1", "endpoint": s3_server}
    return lambda name="one": a_here(name, keep={**keep, "agent": WHOLE})


def put(here: Here, path: str, content: bytes = b"x", *, at: int = LONG_AGO) -> Path:
    place = here.work / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    os.utime(place, (at, at))
    return place


def kept(s3, key: str) -> bytes:
    return s3.get_object(Bucket="kept-work", Key=PREFIX + key)["Body"].read()


def tree(here: Here) -> dict[str, object]:
    return {
        str(p.relative_to(here.work)): p.readlink()
        if p.is_symlink()
        else p.read_bytes()
        if p.is_file()
        else None
        for p in here.work.rglob("*")
    }


def test_the_kept_copy_is_plain_files_and_a_manifest(keeper, metadata, s3):
    """A student must be able to get at the work with any S3 browser, years later, without gpulab."""
    here = keeper()
    put(here, "week 4/notes ü.ipynb", b"{}")

    summary = save(here, metadata)
    listed = json.loads(kept(s3, "manifest.json"))

    assert (1, 1, 2, []) == (
        summary["files"],
        summary["uploaded"],
        summary["bytes"],
        summary["failed"],
    )
    assert b"{}" == kept(s3, "work/week 4/notes ü.ipynb")
    assert ["week 4/notes ü.ipynb"] == [entry["path"] for entry in listed["entries"]]
    assert (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        == listed["entries"][0]["sha256"]
    )
    assert (1, "l-1", "tf2") == (listed["version"], listed["launch"], listed["environment"])


def test_another_instance_gets_the_same_work_back(keeper, metadata):
    """The whole promise: `stop`, `up` in any zone, and everything is as it was."""
    one, two = keeper("one"), keeper("two")
    put(one, "a/b/c.py", b"print()").chmod(0o755)
    put(one, "empty file", b"")
    put(one, "new\nline", b"1")
    put(one, os.fsdecode(b"not utf-8 \xff"), b"2")
    put(one, "n" * 250, b"3")
    put(one, ".ipynb_checkpoints/x.ipynb", b"4")
    (one.work / "empty folder").mkdir()
    (one.work / "link").symlink_to("a/b/c.py")
    (one.work / "dangling").symlink_to("/nowhere")
    summary = save(one, metadata)

    said = restore(two, metadata)

    # Links and the empty folder come back too; who counts files counts six, as `gpulab stop` does.
    assert (6, "6 files restored and verified") == (summary["files"], said)
    assert tree(one) == tree(two)
    assert (0o755, LONG_AGO) == (
        (two.work / "a/b/c.py").stat().st_mode & 0o777,
        int((two.work / "a/b/c.py").stat().st_mtime),
    )


def test_a_large_file_travels_in_parts(keeper, metadata, s3, monkeypatch):
    """A checkpoint must not be held in memory as a whole."""
    monkeypatch.setattr(agent, "read_parts", lambda path, size: iter([b"a" * 2**23, b"b" * 7]))
    monkeypatch.setattr(agent, "_put", _put_in_parts)
    one = keeper("one")
    put(one, "model.ckpt", b"a" * 2**23 + b"b" * 7)

    save(one, metadata)
    body = kept(s3, "work/model.ckpt")

    assert b"a" * 2**23 + b"b" * 7 == body
    assert [] == s3.list_multipart_uploads(Bucket="kept-work").get("Uploads", [])


def _put_in_parts(bucket, place, size, key):
    upload = (
        bucket.ask("POST", key, query="uploads=")[2].partition(b"<UploadId>")[2].partition(b"<")[0]
    )
    return agent._put_parts(bucket, place, size, key, f"uploadId={upload.decode()}")


# `aws s3 cp - s3://BUCKET/KEY` as far as we use it; `mood` is how it ends.
AWS = """#!{python}
import os, sys, boto3
words = sys.argv[1:]
options = dict(zip(words[5::2], words[6::2]))
open({note!r}, "a").write(" ".join(words) + "\\n")
if {mood!r} == "fails":
    sys.exit("Unable to locate credentials")
bucket, _, key = words[4].removeprefix("s3://").partition("/")
s3 = boto3.client("s3", endpoint_url=options["--endpoint-url"], region_name=options["--region"])
if {mood!r} == "loses":
    sys.stdin.buffer.read(7)
s3.upload_fileobj(sys.stdin.buffer, bucket, key)
"""


@pytest.fixture
def with_aws(keeper, tmp_path):
    """Makes an instance whose image has the AWS CLI, in a mood; the second value is where it notes its words."""

    def make(mood="works"):
        here, note = keeper(mood), tmp_path / "aws.txt"
        tool = here.path("usr/local/bin/aws")
        tool.parent.mkdir(parents=True)
        tool.write_text(AWS.format(python=sys.executable, note=str(note), mood=mood))
        tool.chmod(0o755)
        return here, note

    return make


def test_the_aws_cli_of_an_image_sends_large_files_and_only_those(
    with_aws, metadata, s3, monkeypatch
):
    """It sends parts side by side and is kept well by AWS; one process for each of a thousand notebooks would take minutes."""
    monkeypatch.setattr(agent, "WHOLE_BYTES", 2**20)
    here, note = with_aws()
    body = os.urandom(2**20 + 1)
    put(here, "model.ckpt", body)
    put(here, "a.ipynb", b"{}")

    summary = save(here, metadata)

    listed = {entry["path"]: entry for entry in json.loads(kept(s3, "manifest.json"))["entries"]}
    newest = s3.head_object(Bucket="kept-work", Key=f"{PREFIX}work/model.ckpt")["VersionId"]
    (words,) = note.read_text().splitlines()
    assert (body, b"{}") == (kept(s3, "work/model.ckpt"), kept(s3, "work/a.ipynb"))
    assert (hashlib.sha256(body).hexdigest(), newest) == (
        listed["model.ckpt"]["sha256"],
        listed["model.ckpt"]["version"],
    )
    assert words.startswith(f"s3 cp --only-show-errors - s3://kept-work/{PREFIX}work/model.ckpt ")
    assert (2, []) == (summary["uploaded"], summary["failed"])


@pytest.mark.parametrize("mood", ["fails", "loses"])
def test_where_the_aws_cli_does_not_do_it_we_do(with_aws, metadata, s3, monkeypatch, mood):
    """An old or a broken one on somebody's image must not cost a checkpoint, nor may half of one pass for it."""
    monkeypatch.setattr(agent, "WHOLE_BYTES", 2**20)
    here, note = with_aws(mood)
    body = os.urandom(2**20 + 1)
    put(here, "model.ckpt", body)

    summary = save(here, metadata)

    assert body == kept(s3, "work/model.ckpt")
    assert (1, 1, []) == (
        len(note.read_text().splitlines()),
        summary["uploaded"],
        summary["failed"],
    )


def test_a_file_cut_short_under_the_aws_cli_keeps_its_last_copy(
    with_aws, metadata, s3, monkeypatch
):
    """A training replaces its checkpoint while it travels: half of the new one must not become the kept one."""
    monkeypatch.setattr(agent, "WHOLE_BYTES", 2**20)
    here, _ = with_aws()
    put(here, "model.ckpt", b"old" * 2**20)
    save(here, metadata)
    put(here, "model.ckpt", b"new" * 2**20, at=LONG_AGO + 9)

    def cut_short(path, size):
        yield b"new"
        raise OSError("model.ckpt became shorter while it was read")

    monkeypatch.setattr(agent, "read_parts", cut_short)

    summary = save(here, metadata)

    assert ["model.ckpt: model.ckpt became shorter while it was read"] == summary["failed"]
    assert b"old" * 2**20 == kept(s3, "work/model.ckpt")


def test_only_changes_travel(keeper, metadata):
    """Once a minute over thousands of files must cost next to nothing."""
    here = keeper()
    for number in range(5):
        put(here, f"{number}.ipynb", b"old")
    save(here, metadata)
    put(here, "3.ipynb", b"new", at=LONG_AGO + 1)

    summary = save(here, metadata)

    assert (5, 1, 3) == (summary["files"], summary["uploaded"], summary["bytes"])


def test_a_file_changed_twice_within_a_tick_is_seen(keeper, metadata, s3):
    """Same size, same time stamp: the file system's clock is coarse, so a young file is never believed unchanged."""
    here = keeper()
    stamp = time.time_ns()
    place = put(here, "a.txt", b"one")
    os.utime(place, ns=(stamp, stamp))
    save(here, metadata)
    place.write_bytes(b"two")
    os.utime(place, ns=(stamp, stamp))

    save(here, metadata)

    assert b"two" == kept(s3, "work/a.txt")


def test_a_deleted_file_leaves_the_copy_and_its_versions_stay(keeper, metadata, s3):
    """What a student deletes should not come back by itself, and must be there for the one who regrets it."""
    here = keeper()
    put(here, "gone.txt", b"regret")
    put(here, "stays.txt")
    save(here, metadata)
    (here.work / "gone.txt").unlink()

    save(here, metadata)
    paths = [entry["path"] for entry in json.loads(kept(s3, "manifest.json"))["entries"]]
    versions = s3.list_object_versions(Bucket="kept-work", Prefix=PREFIX + "work/gone.txt")[
        "Versions"
    ]
    old = s3.get_object(
        Bucket="kept-work", Key=PREFIX + "work/gone.txt", VersionId=versions[0]["VersionId"]
    )

    assert ["stays.txt"] == paths
    assert b"regret" == old["Body"].read()


def test_what_is_not_kept_is_said(keeper, metadata, monkeypatch):
    """A student who counts on a copy must be told what is not in it."""
    monkeypatch.setattr(agent, "LARGEST_BYTES", 2**30)
    here = keeper()
    put(here, "__pycache__/x.pyc")
    os.mkfifo(here.work / "pipe")
    with (here.work / "huge").open("wb") as huge:
        huge.truncate(2**30 + 1)

    summary = save(here, metadata)

    assert [
        {"path": "__pycache__", "reason": "excluded"},
        {"path": "huge", "reason": "over 1 GiB"},
        {"path": "pipe", "reason": "not a file"},
    ] == summary["skipped"]


def test_a_file_that_cannot_be_read_keeps_its_last_copy_and_is_said(keeper, metadata, monkeypatch):
    """A bad block in one file must not stop the others, and must not go unnoticed."""
    here = keeper()
    put(here, "bad.bin", b"good once")
    save(here, metadata)
    put(here, "bad.bin", b"unreadable", at=LONG_AGO + 9)
    put(here, "other.txt", b"fine")
    read = agent.read_parts

    def fail(path, size):
        if path.name == "bad.bin":
            raise OSError(5, "Input/output error")
        return read(path, size)

    monkeypatch.setattr(agent, "read_parts", fail)

    summary = save(here, metadata)
    entries = read_json(here.path("var/lib/gpulab/kept.json"))["entries"]

    assert ["bad.bin: Input/output error"] == summary["failed"]
    assert {"bad.bin": 9, "other.txt": 4} == {
        path: entry["size"] for path, entry in entries.items()
    }


def test_a_file_that_grows_while_it_is_read_is_kept_as_it_was_and_again_next_time(
    keeper, metadata, s3, monkeypatch
):
    """A TensorBoard log is never still; its beginning is worth keeping, and the rest follows."""
    here = keeper()
    place = put(here, "events.log", b"one,")
    read = agent.read_parts

    def grow(path, size):
        yield from read(path, size)
        with path.open("ab") as log:
            log.write(b"more,")

    monkeypatch.setattr(agent, "read_parts", grow)
    save(here, metadata)
    first = kept(s3, "work/events.log")
    monkeypatch.setattr(agent, "read_parts", read)

    save(here, metadata)

    assert b"one,more,more," == first
    assert place.read_bytes() == kept(s3, "work/events.log")


def test_restoring_overwrites_nothing(keeper, metadata):
    """What was made on the new instance before the copy arrived is the newer work."""
    one, two = keeper("one"), keeper("two")
    put(one, "a.ipynb", b"kept")
    put(one, "same.ipynb", b"same")
    save(one, metadata)
    put(two, "a.ipynb", b"newer here")
    put(two, "same.ipynb", b"same", at=LONG_AGO + 5)

    restore(two, metadata)

    assert {"a.ipynb": b"newer here", "a.ipynb.kept": b"kept", "same.ipynb": b"same"} == tree(two)


def test_a_copy_that_is_not_what_its_manifest_says_is_refused(keeper, metadata, s3):
    """A damaged copy must be found when it comes back, not in the oral exam."""
    one, two = keeper("one"), keeper("two")
    put(one, "a.ipynb", b"right")
    put(one, "b.ipynb", b"fine")
    save(one, metadata)
    listed = json.loads(kept(s3, "manifest.json"))
    listed["entries"][0]["version"] = ""
    s3.put_object(Bucket="kept-work", Key=PREFIX + "manifest.json", Body=json.dumps(listed))
    s3.put_object(Bucket="kept-work", Key=PREFIX + "work/a.ipynb", Body=b"wrong")

    with pytest.raises(
        Problem, match=r"1 of 2 files were not restored; 'a.ipynb': the kept copy is not what"
    ):
        restore(two, metadata)

    assert {"b.ipynb": b"fine"} == tree(two)


def test_an_instance_that_could_not_restore_never_replaces_the_copy(keeper, metadata, s3):
    """The worst bug there could be: an empty work directory saved over a term's work."""
    one, two = keeper("one"), keeper("two")
    put(one, "term.ipynb", b"all of it")
    save(one, metadata)
    s3.delete_object(Bucket="kept-work", Key=PREFIX + "work/term.ipynb")
    before = kept(s3, "manifest.json")
    listed = json.loads(before)
    listed["entries"][0]["version"] = "no-such-version"
    s3.put_object(Bucket="kept-work", Key=PREFIX + "manifest.json", Body=json.dumps(listed))

    with pytest.raises(Problem, match="1 of 1 files were not restored"):
        save(two, metadata)

    assert ["term.ipynb"] == [
        entry["path"] for entry in json.loads(kept(s3, "manifest.json"))["entries"]
    ]


def test_a_path_that_leads_out_of_the_work_is_refused(keeper, metadata, s3):
    """The agent is root: a manifest somebody edited must not write /etc."""
    two = keeper("two")
    entry = {
        "path": "../../../etc/cron.d/x",
        "size": 1,
        "mtime_ns": 1,
        "mode": 420,
        "sha256": "",
        "link": None,
        "key": "k",
    }
    whole = {"version": 1, "entries": [entry]}
    s3.put_object(Bucket="kept-work", Key=PREFIX + "manifest.json", Body=json.dumps(whole))

    with pytest.raises(Problem, match="leads out of the work directory"):
        restore(two, metadata)

    assert not two.path("etc/cron.d").exists()


def test_without_a_role_saving_says_so(keeper, metadata, metadata_service):
    """A bucket without a role is a mistake of the launch; the sentence must name it."""
    here = keeper()
    del metadata_service.said["meta-data/iam/security-credentials/student"]

    with pytest.raises(Problem, match="this instance has no role, so it cannot reach S3"):
        save(here, metadata)


def test_the_last_key_is_used_while_the_metadata_service_is_silent(keeper, metadata, s3):
    """A key lives for hours; a metadata service that is blocked must not cost the work of the evening."""
    here = keeper()
    put(here, "before.ipynb", b"1")
    save(here, metadata)
    put(here, "after.ipynb", b"2")

    summary = save(here, agent.Metadata("http://127.0.0.1:9"))

    assert (1, b"2") == (summary["uploaded"], kept(s3, "work/after.ipynb"))
    assert 0o600 == here.path("run/gpulab/role.json").stat().st_mode & 0o777


def test_without_a_key_and_without_metadata_the_sentence_names_the_metadata(keeper):
    """`no role` would send a TA to IAM, where nothing is wrong."""
    here = keeper()

    with pytest.raises(Problem, match="the metadata service does not answer"):
        save(here, agent.Metadata("http://127.0.0.1:9"))


def test_a_launch_that_changed_nothing_vouches_for_the_copy_all_the_same(
    a_here, keeper, metadata, s3
):
    """`gpulab stop` compares the launch in the manifest; without this, nobody could stop after only looking."""
    one = keeper()
    put(one, "a.ipynb", b"{}")
    save(one, metadata)
    other = a_here("other", keep=one.spec["keep"], launch="l-2")

    restore(other, metadata)
    save(other, metadata)

    assert "l-2" == json.loads(kept(s3, "manifest.json"))["launch"]


def test_on_a_full_disk_the_work_is_kept(keeper, metadata, s3):
    """A full disk is when a student deletes in haste; the agent's own notes must not stand before the copy."""
    here = keeper()
    put(here, "a.ipynb", b"1")
    save(here, metadata)
    put(here, "b.ipynb", b"2")
    notes = here.path("var/lib/gpulab")
    known = (notes / "kept.json").read_text()
    (notes / f".kept.json.{os.getpid()}").mkdir()  # in the way of the fresh file

    summary = save(here, metadata)

    assert (1, []) == (summary["uploaded"], summary["failed"])
    assert known == (notes / "kept.json").read_text()
    assert ["a.ipynb", "b.ipynb"] == [
        entry["path"] for entry in json.loads(kept(s3, "manifest.json"))["entries"]
    ]


def test_a_refusal_is_said_in_the_words_of_s3(keeper, metadata, monkeypatch):
    """`AccessDenied` tells a TA what to change; `could not save` tells nobody anything."""
    here = keeper()
    denied = (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    monkeypatch.setattr(agent.Bucket, "_ask", lambda *_: denied)

    with pytest.raises(
        Problem, match=r"S3 does not GET kept-work/s-1/week4/manifest.json: AccessDenied"
    ):
        save(here, metadata)


def test_requests_are_signed_as_aws_signs_them():
    """Moto believes any signature and S3 believes none that is wrong; botocore is the reference."""
    keep = {
        "bucket": "kept-work",
        "region": "eu-west-1",
        "endpoint": "https://s3.eu-west-1.amazonaws.com",
    }
    key = {"AccessKeyId": "AKIAX", "SecretAccessKey": "wJalr+x/y", "Token": "IQo//tok=="}
    path, query, digest = (
        agent.s3_path(keep, "p/ü #?%41 b~.txt"),
        "partNumber=2&uploadId=a%2Fb%3D",
        "ab" * 32,
    )

    ours = agent.signed(keep, key, LONG_AGO, ("PUT", path, query, digest))
    theirs = AWSRequest(
        "PUT", f"{keep['endpoint']}{path}?{query}", headers={"X-Amz-Content-SHA256": digest}
    )
    theirs.context["timestamp"] = ours["x-amz-date"]
    signer = S3SigV4Auth(
        Credentials(key["AccessKeyId"], key["SecretAccessKey"], key["Token"]), "s3", "eu-west-1"
    )
    theirs.headers["X-Amz-Date"] = ours["x-amz-date"]
    theirs.headers["X-Amz-Security-Token"] = key["Token"]
    canonical = signer.canonical_request(theirs)
    signature = signer.signature(signer.string_to_sign(theirs, canonical), theirs)

    assert ours["Authorization"].endswith(f"Signature={signature}"), canonical


def test_the_manifest_lists_everything_with_hashes(here):
    """Without a bucket the laptop pulls over ssh and verifies by this list."""
    put(here, "a.txt", b"abc")
    (here.work / "link").symlink_to("a.txt")
    (here.work / "empty").mkdir()
    put(here, "__pycache__/x.pyc")

    lines = list(manifest(here))

    assert {
        "a.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "link": "",
        "empty/": "",
    } == {line["path"]: line["sha256"] for line in lines if "skipped" not in line}
    assert [{"path": "__pycache__", "reason": "excluded", "skipped": True}] == [
        x for x in lines if "skipped" in x
    ]


@pytest.fixture
def many(here):
    """The instance with 20,000 files in its work, in memory where this system can."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as place:
        for folder in range(100):
            Path(place, f"d{folder}").mkdir()
            for number in range(200):
                Path(place, f"d{folder}/{number}.py").touch()
        here.work.rmdir()
        here.work.symlink_to(place)
        yield here


def test_twenty_thousand_files_are_all_seen_by_a_watcher_that_stays_small(many):
    """A data set unpacked into the work must not blow the agent up, and nothing in it may be overlooked."""
    listed, first, changed = scan(many.work), Glance(), Glance()
    scan(many.work, first)
    (many.work / "d99/199.py").write_text("changed")
    scan(many.work, changed)

    assert (20_000, 0) == (len(listed.files), len(first))
    assert (changed.print != first.print, []) == (True, listed.skipped)
    assert changed.newest == (many.work / "d99/199.py").stat().st_mtime


@pytest.mark.parametrize(("look_takes_s", "looks"), [(0.01, 14), (0.5, 14), (2.0, 7), (60.0, 2)])
def test_a_tree_that_takes_long_to_look_at_is_looked_at_less_often(
    here, metadata, monkeypatch, look_takes_s, looks
):
    """A hard cut may cost a minute of edits, and looking may not cost what a training feels: each limits the other."""
    watch, began = Watch(here, metadata), NOW
    spent: list[float] = [0.0]
    monkeypatch.setattr(agent.time, "process_time", lambda: spent[0])

    def look(work, seen):
        spent[0] += look_takes_s

    monkeypatch.setattr(agent, "scan", look)
    for now in (began + s for s in range(0, 601, 5)):
        watch.due.update(arm=now, sample=now, tags=now, beat=now)
        watch.step(now)

    assert looks == round(spent[0] / look_takes_s)


def test_an_empty_folder_and_a_full_one_are_told_apart(here):
    """The first save vouches for the launch, also when nothing was made yet: 0 means that nothing was saved."""
    empty, full, again = Glance(), Glance(), Glance()
    scan(here.work, empty)
    put(here, "a.ipynb")
    scan(here.work, full)
    scan(here.work, again)

    assert 3 == len({0, empty.print, full.print})
    assert full.print == again.print


def test_the_watcher_saves_what_changed_and_shows_it(
    keeper, metadata, monkeypatch, metadata_service
):
    """The copy must follow by itself, and the status must say how far it is."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata_service.url)
    here = keeper()
    write_json(
        here.path("run/gpulab/phases.json"), {"phases": [{"name": "x", "state": "done"}] * 7}
    )
    watch = Watch(here, metadata)
    watch._keep_armed = lambda now: None  # type: ignore[method-assign]
    put(here, "a.ipynb", b"{}")
    now = metadata.now() - 86400 * 365

    watch._save_if_changed(now)
    watch.saving.wait(60)
    watch.keeper.collect(watch)
    watch._save_if_changed(now)

    assert {"files": 1, "skipped": [], "failed": []} == watch.live["keep"]
    assert isinstance(watch.live["saved_at"], str)
    assert watch.saving is None


def _delete_the_copy(s3) -> None:
    for kind in ("Versions", "DeleteMarkers"):
        for one in s3.list_object_versions(Bucket="kept-work", Prefix=PREFIX).get(kind, []):
            s3.delete_object(Bucket="kept-work", Key=one["Key"], VersionId=one["VersionId"])


@pytest.mark.parametrize("changes", [True, False])
def test_a_bucket_that_has_gone_since_the_last_save_keeps_nothing(keeper, metadata, s3, changes):
    """Somebody tidies up the account during a lab: all that was saved is gone, and nothing may say otherwise."""
    here = keeper()
    put(here, "a.ipynb", b"{}")
    save(here, metadata)
    if changes:
        put(here, "b.ipynb", b"{}")
    _delete_the_copy(s3)
    s3.delete_bucket(Bucket="kept-work")

    with pytest.raises(Problem, match=r"S3 does not GET kept-work/s-1/week4/.*: NoSuchBucket"):
        save(here, metadata)


@pytest.mark.parametrize(
    ("method", "key", "said"),
    [
        ("PUT", f"{PREFIX}work/a.ipynb", "NoSuchBucket"),
        ("POST", f"{PREFIX}work/a.ipynb", "NoSuchBucket"),
        ("PUT", f"{PREFIX}work/a.ipynb?elsewhere", "PermanentRedirect"),
    ],
)
def test_what_s3_did_not_take_is_never_taken_for_saved(
    keeper, metadata, monkeypatch, method, key, said
):
    """It may also go while a save is under way; an answer that is no success is a failure, whatever its number."""
    status = 301 if said == "PermanentRedirect" else 404
    answer = (status, {}, f"<Error><Code>{said}</Code></Error>".encode())
    monkeypatch.setattr(agent.Bucket, "_ask", lambda *_: answer)

    with pytest.raises(Problem, match=f"S3 does not {method} kept-work/{PREFIX}.*: {said}"):
        agent.Bucket(keeper(), metadata).ask(method, key, body=b"{}")


def test_a_copy_that_was_deleted_is_made_again_from_all_that_is_here(keeper, metadata, s3):
    """`rm` while the instance is up: a manifest that names what was deleted could never be restored."""
    here, other = keeper("one"), keeper("other")
    put(here, "a.ipynb", b"old")
    save(here, metadata)
    put(here, "b.ipynb", b"new")
    _delete_the_copy(s3)

    summary = save(here, metadata)
    restore(other, metadata)

    assert (2, []) == (summary["uploaded"], summary["failed"])
    assert {"a.ipynb": b"old", "b.ipynb": b"new"} == tree(other)


def test_where_the_bucket_has_gone_the_status_and_the_notice_say_so(
    keeper, metadata, monkeypatch, metadata_service, s3
):
    """Two minutes are enough for `gpulab pull`, if a student is not told that the work is safe."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata_service.url)
    here = keeper()
    put(here, "a.ipynb", b"{}")
    watch = Watch(here, metadata)
    watch._keep_armed = lambda now: None  # type: ignore[method-assign]
    watch._look_for_trouble = lambda: None  # type: ignore[method-assign]
    for phase in ("before", "after"):
        watch._start_save()
        assert watch.saving is not None
        watch.saving.wait(60)
        watch.step(NOW)
        if phase == "before":
            saved_at = watch.live["saved_at"]
            _delete_the_copy(s3)
            s3.delete_bucket(Bucket="kept-work")
    metadata_service.said["meta-data/spot/instance-action"] = (
        '{"action": "terminate", "time": "2026-11-23T14:30:00Z"}'
    )

    watch.step(NOW + 5)
    assert watch.saving is not None
    watch.saving.wait(60)
    watch.step(NOW + 10)

    why = "(S3 does not GET kept-work/s-1/week4/manifest.json: NoSuchBucket)"
    not_saved = f"Not all of the work is saved {why}; `gpulab pull` brings it to the laptop"
    taken = "AWS takes this spot instance back at 14:30 UTC."
    back = "`gpulab up` brings it back on another instance."
    status = read_json(here.path("run/gpulab/status.json"))
    assert (saved_at, [why[1:-1]]) == (status["saved_at"], status["keep"]["failed"])
    assert [f"gpulab: {taken} {not_saved}; {back}", f"gpulab: {not_saved}. {taken}"] == here.path(
        "wall"
    ).read_text().splitlines()


def test_the_shipped_agent_fetches_the_rest_of_itself_and_checks_it(
    keeper, s3, metadata_service, s3_server
):
    """User data has no room for the part that keeps; it comes from the bucket, and only if it is the one we launched with."""
    here = keeper()
    put(here, "a.ipynb", b"{}")
    program = here.path("usr/local/bin/gpulab-agent")
    program.parent.mkdir(parents=True)
    program.write_text(shipped_agent(has_bucket=True))
    env = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_service.url}
    command = [sys.executable, program, "--root", here.root, "save"]

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    here.path(f"opt/gpulab/agent-{WHOLE[:16]}.py").unlink()
    key = Keep("kept-work", PREFIX, "us-east-1", s3_server).agent_key
    s3.put_object(Bucket="kept-work", Key=key, Body=b"print('evil')")
    refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert (0, 1) == (done.returncode, json.loads(done.stdout)["uploaded"]), done.stderr
    assert (1, "") == (refused.returncode, refused.stdout)
    assert "is not the agent of this launch" in refused.stderr


@pytest.mark.parametrize(
    ("refusals", "said"), [(29, ""), (30, "cannot be read (403)")], ids=["late", "never"]
)
def test_a_role_that_s3_does_not_know_yet_is_waited_for(
    keeper, metadata, monkeypatch, refusals, said
):
    """`gpulab init` and `up` in one breath: the locks are in there, and without them there is no JupyterLab."""
    here, waits, real = keeper(), [], agent.connect
    answers = [403] * refusals

    class Refusing:
        request = staticmethod(lambda *_, **__: None)
        read = staticmethod(lambda: b"<Error/>")

        def getresponse(self):
            self.status = answers.pop()
            return self

    monkeypatch.setattr(agent.time, "sleep", waits.append)
    monkeypatch.setattr(agent, "connect", lambda url: Refusing() if answers else real(url))
    failed = ""

    try:
        agent.become_whole(here, metadata, "locks")
    except agent.Problem as error:
        failed = str(error)

    assert (min(refusals, 29), True) == (len(waits), failed.endswith(said))
    assert bool(said) != here.path(f"opt/gpulab/agent-{WHOLE[:16]}.py").exists()


def test_a_file_is_read_in_parts(here):
    """A checkpoint of ten gigabytes must not be held in memory."""
    place = put(here, "model.ckpt", b"x" * (2**25 + 5))

    parts = [len(part) for part in agent.read_parts(place, place.stat().st_size)]

    assert [2**25, 5] == parts


@pytest.mark.parametrize(
    ("state", "saves"), [("waiting", False), ("running", False), ("done", True)]
)
def test_nothing_is_saved_before_the_work_was_restored(keeper, metadata, monkeypatch, state, saves):
    """While the copy is still coming back, what is here is less than what is kept."""
    here = keeper()
    phases = [{"name": "x", "state": state}] * 7
    write_json(here.path("run/gpulab/phases.json"), {"phases": phases})
    watch = Watch(here, metadata)
    started: list[bool] = []
    monkeypatch.setattr(watch, "_start_save", lambda: started.append(True))
    put(here, "a.ipynb")

    watch._save_if_changed(0.0)

    assert saves == bool(started)


def _tell_of_the_launch(metadata_service, at="2026-11-23T12:59:50Z", **changes):
    document = {"instanceId": "i-0abc", "pendingTime": at, "availabilityZone": "us-east-1d"}
    document["instanceType"] = "g4dn.xlarge"
    said = {
        "dynamic/instance-identity/document": json.dumps(document),
        "meta-data/instance-life-cycle": "spot",
        "meta-data/public-ipv4": "203.0.113.7",
        "meta-data/tags/instance/gpulab:disk": "60",
    }
    metadata_service.said.update({**said, **changes})


def _told(s3) -> list[dict]:
    body = s3.get_object(Bucket="kept-work", Key="s-1/.ledger/i-0abc.jsonl")["Body"].read()
    return [json.loads(line) for line in body.splitlines()]


def _used(here: Here, since: str, seconds: int) -> None:
    used = {"since": since, "seconds": seconds, "idle_seconds": 0}
    write_json(here.path("run/gpulab/status.json"), {"used": used})


def test_each_save_tells_what_the_instance_costs(keeper, metadata, metadata_service, s3):
    """A laptop that is lost takes its ledger with it; the instance knows as much, and leaves it beside the work."""
    _tell_of_the_launch(metadata_service)
    here = keeper()
    here.spec["facts"] = {"launched": {"usd_per_hour": "0.2158"}, "address": {"usd_per_hour": "0"}}
    put(here, "notes.md")
    save(here, metadata)
    _used(here, "2026-11-23T13:00:20Z", 600)
    agent.fact(here, "ended", "2026-11-23T13:30:00Z", by="user", how="terminated")

    save(here, metadata)

    launched, disk, address, used = _told(s3)
    assert ("launched", "i-0abc", "agent") == tuple(
        launched[k] for k in ("kind", "subject", "source")
    )
    assert {
        "zone": "us-east-1d",
        "instance_type": "g4dn.xlarge",
        "market": "spot",
        "launch_id": "l-1",
        "name": "week4",
        "owner": "s-1",
        "expires_at": "2026-11-23T17:00:00Z",
        "usd_per_hour": "0.2158",
    } == launched["details"]
    assert ("i-0abc/root", "60") == (disk["subject"], disk["details"]["size_gb"])
    assert ({"usd_per_hour": "0"}, "600") == (address["details"], used["details"]["seconds"])


def test_an_end_that_was_foreseen_is_told_with_half_a_line_left_out(
    keeper, metadata, metadata_service, s3
):
    """The watcher's own words go with the rest; what a full disk broke off would spoil the file for whoever reads it."""
    _tell_of_the_launch(metadata_service)
    here = keeper()
    change_limits(here, instance="i-0abc")
    agent.fact(here, "ended", "2026-11-23T13:30:00Z", by="user", how="terminated")
    with (here.work / ".gpulab/ledger/i-0abc.jsonl").open("a") as out:
        out.write('{"kind": "usa')

    save(here, metadata)

    assert ["launched", "volume", "address", "ended"] == [one["kind"] for one in _told(s3)]


def test_a_stop_between_two_runs_is_told_by_the_second(keeper, metadata, metadata_service, s3):
    """AWS forgets when a stopped instance was stopped; the night in between must not be charged as hours of a GPU."""
    here = keeper()
    _tell_of_the_launch(metadata_service)
    put(here, "notes.md")
    save(here, metadata)
    _used(here, "2026-11-23T13:00:20Z", 600)
    save(here, metadata)
    _tell_of_the_launch(metadata_service, at="2026-11-24T08:00:00Z")
    _used(here, "2026-11-24T08:00:30Z", 30)

    save(here, metadata)

    said = [(one["kind"], one["at"], one["details"].get("how")) for one in _told(s3)]
    assert ("ended", "2026-11-23T13:10:20Z", "stopped") in said
    assert ["2026-11-23T12:59:50Z", "2026-11-24T08:00:00Z"] == [
        at for kind, at, _ in said if kind == "launched"
    ]


@pytest.mark.parametrize("size", ["", "0x40", "-60", "sixty"])
def test_a_size_that_is_none_is_not_told(keeper, metadata, metadata_service, s3, size):
    """Whoever may tag can write anything there; a disk of unknown size is said to be unknown, not charged."""
    _tell_of_the_launch(metadata_service, **{"meta-data/tags/instance/gpulab:disk": size})

    save(keeper(), metadata)

    assert ["launched", "address"] == [one["kind"] for one in _told(s3)]


def test_the_work_is_kept_though_its_costs_cannot_be_told(keeper, metadata, metadata_service, s3):
    """A file more or less in the ledger is never worth a student's afternoon."""
    _tell_of_the_launch(metadata_service, **{"dynamic/instance-identity/document": "{}x"})
    here = keeper()
    put(here, "notes.md")

    summary = save(here, metadata)

    assert (1, []) == (summary["uploaded"], summary["failed"])
    assert 0 == s3.list_objects_v2(Bucket="kept-work", Prefix="s-1/.ledger/")["KeyCount"]


@pytest.mark.parametrize(
    ("prefix", "place"),
    [
        ("course-c1/AROA1:{instance}/", "course-c1/AROA1:i-0abc/.ledger/i-0abc.jsonl"),
        ("course-c1/lab-s1/", "course-c1/.ledger/i-0abc.jsonl"),
        ("s-1/.bake/tf2/", "s-1/.ledger/i-0abc.jsonl"),
    ],
)
def test_its_costs_lie_where_it_may_write_and_no_work_lies(
    keeper, metadata, metadata_service, s3, prefix, place
):
    """Where a class shares a role, an instance reaches the folder of its own id only; work that is deleted takes no other's costs along."""
    _tell_of_the_launch(metadata_service)
    here = keeper()
    here.spec["keep"] = {**here.spec["keep"], "prefix": prefix}

    agent.tell_costs(here, metadata)

    found = s3.list_objects_v2(Bucket="kept-work")["Contents"]
    assert [place] == [one["Key"] for one in found if ".ledger/" in one["Key"]]


def test_an_instance_says_that_it_lives_though_nothing_changes(keeper, metadata):
    """Its last word is what a rebuilt ledger charges to; with the work unchanged for an hour that would be an hour too little."""
    here = keeper()
    write_json(here.path("run/gpulab/phases.json"), {"phases": [{"state": "done"}] * 9})
    watch, began = Watch(here, metadata), NOW
    saves: list[float] = []
    watch._start_save = lambda: saves.append(now)  # type: ignore[method-assign]
    # The kernel counts the memory's troubles of everybody on this computer, and each is written into the work.
    watch._look_for_trouble = lambda: None  # type: ignore[method-assign]

    for now in (began + s for s in range(0, 1000, 5)):
        watch.due.update(arm=now, sample=now, tags=now)
        watch.step(now)

    assert [0, 300, 600, 900] == [round(at - began) for at in saves]


SAVING = """
import runpy, sys, time
agent = runpy.run_path(sys.argv[1])
names, put = agent["save"].__globals__, agent["put_file"]

def put_over_a_thin_line(bucket, place, path):
    time.sleep(float(sys.argv[3]))
    return put(bucket, place, path)

names.update(SLICE_S=0.2, put_file=put_over_a_thin_line)
sys.exit(agent["main"](["--root", sys.argv[2], "save"]))
"""


def a_save_that_is_cut(here: Here, metadata_service, tmp_path, *, when, file_s=0.0) -> None:
    """Run the whole agent's `save` as a program, and kill it without a word when something holds."""
    program = tmp_path / "whole.py"
    program.write_bytes(whole_agent())
    endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_service.url}
    saving = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(program), here.root, str(file_s)],
        env=os.environ | endpoint,
    )
    try:
        until = time.monotonic() + 60
        while not when():
            assert saving.poll() is None, "it came to its end before the cut"
            assert time.monotonic() < until, "it did not come so far in time"
            time.sleep(0.02)
    finally:
        saving.kill()
        saving.wait()


def listed(s3) -> dict[str, dict]:
    try:
        return {e["path"]: e for e in json.loads(kept(s3, "manifest.json"))["entries"]}
    except s3.exceptions.NoSuchKey:
        return {}


def test_a_first_save_that_is_cut_gives_back_what_it_has_brought(
    keeper, metadata, metadata_service, s3, tmp_path
):
    """A data set is unpacked, its save takes ten minutes, and AWS cuts the power after five: half of it must come back, and be called half."""
    here = keeper()
    for number in range(200):
        put(here, f"set/{number}.txt", f"{number}".encode())

    a_save_that_is_cut(
        here, metadata_service, tmp_path, when=lambda: len(listed(s3)) >= 20, file_s=0.1
    )
    other = keeper("other")
    said = restore(other, metadata)
    after = listed(s3)
    second = save(other, metadata)

    assert False is json.loads(_version_before(s3, "manifest.json"))["complete"]
    assert f"{len(after)} files restored and verified; the last save was cut before its end" == said
    assert {path: path.split("/")[-1][:-4] for path in after} == {
        path: content.decode() for path, content in tree(other).items() if content is not None
    }
    assert (0, len(after)) == (second["uploaded"], second["files"])
    assert "complete" not in json.loads(kept(s3, "manifest.json"))


def _version_before(s3, key: str) -> bytes:
    versions = s3.list_object_versions(Bucket="kept-work", Prefix=PREFIX + key)["Versions"]
    (before,) = versions[1:2]
    return s3.get_object(Bucket="kept-work", Key=PREFIX + key, VersionId=before["VersionId"])[
        "Body"
    ].read()


def test_a_later_save_that_is_cut_loses_nothing_of_the_one_before(
    keeper, metadata, metadata_service, s3, tmp_path
):
    """What was not reached yet comes back as it was, what was comes back as it is, and what was deleted stays away."""
    here = keeper()
    for number in range(100):
        put(here, f"set/{number}.txt", b"old")
    put(here, "other", b"a file that becomes a folder")
    save(here, metadata)
    (here.work / "other").unlink()
    put(here, "other/file", b"in a folder")
    for number in range(100):
        put(here, f"set/{number}.txt", b"new!", at=LONG_AGO + 9)

    def is_half_way() -> bool:
        return sum(entry["size"] == 4 for entry in listed(s3).values()) >= 10

    a_save_that_is_cut(here, metadata_service, tmp_path, when=is_half_way, file_s=0.2)
    other = keeper("other")
    restore(other, metadata)
    found = tree(other)
    last = save(here, metadata)

    texts = [found[f"set/{number}.txt"] for number in range(100)]
    assert {b"old", b"new!"} == set(texts)
    assert b"a file that becomes a folder" not in found.values()
    assert last["uploaded"] < 100
    assert tree(here).keys() == {*listed(s3), "set", "other"}
    with pytest.raises(s3.exceptions.NoSuchKey):
        kept(s3, "work/other")
