"""
What runs behind the simulated instances: a folder with the work, and an agent that answers in the real one's words.

An ssh call reaches it through a small `ssh` program that stands first in `PATH`, so that the product's own ssh code runs unchanged.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from crash.guest_bucket import CannotKeepError, GuestBucket, iso
from gpulab.model.instance import TAG_EXPIRES
from gpulab.sandbox.machines import Birth, Disk, Ingress, LiveMetadata

TOKEN = "jupyter-token-that-nobody-may-print"  # noqa: S105 - it opens nothing
PHASES = ("armed", "host-keys", "ssh", "work", "jupyter", "notebooks", "environment", "gpu", "data")
_FIRST_FILES = {"week4.ipynb": b"cells of week 4", "data/numbers.csv": b"1,2,3\n"}
_CONSOLE = """\
-----BEGIN SSH HOST KEY KEYS-----
{key} root@{host}
-----END SSH HOST KEY KEYS-----
"""

#: Asks the door what to do with a call; runs what is a program, prints what is an answer of the agent. It runs some ten thousand times,
#: so it loads nothing that the interpreter does not have at hand.
SSH = """\
#!{python} -ISB
import _socket, marshal, posix, sys
if "-G" in sys.argv:
    posix._exit(0)
environ = dict(posix.environ)
door = _socket.socket(_socket.AF_UNIX)
door.connect(environ[b"CRASH_DOOR"])
def ask(words):
    packed = marshal.dumps(words)
    door.sendall(len(packed).to_bytes(4, "little") + packed)
    parts = b""
    while len(parts) < 4 or len(parts) < 4 + int.from_bytes(parts[:4], "little"):
        part = door.recv(65536)
        if not part:
            posix._exit(255)
        parts += part
    return marshal.loads(parts[4:])
told = ask({{"argv": sys.argv[1:]}})
if "run" in told:
    child = posix.fork()
    if not child:
        posix.chdir(told["home"])
        posix.execve("/bin/sh", ["/bin/sh", "-c", told["run"]], told["environ"])
    told = ask({{"ended": posix.waitstatus_to_exitcode(posix.waitpid(child, 0)[1])}})
sys.stdout.write(told.get("out", ""))
sys.stdout.flush()
if told["exit"] == 255:
    log = sys.argv[sys.argv.index("-E") + 1] if "-E" in sys.argv else "/dev/null"
    with open(log, "a") as file:
        file.write(told.get("err", "") + "\\n")
sys.stderr.write(told.get("err", ""))
sys.stderr.flush()
posix._exit(told["exit"])
"""
#: The instances' python3, without the packages and paths of this computer, which take longer to look up than anything done there.
PYTHON = """\
#!/bin/sh
exec {python} -S "$@"
"""


def put_ssh(folder: Path) -> Path:
    """Write the `ssh` program into a folder for `PATH`, beside the `python3` of the instances."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text, python in (
        ("ssh", SSH, sys.executable),
        ("python3", PYTHON, Path(sys.executable).resolve()),
    ):
        path = folder / name
        path.write_text(text.format(python=python))
        path.chmod(stat.S_IRWXU)
    return folder / "ssh"


@dataclass
class Guest:
    """One machine: `home` holds the work, `deadline` is the timer on it, `is_over_time` tells that this timer ended it."""

    birth: Birth
    kind: Guests
    host_key: str
    deadline: datetime
    spec: Mapping[str, Any]
    is_on: bool = True
    expires_tag: str = ""
    exit: Callable[[str], None] = lambda instance_id: None
    restored: bool = False
    is_over_time: bool = False
    bucket: GuestBucket | None = None

    def __post_init__(self) -> None:
        keep = self.spec.get("keep")
        self.bucket = GuestBucket(self, keep) if keep else None

    @property
    def name(self) -> str:
        """The name it was launched under."""
        return str(self.spec.get("name", ""))

    @property
    def instance(self) -> Any:
        """What the simulated EC2 knows of it."""
        return self.kind.world.instances_by_id[self.birth.instance_id]

    @property
    def home(self) -> Path:
        """The login folder."""
        return self.kind.root / self.birth.instance_id / "home"

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.home / "work"

    @property
    def door(self) -> tuple[str, int] | None:
        """None: ssh asks the stage."""
        return None

    def console(self) -> str:
        """The host key, between the marks that count."""
        return _CONSOLE.format(key=self.host_key, host=self.birth.instance_id)

    def publish(self, metadata: LiveMetadata) -> None:
        """Take over a new end from the tag, as the real agent does within a minute."""
        said = metadata.tags.get(TAG_EXPIRES, "")
        if self.expires_tag and said and said != self.expires_tag:
            self.extend(said)
        self.expires_tag = said or self.expires_tag

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        """Every address may come in."""

    def attach(self, disk: Disk) -> None:
        """Disks are folders here."""

    def detach(self, volume_id: str) -> None:
        """Disks are folders here."""

    def power_on(self) -> None:
        """Boot again."""
        self.is_on = True

    def power_off(self) -> None:
        """Go off cleanly, two seconds later."""
        self.kind.world.after(2, self.cut)

    def cut(self) -> None:
        """Go off at once."""
        if self.is_on:
            if self.bucket is not None:
                self.bucket.tell(is_at_once=False)
            self.is_on = False
            self.exit(self.birth.instance_id)

    def discard(self) -> None:
        """What was lost is looked at later."""

    def extend(self, until: str) -> None:
        """Move the timer."""
        self.deadline = datetime.fromisoformat(until).astimezone(UTC)
        self.kind.world.at(self.deadline, self.end_if_due)

    def end_if_due(self) -> None:
        """Save and switch off, when the timer's time has come."""
        if self.is_on and self.kind.world.now() >= self.deadline:
            self.restore()
            if self.bucket is not None:
                self.bucket.note_end("deadline")
                with contextlib.suppress(CannotKeepError):
                    self.save()
            self.is_over_time = True
            self.cut()

    def heed_notice(self, ends_at: datetime) -> None:
        """Save, and write down when AWS takes the instance back, as its agent does at the notice."""
        if self.bucket is not None:
            self.bucket.note_end("Server.SpotInstanceTermination", by="aws", at=ends_at)
        self.save()

    def files(self) -> dict[str, bytes]:
        """The work, by path."""
        if not self.work.is_dir():
            return {}
        found = (p for p in sorted(self.work.rglob("*")) if p.is_file() and not p.is_symlink())
        return {str(p.relative_to(self.work)): p.read_bytes() for p in found}

    def save(self) -> dict[str, Any]:
        """
        Put the work into the bucket, if there is one.

        Raises:
            CannotKeepError: It cannot be.
        """
        self.restore()  # as at its boot, whether anybody has called since or not
        is_kept = self.bucket is not None and not self.spec.get("bake")
        return self.bucket.save() if is_kept else {}

    def restore(self) -> None:
        """Bring back what the bucket holds of the name, or begin with new files."""
        if self.restored:
            return
        self.restored = True
        found = self.bucket.kept() if self.bucket is not None else None
        if found is None:
            found = dict(_FIRST_FILES) if self.kind.has_first_files else {}
        for path, body in found.items():
            self.write(path, body)

    def write(self, path: str, body: bytes) -> None:
        """Write one file of the work, as its user does."""
        place = self.work / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(body)

    def entries(self) -> list[dict[str, Any]]:
        """The lines of `gpulab-agent manifest`."""
        return [
            {
                "path": path,
                "size": len(body),
                "mtime_ns": (self.work / path).stat().st_mtime_ns,
                "mode": 0o600,
                "sha256": hashlib.sha256(body).hexdigest(),
                "link": None,
            }
            for path, body in self.files().items()
        ]

    def answer(self, words: list[str]) -> str:
        """
        What the agent prints for some of its words.

        Raises:
            CannotKeepError: It ends with 1 and says this.
        """
        self.restore()
        match words:
            case ["status", *_]:
                return json.dumps(self._status())
            case ["save"]:
                return json.dumps(self.save())
            case ["manifest"]:
                return "".join(json.dumps(e) + "\n" for e in self.entries())
            case ["extend", "--until", until]:
                self.extend(until)
                return ""
            case ["token"]:
                return TOKEN + "\n"
        return ""

    def pretend(self, command: str) -> str:
        """What a program prints that must not run on this computer."""
        if command.startswith("sudo"):
            return json.dumps({"removed": 9, "left": []})
        if command.endswith(" -"):
            return json.dumps({"name": "gpu", "state": "ok", "text": "T4", "seconds": 1.0})
        return ""

    def _status(self) -> dict[str, Any]:
        phases = [{"name": n, "state": "done", "seconds": 1.0, "message": ""} for n in PHASES]
        return {
            "version": 1,
            "at": iso(self.kind.world.now()),
            "phases": phases,
            "deadline": iso(self.deadline),
            "idle_minutes": 60,
            "idle_since": None,
            "spent_usd": "0.01",
            "budget_usd": None,
            "gpu": [],
            "jupyter": {"port": 8888, "ready": True},
            "saved_at": None,
            "keep": None,
            "notice": None,
            "ending": None,
        }


@dataclass
class Guests:
    """
    The machine kind.

    Attributes:
        root: Holds a folder for each instance.
        world: Set once it is made.
        put: Writes an object of S3 in an account and returns its version.
        get: Reads one of an account; `None` when it is not there.
        role_id: The id of an account's instance role by its name; `""` where there is none.
        programs: A folder with `ssh`, and the `python3` of the instances.
        has_first_files: Whether a new instance begins with work in it.
    """

    root: Path
    name: str = "guests"
    world: Any = None
    put: Callable[[str, str, str, bytes], str] = lambda account, bucket, key, body: ""
    get: Callable[[str, str, str], Any] = lambda account, bucket, key: None
    role_id: Callable[[str, str], str] = lambda account, name: ""
    programs: Path = Path()
    has_first_files: bool = True
    by_id: dict[str, Guest] = field(default_factory=dict)

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> Guest:
        """Read the specification the instance is born with, and arm the timer it names."""
        spec = _spec(birth.user_data)
        deadline = datetime.fromisoformat(spec["deadline"]).astimezone(UTC)
        guest = Guest(birth, self, _host_key(), deadline, spec, exit=on_exit)
        guest.expires_tag = birth.tags.get(TAG_EXPIRES, "")
        guest.home.mkdir(parents=True, exist_ok=True)
        self.by_id[birth.instance_id] = guest
        self.world.at(deadline, guest.end_if_due)
        return guest

    def at(self, address: str) -> Guest | None:
        """The guest that answers at an address now."""
        for guest in self.by_id.values():
            seen = self.world.instances_by_id[guest.birth.instance_id]
            if guest.is_on and seen.state == "running" and seen.moto.public_ip == address:
                return guest
        return None

    def tell(self) -> None:
        """Let everybody who runs have told what it cost, as of the last of its regular words."""
        for guest in self.by_id.values():
            if guest.is_on and guest.bucket is not None:
                guest.bucket.tell(is_at_once=False)

    def move(self, root: Path) -> None:
        """Copy all homes elsewhere and go on from there, so that every case has its own."""
        if self.root.exists():
            shutil.copytree(self.root, root, symlinks=True)
        self.root = root

    def addresses(self) -> tuple[str, str] | None:
        """The simulated EC2 chooses."""
        return None

    def endpoint_host(self) -> str:
        """Nobody asks."""
        return "127.0.0.1"

    def delete_volume(self, volume_id: str) -> None:
        """Disks are folders here."""

    def close(self) -> None:
        """Nothing runs."""


def environ_of(guest: Guest) -> dict[str, str]:
    """What a program on the instance finds around it."""
    return {
        "HOME": str(guest.home),
        "PATH": f"{guest.kind.programs}:{os.defpath}",
        "LC_ALL": "C.UTF-8",
    }


def _spec(user_data: bytes) -> dict[str, Any]:
    if not user_data:  # a launcher that is not ours
        return {"deadline": "2027-01-01T00:00:00Z"}
    config = json.loads(gzip.decompress(user_data).decode().split("\n", 1)[1])
    file = next(f for f in config["write_files"] if f["path"] == "/etc/gpulab/spec.json")
    return dict(json.loads(file["content"]))


def _host_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
