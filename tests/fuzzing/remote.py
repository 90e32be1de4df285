"""Hostile words from an instance, or from whoever hands over a ticket: its owner is root there and may send anything."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fuzzing.edits import MARK, as_json, as_lines, either
from tests.fuzzing.files import emptied
from tests.fuzzing.oracle import Target, Wrong

from gpulab.aws.workspace import Bucket, _manifest
from gpulab.aws.workspace_setup import WorkRole
from gpulab.errors import StoreError
from gpulab.fleet.ticket import Ticket, read_ticket, write_ticket
from gpulab.fleets import seating
from gpulab.fleets.keeping import Keeping
from gpulab.launch.running import agent, checking, keep, lab_folder, notebooks, ticket
from gpulab.model.moment import read_moment
from gpulab.model.status import PHASES
from gpulab.remote import archive, copying, hostkeys
from gpulab.remote.manifest import digest, read_remote, safe
from gpulab.remote.process import Completed, Ended
from gpulab.view.console import table

_NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
_KEY = hostkeys.HostKey(bytes(32))
_SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"
_PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


class _Says:
    """A host whose every command prints the same."""

    starter = None
    target = SimpleNamespace(instance_id="i-1", address="192.0.2.1")

    def __init__(self, stdout: bytes, tar: bytes = b"") -> None:
        self._stdout = stdout
        self._tar = tar

    def run(self, command: Any, *, max_bytes: int = 64 << 20, **_: Any) -> Completed:
        return Completed(0, self._stdout[:max_bytes], "")

    def start(self, command: Any) -> Any:
        process = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(self._tar))
        process.wait, process.kill = lambda: Ended(0, "", ""), lambda: None
        return process

    def raise_if_ssh_failed(self, ended: Any) -> None:
        """It never does."""


def _host(stdout: bytes, tar: bytes = b"") -> Any:
    return _Says(stdout, tar)


# What the agent says.

_STATUS = {
    "version": 1,
    "at": "2026-11-23T12:00:00Z",
    "phases": [{"name": name, "state": "done", "seconds": 0.4, "message": ""} for name in PHASES],
    "deadline": "2026-11-23T16:00:00Z",
    "idle_minutes": 60,
    "idle_since": None,
    "spent_usd": "0.12",
    "budget_usd": None,
    "gpu": [{"name": "T4", "use_percent": 3, "memory_used_mib": 1, "memory_total_mib": 15360}],
    "jupyter": {"port": 8888, "ready": True},
    "saved_at": "2026-11-23T12:00:00Z",
    "keep": {"files": 3, "skipped": [], "failed": []},
    "notice": {"action": "terminate", "time": "2026-11-23T12:02:00Z"},
    "ending": {"reason": "deadline", "at": "2026-11-23T12:02:00Z"},
}
_SAVED = {
    "saved_at": "2026-11-23T12:00:00Z",
    "files": 3,
    "uploaded": 1,
    "bytes": 5,
    "skipped": [],
    "failed": [],
}
_FAILED = {**_SAVED, "failed": ["a: disk full"]}
_MANIFEST = [
    {"path": "a b.ipynb", "size": 5, "mtime_ns": 1, "mode": 420, "sha256": _SHA, "link": None},
    {"path": "d/", "size": 0, "mtime_ns": 1, "mode": 493, "sha256": "", "link": None},
    {"path": "l", "size": 0, "mtime_ns": 1, "mode": 420, "sha256": "", "link": "/etc/passwd"},
]
_CHECKED = [
    {"name": "driver", "state": "ok", "text": "T4", "seconds": 0.1},
    {"name": "disk", "state": "failed", "text": "", "seconds": 0},
]
_LISTING = [
    {"version": 1, "exists": True, "rsync": False},
    {"path": "d/a b", "size": 5, "mtime_ns": 10**18, "sha256": _SHA, "executable": False},
    {"path": "Ü", "size": 5, "mtime_ns": 10**18, "sha256": _SHA, "executable": True},
    {"path": "l", "skipped": "a link"},
    {"end": 3},
]


def _status(given: bytes) -> None:
    said = agent.status(_host(given))
    moments = [m for m in (said.at, said.deadline, said.idle_since, said.saved_at) if m]
    if any(not isinstance(m - _NOW, timedelta) for m in moments):
        raise Wrong("a moment that is none")
    if len(str(said.jupyter_port)) > 20 or not all(
        isinstance(p.seconds, int | float) for p in said.phases
    ):
        raise Wrong("a number that cannot be one")
    table([[p.name, p.state, str(round(p.seconds)), p.message] for p in said.phases], ["a"] * 4)


def _hashes(given: bytes) -> None:
    digest(
        {
            path: sha
            for path, sha in agent.hashes(_host(given)).items()
            if not archive.unsafe_name(path)
        }
    )


def _check(given: bytes) -> None:
    profile = SimpleNamespace(login_user="ubuntu", ssh_proxy_command=(), environment_folders=())
    folder = SimpleNamespace(key=Path("/nowhere/key"), known_hosts=Path("/nowhere/known_hosts"))
    context: Any = SimpleNamespace(profile=profile, folder=folder, host=lambda _: _host(given))
    instance: Any = SimpleNamespace(
        id="i-0123456789abcdef0", name="week4", address="192.0.2.1", state="running", environment=""
    )
    for finding in checking.check(context, instance):
        round(finding.seconds)
        table([[finding.name, finding.text]], ["a", "b"])


def _listing(given: bytes) -> None:
    found = safe(read_remote(_host(given), "work"))
    if any(
        archive.unsafe_name(path) or earlier for path, earlier in archive.collisions(found.entries)
    ):
        raise Wrong("a name that cannot be written everywhere")
    if found.bytes < 0 or len(found.sha256) != 64:
        raise Wrong("a folder of less than nothing")
    table([[one.path, one.reason] for one in found.skipped], ["a", "b"])


# Archives.


def with_checksums(given: bytes) -> bytes:
    """Make the checksum of each header right, so that a change of one byte is not the end of the archive."""
    whole, at = bytearray(given), 0
    while at + 512 <= len(whole) and any(whole[at : at + 512]):
        block = bytes(whole[at : at + 512])
        total = tarfile.calc_chksums(block)[0] & 0o777777
        whole[at + 148 : at + 156] = b"%06o\0 " % total
        try:
            size = tarfile.nti(block[124:136])
        except tarfile.HeaderError:
            break
        if not 0 <= size <= len(whole):
            break
        at += 512 + (size + 511) // 512 * 512
    return bytes(whole)


def an_archive(
    *members: tuple[str, bytes | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT, **pax: str
) -> bytes:
    """Make an archive of (name, content) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind, pax_headers=pax) as made:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(body)
            made.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def a_member(name: str, kind: bytes, link: str = "", **pax: str) -> tuple[str, tarfile.TarInfo]:
    """Make a member that is no plain file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.pax_headers = kind, link, pax
    return name, member


_TARS = (
    an_archive(("a", b"1"), ("d/a b", b"hello")),
    an_archive(
        a_member("d", tarfile.DIRTYPE), ("d/Ü" + "x" * 150, b"hello"), kind=tarfile.GNU_FORMAT
    ),
    an_archive(("a", b"1"), hdrcharset="BINARY", mtime="1.5", path="x/y"),
    an_archive(("big", b"x" * 3000), kind=tarfile.USTAR_FORMAT),
)


def _is_alone(outside: Path, inside: Path) -> None:
    strangers = [path.name for path in outside.iterdir() if path != inside]
    if strangers:
        raise Wrong(f"beside the folder there is {strangers}")


def _tar(given: bytes) -> None:
    outside = emptied("tar")
    inside = outside / "work"
    try:
        files = archive.extract(io.BytesIO(with_checksums(given)), inside)
    finally:
        _is_alone(outside, inside)
    there = sorted(
        path.relative_to(inside).as_posix() for path in inside.rglob("*") if not path.is_dir()
    )
    if there != sorted(file.path for file in files) or any(
        path.is_symlink() for path in inside.rglob("*")
    ):
        raise Wrong(f"unpacked {there}, told {[file.path for file in files]}")


def _pull(given: bytes) -> None:
    listing, _, tar = given.partition(b"\n%%\n")
    outside = emptied("pull")
    inside = outside / "work"
    inside.mkdir()
    (inside / "mine").write_bytes(b"mine")
    (inside / "way-out").symlink_to("/")
    try:
        copying.pull(_host(listing, with_checksums(tar)), "work", inside)
    finally:
        _is_alone(outside, inside)
        if (inside / "mine").read_bytes() != b"mine" and b"mine" not in listing:
            raise Wrong("a file that was not asked for was replaced")


def _kept(given: bytes) -> None:
    """The kept copy's manifest, from the bucket: as `aws.workspace` reads it and `pull` writes it."""
    try:
        found = _manifest(json.loads(given), "s1/week4/")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError("the manifest s1/week4/manifest.json is damaged") from error
    good, _ = keep._safe(found)
    for file in good:
        if (
            archive.unsafe_name(file.path)
            or not file.key.startswith("s1/week4/")
            or file.size_bytes < 0
        ):
            raise Wrong(f"a file that may not be written: {file}")
        file.mode & 0o700 | 0o600
    if found.at:
        found.at - _NOW


_KEPT = {
    "version": 1,
    "at": "2026-11-23T12:00:00Z",
    "launch": "l1",
    "entries": [
        {**entry, "key": f"s1/week4/work/{entry['path']}", "version": "v1"} for entry in _MANIFEST
    ],
    "skipped": [],
    "failed": [],
}

# What is handed over.

_TICKET = Ticket(
    "w1-s1",
    "i-0123456789abcdef0",
    "192.0.2.7",
    "ubuntu",
    _KEY.base64,
    _PEM,
    _NOW + timedelta(hours=1),
)


def _ticket(given: bytes) -> None:
    found = read_ticket(given, file="s1.ticket")
    root = emptied("tickets")
    folder = SimpleNamespace(root=root, key=root / "key")
    context: Any = SimpleNamespace(
        now=lambda: _NOW, folder=folder, profile=SimpleNamespace(ssh_proxy_command=())
    )
    target = ticket.target_of(context, found)
    if not target.key_file.is_relative_to(root) or target.address.startswith("-"):
        raise Wrong(f"a ticket that leads to {target}")


_CONSOLE = (
    "[   12.3] cloud-init[99]: -----BEGIN SSH HOST KEY KEYS-----\r\n"
    f"ssh-ed25519 {_KEY.base64} root@ip\r\n-----END SSH HOST KEY KEYS-----\r\n"
    f"gpulab-hostkey ssh-ed25519 {_KEY.base64}\r\n"
).encode()


def _console(given: bytes) -> None:
    keys = hostkeys.parse_console(given.decode("utf-8", "replace"))
    if any(len(key.public) != 32 for key in keys) or len(keys) > 1:
        raise Wrong("a host key that is none")


def _notebooks(given: bytes) -> None:
    source, *data = given.decode("utf-8", "surrogateescape").split("\n")
    found = notebooks.read_notebooks(source, data)
    if found.commit.startswith("-") or ".." in found.folder.split("/") or "@" in found.repository:
        raise Wrong(f"notebooks at {found}")


def _lab_folder(given: bytes) -> None:
    found = lab_folder.read(given, name="week1")
    if found.startswith("/") or not found.isprintable() or ".." in found.split("/"):
        raise Wrong(f"a lab in {found!a}")


def _seats(given: bytes) -> None:
    """What teachers have written down in the bucket; whoever may write there may slip."""
    bucket = Bucket("gpulab-123456789012-us-east-1", "us-east-1", "123456789012")
    keeping = Keeping("dl", WorkRole("gpulab-course-dl", "AROAEXAMPLE", bucket), is_by_name=False)
    for row in seating._rows(given, keeping):
        read_moment(row["at"])
        if not str(row["prefix"]).startswith("course-dl/"):
            raise Wrong(f"a seat's work at {row['prefix']!a}")


_SEAT = {
    "name": "week1-s1",
    "instance": "i-1",
    "at": "2026-11-23T12:00:00+00:00",
    "prefix": "course-dl/AROAEXAMPLE:i-1/",
}
_SEATS = {"version": 1, "lab": "week1", "seats": [_SEAT]}
_LAB = {"folder": "course/labs/one", "repository": "https://x.example/course", "commit": "0" * 40}
_REFUSED = (
    "the instance sent '",
    "the instance sent a (gzip|zip) file where a member",
    "the archive from the instance ended early, (before its first member|behind ')",
)
_NOTEBOOKS = (
    b"https://github.com/tensorflow/docs@master:site/en\nhttps://x.example/a.zip#" + _SHA.encode()
)

TARGETS = (
    Target(
        "status",
        "remote",
        either([_STATUS], _status, as_json),
        (as_json(_STATUS), MARK),
        exits=(1,),
        names=(r"its status",),
    ),
    Target(
        "saved",
        "remote",
        either([_SAVED, _FAILED], lambda given: agent.save(_host(given)), as_json),
        (as_json(_SAVED), MARK),
        exits=(1,),
        names=(
            r"the agent could not save: ",
            r"what it could not save",
            r"could not keep ",
        ),
    ),
    Target(
        "hashes",
        "remote",
        either([_MANIFEST], _hashes, as_lines),
        (as_lines(_MANIFEST), MARK),
        exits=(1,),
        names=(r"the agent's list of the work",),
    ),
    Target(
        "check",
        "remote",
        either([_CHECKED], _check, as_lines),
        (as_lines(_CHECKED), MARK),
        exits=(1,),
        names=(r"^week4 ",),
    ),
    Target(
        "listing",
        "remote",
        either([_LISTING], _listing, as_lines),
        (as_lines(_LISTING), MARK),
        exits=(1,),
        names=(r"listing of work \((line [\d,]+: |the listing ended early|.*unpack)",),
    ),
    Target(
        "tar",
        "remote",
        _tar,
        _TARS,
        words=(
            b"././@LongLink",
            b"ustar\x0000",
            b"GNU.sparse.map=",
            b"mtime=nan",
            b"size=-1",
            b"path=../x",
            b"hdrcharset=BINARY",
        ),
        exits=(1,),
        names=_REFUSED,
    ),
    Target(
        "pull",
        "remote",
        _pull,
        (
            as_lines(_LISTING).rstrip()
            + b"\n%%\n"
            + an_archive(("d/a b", b"hello"), ("Ü", b"hello")),
        ),
        exits=(1,),
        names=(*_REFUSED, "listing of work", r"could not write .*/pull/work"),
    ),
    Target(
        "kept-manifest",
        "aws",
        either([_KEPT], _kept, as_json),
        (as_json(_KEPT), MARK),
        exits=(1,),
        names=(r"s1/week4/manifest.json",),
    ),
    Target(
        "ticket",
        "fleet",
        either([json.loads(write_ticket(_TICKET))], _ticket, as_json),
        (write_ticket(_TICKET).encode(), MARK),
        large=19_000,
        exits=(
            2,
            3,
        ),
        names=(
            r"s1\.ticket is ",
            r"the ticket of ",
        ),
    ),
    Target(
        "console",
        "remote",
        _console,
        (_CONSOLE,),
        words=(b"-----BEGIN SSH HOST KEY KEYS-----", b"gpulab-hostkey ssh-ed25519 "),
        exits=(1,),
        names=(r"the console output",),
    ),
    Target(
        "notebooks-source",
        "launch",
        _notebooks,
        (_NOTEBOOKS,),
        exits=(2,),
        names=(r"^`.*` ",),
    ),
    Target(
        "seats",
        "fleets",
        either([_SEATS], _seats, as_json),
        (as_json(_SEATS), MARK),
        exits=(),
        names=(),
    ),
    Target(
        "lab-folder",
        "launch",
        either([_LAB], _lab_folder, as_json),
        (as_json(_LAB), MARK),
        exits=(2,),
        names=(r"^week1 ",),
    ),
)
