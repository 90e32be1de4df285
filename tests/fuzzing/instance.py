"""What the agent reads on an instance: the metadata service, its own files, the kept copy, a repository's notebooks. And what it is born with."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import tarfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fuzzing.edits import MARK, Choices, as_json, edited, either
from tests.fuzzing.files import emptied, folder
from tests.fuzzing.oracle import Target, Wrong
from tests.fuzzing.remote import a_member, an_archive, with_checksums

from gpulab.agent import agent, lab
from gpulab.bootstrap import InstanceSpec, Keep, load_environment, user_data
from gpulab.model.course import DataSet, Notebooks

_NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
_SPEC: dict[str, Any] = {
    "version": 1,
    "launch": "l-1",
    "name": "week4",
    "owner": "s-1",
    "user": "ubuntu",
    "deadline": "2026-11-23T16:00:00Z",
    "idle_minutes": 60,
    "budget_usd": None,
    "usd_per_hour": "0.25",
    "jupyter_port": 8888,
    "environment": {"name": "tf2", "uv": "", "server": {}, "kernel": None},
    "keep": {"bucket": "b", "prefix": "s1/week4/", "region": "us-east-1", "endpoint": "http://x"},
}


def _here() -> agent.Here:
    root = emptied("instance")
    for path in ("etc/gpulab", "home/ubuntu/work", "usr/local/sbin", "var/lib/gpulab"):
        (root / path).mkdir(parents=True)
    (root / "etc/gpulab/spec.json").write_text(json.dumps(_SPEC))
    return agent.Here(str(root))


class _Metadata(agent.Metadata):
    """Says what the input says, by path."""

    def __init__(self, said: dict[str, bytes]) -> None:
        super().__init__()
        self._said = said

    def get(self, path: str) -> bytes | None:
        return self._said.get(path)

    def now(self) -> float:
        return _NOW.timestamp()


class _Watch(agent.Watch):
    """A watch that notes its saves instead of starting them."""

    saves = 0

    def _start_save(self) -> None:
        self.saves += 1


_PATHS = (
    "meta-data/spot/instance-action",
    "meta-data/events/recommendations/rebalance",
    "meta-data/tags/instance/gpulab:expires",
    "meta-data/tags/instance/gpulab:idle",
    "meta-data/iam/security-credentials/",
    "meta-data/iam/security-credentials/student",
)
_SAID = (
    b'{"action": "terminate", "time": "2026-11-23T12:02:00Z"}',
    b'{"noticeTime": "2026-11-23T11:00:00Z"}',
    b"2026-11-23T17:00:00Z",
    b"30",
    b"student",
    b'{"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "Token": "token"}',
)


def _metadata(given: bytes) -> None:
    said = dict(zip(_PATHS, given.split(b"\n%%\n"), strict=False))
    here, metadata = _here(), _Metadata({path: body for path, body in said.items() if body})
    watch = _Watch(here, metadata)
    watch._look_for_notice(_NOW.timestamp())
    if watch.live["notice"] is not None and not watch.saves:
        raise Wrong("a notice without a save")
    watch._read_tags()
    agent.read_limits(here)
    watch._end(_NOW.timestamp())
    agent.compose_status(here, now=_NOW.timestamp(), live=watch.live)
    json.dumps(watch.live)
    key = agent.role_key(metadata)
    agent.signed(_SPEC["keep"], key, _NOW.timestamp(), ("GET", "/b/k", "", "0" * 64))


class _Socket:
    """A connection on which one answer lies ready."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self._answer)

    def sendall(self, _: bytes) -> None:
        """Take the request."""

    def close(self) -> None:
        """Nothing is open."""


def _http(given: bytes) -> None:
    """The metadata service's bytes on the wire."""
    connection = http.client.HTTPConnection("192.0.2.1")

    class Ready(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = _Socket(given)  # type: ignore[assignment]

    assert connection
    kept, http.client.HTTPConnection = http.client.HTTPConnection, Ready  # type: ignore[misc]
    try:
        metadata = agent.Metadata("http://192.0.2.1")
        body = metadata.get("meta-data/instance-id")
        if body is not None and len(body) > 2**22:
            raise Wrong("more than was asked for")
        if not abs(metadata.now() - time.time()) < 1e12:
            raise Wrong(f"a clock that says {metadata.now()}")
        agent.iso(metadata.now())
    finally:
        http.client.HTTPConnection = kept  # type: ignore[misc]


# The kept copy, brought back.

_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
_ENTRY = {
    "size": 5,
    "mtime_ns": 10**18,
    "mode": 420,
    "sha256": _HELLO,
    "link": None,
    "version": "v1",
}
_KEPT = {
    "version": 1,
    "at": "2026-11-23T12:00:00Z",
    "launch": "l-0",
    "entries": [
        {**_ENTRY, "path": "a b.ipynb", "key": "s1/week4/work/a b.ipynb"},
        {**_ENTRY, "path": "d/", "size": 0, "sha256": ""},
        {**_ENTRY, "path": "d/x", "key": "s1/week4/work/d/x"},
        {**_ENTRY, "path": "l", "sha256": "", "link": "d/x"},
    ],
}


class _Bucket:
    def __init__(self, manifest: bytes) -> None:
        self.keep = _SPEC["keep"]
        self._manifest = manifest

    def ask(
        self, method: str, key: str, *, query: str = "", span: str = "", **_: Any
    ) -> tuple[int, Any, bytes]:
        if not isinstance(key, str):
            raise TypeError("a key that is no text")
        body = self._manifest if key.endswith("manifest.json") else b"hello"
        if span and int(span.partition("-")[0]) >= len(body):
            raise agent.Problem("S3 does not GET b/k: InvalidRange")
        return 200, {}, body


def _restore(given: bytes) -> None:
    here = _here()
    kept, agent.Bucket = agent.Bucket, lambda *_: _Bucket(given)  # type: ignore[misc,assignment]
    try:
        agent.restore(here, _Metadata({}))
    finally:
        agent.Bucket = kept  # type: ignore[misc]
        strangers = [p.name for p in here.path("home/ubuntu").iterdir() if p.name != "work"]
        if strangers or sorted(p.name for p in here.path("").iterdir()) != [
            "etc",
            "home",
            "usr",
            "var",
        ]:
            raise Wrong(f"written outside the work folder: {strangers}")


# Notebooks of a lab.


def _repository(given: bytes) -> None:
    """A commit's files, and the book of what was delivered, which the student may have edited."""
    book, _, tar = given.partition(b"\n%%\n")
    work = emptied("lab") / "work"
    (work / ".gpulab").mkdir(parents=True)
    (work / ".gpulab" / "notebooks.json").write_bytes(book)

    class Ready(lab.Repository):
        def files(self, *_: Any) -> Any:
            with tarfile.open(fileobj=io.BytesIO(with_checksums(tar)), mode="r|") as found:
                for member in found:
                    content = found.extractfile(member) if member.isreg() else None
                    yield member, content.read() if content else b""

        def content(self, commit: str, path: str) -> bytes | None:
            return tar

        def merged(self, mine: Path, base: bytes, new: bytes) -> bytes | None:
            return new

    repository = Ready(folder() / "cache", "https://x.example/notebooks.git")
    (work / "notebooks").mkdir()
    (work / "notebooks" / "a").write_bytes(b"mine")
    try:
        done = lab.Shelf(work, repository).put_all("0" * 40, ["."])
        lab.sentence("x", "0" * 40, done)
    finally:
        if [p.name for p in work.parent.iterdir()] != ["work"] or (
            work / "notebooks" / "a"
        ).read_bytes() != b"mine":
            raise Wrong("written outside the repository's folder, or over what the student has")


def _data_list(given: bytes) -> None:
    class Ready(lab.Repository):
        def fetch(self, commit: str) -> str:
            return "0" * 40

        def content(self, commit: str, path: str) -> bytes | None:
            return given

    kept, lab.Repository = lab.Repository, Ready  # type: ignore[misc]
    try:
        wrong: list[str] = []
        place = lab.Place(folder() / "work", folder() / "cache")
        for url, sha256 in lab.data_sets(place, {"repository": "https://x.example/a"}, wrong):
            name = lab.name_of(url)
            if "/" in name or name.startswith(".") or not isinstance(sha256, str):
                raise Wrong(f"a data set that would be written to {name}")
    finally:
        lab.Repository = kept  # type: ignore[misc]


_BOOK = {"https://x.example/notebooks.git": {"a": {"sha256": "0" * 64, "commit": "1" * 40}}}
_LIST = [{"url": "https://x.example/a.zip", "sha256": _HELLO}]

# User data.

_BORN: dict[str, Any] = {
    "launch": "01JD3V5K8Q2W9XG7H4R6T0ABCD",
    "name": "week4",
    "owner": "7f3a9c21b0",
    "user": "ubuntu",
    "hours": 4,
    "idle_minutes": 60,
    "usd_per_hour": "0.2158",
    "budget_usd": "2.10",
    "course": "c",
    "lab": "w1",
    "bucket": "b",
    "prefix": "s1/week4/",
    "notebooks": {
        "repository": "https://x.example/a",
        "commit": "",
        "folder": "w1",
        "data": [["https://x.example/a.zip", _HELLO]],
    },
}
_ENVIRONMENT = load_environment("tf2-small")


def _texts(value: Any) -> Any:
    """Only values a checked configuration lets through: texts, and numbers where numbers are."""
    return value if isinstance(value, str) else ""


def _born(given: bytes) -> None:
    values = edited(_BORN, Choices(given))
    if not isinstance(values, dict):
        return
    books = values.get("notebooks")
    notebooks = None
    if isinstance(books, dict):
        data = (
            [
                DataSet(_texts(row[0]), _texts(row[1]))
                for row in books.get("data") or []
                if isinstance(row, list) and len(row) == 2
            ]
            if isinstance(books.get("data"), list)
            else []
        )
        notebooks = Notebooks(
            _texts(books.get("repository")),
            _texts(books.get("commit")),
            _texts(books.get("folder")),
            tuple(data),
        )
    names = {
        key: _texts(values.get(key)) for key in ("launch", "name", "owner", "user", "course", "lab")
    }
    spec = InstanceSpec(
        made_at=_NOW,
        deadline=_NOW + timedelta(hours=4),
        idle_minutes=60,
        usd_per_hour=Decimal("0.2158"),
        environment=_ENVIRONMENT,
        has_gpu=False,
        keep=Keep(
            _texts(values.get("bucket")), _texts(values.get("prefix")), "us-east-1", "https://s3"
        ),
        notebooks=notebooks,
        **names,
    )
    made = user_data(spec)
    text = gzip.decompress(made).decode()
    if len(made) > 16384 or not text.startswith("#cloud-config\n"):
        raise Wrong("user data that EC2 or cloud-init does not take")
    config = json.loads(text.partition("\n")[2])
    written = json.loads(config["write_files"][0]["content"])
    if (
        any(written[key] != value for key, value in names.items())
        or config["user"] != names["user"]
    ):
        raise Wrong("an instance that is born with other values")
    if set(config) != {
        "user",
        "disable_root",
        "ssh_pwauth",
        "ssh_genkeytypes",
        "manage_etc_hosts",
        "locale",
        "bootcmd",
        "runcmd",
        "write_files",
    }:
        raise Wrong("a value that became a key")


_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\n\r\nhello"
)

TARGETS = (
    Target(
        "metadata",
        "agent",
        _metadata,
        (b"\n%%\n".join(_SAID),),
        others=(OSError,),
        words=(b"\n%%\n", b'"time": 1', b"0001-01-01T00:00:00Z"),
        exits=(),
        names=(
            r"metadata",
            r"role",
        ),
        spoken=(agent.Problem,),
    ),
    Target(
        "metadata-http",
        "agent",
        _http,
        (_ANSWER, b"HTTP/1.0 401 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        others=(OSError,),
        words=(b"Date: Mon, 01 Jan 0001 00:00:00 GMT", b"Content-Length: -1"),
        exits=(),
        names=(),
    ),
    Target(
        "restore",
        "agent",
        either([_KEPT], _restore, as_json),
        (as_json(_KEPT), MARK),
        others=(OSError,),
        exits=(),
        names=(
            r"the kept copy",
            r"S3 does not GET",
            r"files were not restored; '",
        ),
        spoken=(agent.Problem,),
    ),
    Target(
        "notebooks",
        "agent",
        _repository,
        (
            as_json(_BOOK)
            + b"\n%%\n"
            + an_archive(
                ("a", b"new"), ("d/b.ipynb", b"{}"), a_member("l", tarfile.SYMTYPE, "/etc")
            ),
        ),
        others=(lab.Problem, OSError, tarfile.TarError),
        exits=(),
        names=(),
    ),
    Target(
        "data-list",
        "agent",
        either([_LIST], _data_list, as_json),
        (as_json(_LIST), MARK),
        exits=(),
        names=(r"^'.+' is no address",),
        spoken=(lab.Problem,),
    ),
    Target(
        "user-data",
        "bootstrap",
        _born,
        (b"", b"\x01\x02\x03\x04\x05\x06\x07\x08\x09"),
        exits=(1,),
        names=(r"is not a login user", r"the user data has [\d,]+ bytes"),
    ),
)

assert os.name == "posix", "the agent runs on Linux"
assert SimpleNamespace
