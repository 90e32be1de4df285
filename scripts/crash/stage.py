"""
A stage: the world, the user's folder and the machines as they stand before a command, and the running of commands on it.

The process that calls `Stage.run` holds the world. A command runs in a fork of it and reaches the world through a socket, so that the command can
be killed at any boundary while the world stays. A case runs in a fork of the stage, so that every case begins equal.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import mmap
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

from crash import nursery
from crash.guest_bucket import CannotKeepError
from crash.guests import Guests, environ_of, put_ssh
from crash.seams import (
    PAUSES,
    Broken,
    Line,
    Seams,
    exit_now,
    receive,
    receive_packed,
    send,
    send_packed,
)
from crash.warming import warm
from gpulab.remote.target import accepts_cipher_order
from gpulab.sandbox import Sandbox
from gpulab.sandbox.calls import ConnectionLost, Refusal
from gpulab.sandbox.credentials import DEFAULT_ACCOUNT
from gpulab.sandbox.in_process import _forward
from gpulab.sandbox.wire import read_call, write_refusal, write_result
from gpulab.sandbox.witnesses import said_in_calls

#: AWS refuses signatures that are more than five minutes off.
_SKEW_LIMIT = timedelta(minutes=5)
_SKEW_CODES = {"ec2": "RequestExpired", "s3": "RequestTimeTooSkewed"}
#: Real seconds after which a command hangs.
_HANGS_S = 90.0
#: The account has switched off all other regions: a sweep looks into each.
REGIONS = ("us-east-1", "us-east-2", "us-west-2")
_ONLOOKER = "onlooker"
CONFIG = """\
[profiles.default]
regions = ["us-east-1"]
environment = "tf2-small"
cidr = "203.0.113.7/32"
"""


@dataclass
class Ran:
    """
    What came of one command.

    Attributes:
        code: Exit code; `None` when it was killed.
        seconds: Of simulated time.
        boundaries: Names of all it crossed, in order; only when recorded.
    """

    words: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float
    calls: int
    boundaries: list[str] = field(default_factory=list)
    is_hung: bool = False


@dataclass
class _Child:
    pid: int
    end: socket.socket
    broken: Broken | None
    skew: timedelta
    boundaries: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    is_done: bool = False
    is_broken: bool = False
    struck: int = 0
    calls: int = 0


class Stage:
    """
    One world with the computers in front of it.

    Args:
        folder: Everything of this stage lies below it.
        enter: Runs instead of the command line in the command's process; for baselines.
    """

    def __init__(
        self, folder: Path, *, has_first_files: bool = True, without: Sequence[str] = ()
    ) -> None:
        self.base = self.folder = folder
        self.computer = "laptop"
        self.guests = Guests(folder / "guests", has_first_files=has_first_files)
        # In the command's own process nothing throttles in simulated time but what a case asks for.
        self.world = Sandbox(machines=self.guests, without=tuple(without))
        self.guests.world = self.world
        self.world.__enter__()
        warm()
        self.clock = mmap.mmap(-1, 16)
        #: Whose instances there are; a class in students' own accounts has more than one.
        self.accounts = [DEFAULT_ACCOUNT]
        self._clients: dict[tuple[str, str, str], Any] = {}
        self._tick()
        self.guests.programs = folder / "bin"
        put_ssh(self.guests.programs)
        self.guests.put, self.guests.get = self._put, self._get
        self.guests.role_id = self._role_id
        for service in ("s3", "scheduler", "iam"):
            self.client(service)
        for region in REGIONS:
            self.client("ec2", region).describe_instances()
        accepts_cipher_order(str(self.guests.programs / "ssh"))
        self.enter: Callable[[Sequence[str]], int] = _command_line
        self.rival: tuple[str, ...] = ()
        self.rivals: list[Ran] = []
        self.is_recording = False
        self.was_broken = False
        self._doors = 0
        self.sandboxes: nursery.Nursery | None = None
        #: How a class's teacher calls whom a name serves.
        self.labels: dict[str, str] = {}

    def close(self) -> None:
        """End the world and remove every folder."""
        if self.sandboxes is not None:
            self.sandboxes.close()
        self.world.__exit__(None, None, None)
        shutil.rmtree(self.base, ignore_errors=True)

    # -- computers --------------------------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """`GPULAB_HOME` of the computer in use."""
        return self.folder / self.computer / "gpulab"

    def new_computer(self, name: str, config: str = CONFIG) -> None:
        """Take another computer with an empty folder."""
        self.computer = name
        self.new_folder(config)

    def new_folder(self, config: str = CONFIG) -> None:
        """Begin anew with an empty folder on the computer in use."""
        self.home.mkdir(parents=True)
        (self.home / "config.toml").write_text(config)

    def take_along(self, names: Sequence[str], computer: str) -> None:
        """Go on at another computer, with some of the user's own files and folders taken along."""
        before = self.home.parent
        self.new_computer(computer)
        for place in (before / name for name in names):
            if place.is_dir():
                shutil.copytree(place, self.home.parent / place.name)
            elif place.is_file():
                shutil.copy(place, self.home.parent)

    def move(self, folder: Path) -> None:
        """Copy all computers and machines elsewhere and go on from there."""
        skip = {"guests", "bin"}
        for place in self.folder.iterdir():
            if place.is_dir() and place.name not in skip and not place.name.startswith("case-"):
                shutil.copytree(place, folder / place.name, symlinks=True)
        self.guests.move(folder / "guests")
        self.folder = folder
        self.clock = mmap.mmap(-1, 16)  # shared with this stage's commands only
        self._tick()

    # -- running ----------------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.world.advance(seconds)
        self._tick()

    def run(self, *words: str, broken: Broken | None = None, skew_minutes: float = 0) -> Ran:
        """Run one command to its end, or to where it breaks."""
        skew = timedelta(minutes=skew_minutes)
        began, before = self.world.now(), len(self.world.calls)
        number = self._doors = self._doors + 1
        outs = [self.folder / f"{number}.{name}.out" for name in ("stdout", "stderr")]
        door = socket.socket(socket.AF_UNIX)
        door_path = str(self.folder / f"door{number}")
        door.bind(door_path)
        door.listen(8)
        child = self._start(words, outs, door_path, broken, skew)
        code, is_hung = self._serve(child, door, words, door_path)
        door.close()
        Path(door_path).unlink(missing_ok=True)
        said = [path.read_text(errors="replace") if path.exists() else "" for path in outs]
        if "unexpected way" in said[1]:
            reports = sorted((self.home / "errors").glob("*.txt"))
            said[1] += reports[-1].read_text() if reports else ""
        seconds = (self.world.now() - began).total_seconds()
        calls = len(self.world.calls) - before
        return Ran(words, code, said[0], said[1], seconds, calls, child.boundaries, is_hung)

    def _start(
        self,
        words: Sequence[str],
        outs: Sequence[Path],
        door: str,
        broken: Broken | None,
        skew: timedelta,
    ) -> _Child:
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            here.close()
            _become_command(self, words, outs, door, there, broken, skew)
        there.close()
        return _Child(pid, here, broken, skew)

    def _serve(
        self, child: _Child, door: socket.socket, words: Sequence[str], door_path: str
    ) -> tuple[int | None, bool]:
        """Answer a command until it ends."""
        chosen = selectors.DefaultSelector()
        chosen.register(child.end, selectors.EVENT_READ, "command")
        chosen.register(door, selectors.EVENT_READ, "door")
        until, is_hung = time.monotonic() + _HANGS_S, False
        calls: list[_SshCall] = []
        while True:
            ready = chosen.select(timeout=5)
            if time.monotonic() > until:
                is_hung = True
                os.kill(child.pid, signal.SIGKILL)
            for key, _ in ready:
                if key.data == "command":
                    if not self._answer_command(child, door_path):
                        _, status = os.waitpid(child.pid, 0)
                        child.end.close()
                        for call in calls:
                            call.end.close()
                        code = os.waitstatus_to_exitcode(status)
                        return (None if code < 0 else code), is_hung
                elif key.data == "door":
                    call = _SshCall(door.accept()[0], child)
                    calls.append(call)
                    chosen.register(call.end, selectors.EVENT_READ, call)
                else:
                    call = key.data
                    if not self._answer_ssh(call):
                        chosen.unregister(call.end)
                        call.end.close()
                        calls.remove(call)

    def _answer_command(self, child: _Child, door_path: str) -> bool:
        """Answer one question; false when the command is gone."""
        try:
            words = receive(child.end)
        except (EOFError, ConnectionError):
            return False
        reply: Any = None
        match words:
            case ["sleep", seconds]:
                self.advance(seconds)
            case ["mark", name]:
                child.boundaries.append(name)
            case ["broken"]:
                self.was_broken = True
            case ["pause", kind]:
                self._pause(kind)
            case ["aws", *request]:
                reply = self._aws(child, *request)
        with contextlib.suppress(ConnectionError):
            send(child.end, reply)
        return True

    # -- AWS --------------------------------------------------------------------------------------------------------------------

    def _aws(
        self,
        child: _Child,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        operation: str,
    ) -> tuple[Any, ...]:
        call = read_call(method, url, headers, body, operation=operation)
        fault = self._crossing(child, f"aws {call.service}:{operation}")
        child.calls += 1
        kind = fault.kind if fault else ""
        if kind == "kill before":
            return self._kill(child)
        if kind in ("request lost", "refused"):
            return (kind,)
        if kind == "interrupt":
            os.kill(child.pid, signal.SIGINT)
        if kind in PAUSES:
            self._pause(kind)
        if kind == "expired":
            self._expire_credentials()
        if kind in ("throttled", "always throttled"):
            return _refused(call, Refusal("RequestLimitExceeded", status=503))
        if kind in ("error", "error once"):
            return _refused(call, Refusal(fault.detail if fault else ""))
        if abs(child.skew) > _SKEW_LIMIT:
            code = _SKEW_CODES.get(call.service, "SignatureDoesNotMatch")
            return self._dated(_refused(call, Refusal(code)))
        if call.service == "s3" and operation in _READING:
            self.guests.tell()
        try:
            if operation == "DescribeRegions":
                regions = [{"RegionName": r, "OptInStatus": "opt-in-not-required"} for r in REGIONS]
                found = write_result(call, {"Regions": regions})
            else:
                found = self.world.handle(call, _forward)
        except ConnectionLost as lost:
            self._tick()
            return ("reply lost" if lost.took_effect else "request lost",)
        self._tick()
        if kind in ("kill after", "journal torn"):
            return self._kill(child)
        if kind in ("reply lost", "always lost"):
            return ("reply lost",)
        if kind == "failed after":
            return _refused(call, Refusal("InternalError"))
        return ("answer", found.status, dict(found.headers), found.body)

    def _crossing(self, child: _Child, label: str) -> Broken | None:
        """Count one boundary outside the command's process, and say what breaks there."""
        child.seen[label] = child.seen.get(label, 0) + 1
        name = f"{label} #{child.seen[label]}"
        child.boundaries.append(name)
        broken = child.broken
        if broken is None:
            return None
        if broken.at == name:
            child.is_broken = self.was_broken = True
            return broken
        if child.is_broken and broken.kind in _LASTING and _is_same(broken, label):
            child.struck += 1
            return broken if child.struck < _LASTS else None
        return None

    def _kill(self, child: _Child) -> tuple[Any, ...]:
        os.kill(child.pid, signal.SIGKILL)
        return ("killed",)

    def _expire_credentials(self) -> None:
        """Let every key expire but our own, with which the machines write."""
        self.world.expire_credentials()
        keys = self.world.credentials.keys
        for name, key in list(keys.items()):
            if key.arn.endswith(f"/{_ONLOOKER}"):
                keys[name] = replace(key, expires_at=None)

    def _pause(self, kind: str) -> None:
        if kind == "asleep":
            self.advance(600)
            return
        if self.rival:
            rival, self.rival = self.rival, ()
            self.rivals.append(self.run(*rival))

    def _dated(self, reply: tuple[Any, ...]) -> tuple[Any, ...]:
        kind, status, headers, body = reply
        date = self.world.now().strftime("%a, %d %b %Y %H:%M:%S GMT")
        return kind, status, {**headers, "Date": date}, body

    def _tick(self) -> None:
        micros = (self.world.now() - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        self.clock[:8] = struct.pack("<q", micros)

    # -- ssh --------------------------------------------------------------------------------------------------------------------

    def _answer_ssh(self, call: _SshCall) -> bool:
        """Answer one line of the `ssh` program; false when it is gone."""
        try:
            said = marshal.loads(receive_packed(call.end))  # noqa: S302 - our own program
        except (EOFError, ConnectionError, OSError):
            return False
        reply = self._ssh(call, said["argv"]) if "argv" in said else self._ssh_ended(call, said)
        if reply is None:
            return False
        with contextlib.suppress(OSError):
            send_packed(call.end, marshal.dumps(reply))
        return True

    def _ssh(self, call: _SshCall, argv: Sequence[str]) -> dict[str, Any] | None:
        address, text = _destination(argv)
        call.fault = self._crossing(call.child, f"ssh {_word(text)}")
        kind = call.fault.kind if call.fault else ""
        if kind == "kill before":
            os.kill(call.child.pid, signal.SIGKILL)
            return None
        if kind == "interrupt":
            os.kill(call.child.pid, signal.SIGINT)
        if kind in PAUSES:
            self._pause(kind)
        guest = self.guests.at(address)
        if guest is None or kind == "refused":
            return {
                "exit": 255,
                "err": f"ssh: connect to host {address} port 22: Connection refused",
            }
        guest.restore()
        if text.startswith("gpulab-agent "):
            try:
                out = guest.answer(text.split()[1:])
            except CannotKeepError as error:
                return self._ssh_ended(call, {"ended": 1}, err=str(error))
            return self._ssh_ended(call, {"ended": 0}, out)
        if not text.startswith(_HARMLESS):
            return self._ssh_ended(call, {"ended": 0}, guest.pretend(text))
        return {"run": text, "home": str(guest.home), "environ": environ_of(guest)}

    def _ssh_ended(
        self, call: _SshCall, said: Mapping[str, Any], out: str = "", *, err: str = ""
    ) -> dict[str, Any] | None:
        kind = call.fault.kind if call.fault else ""
        if kind == "kill after":
            os.kill(call.child.pid, signal.SIGKILL)
            return None
        if kind in ("reply lost", "always lost"):
            return {"exit": 255, "err": "client_loop: send disconnect: Broken pipe"}
        return {"exit": said["ended"], "out": out, "err": err}

    # -- S3 for the machines ----------------------------------------------------------------------------------------------------

    def client(self, service: str, region: str = REGIONS[0], account: str = DEFAULT_ACCOUNT) -> Any:
        """A client of our own, to look at the world with and to play the machines; it never meets a fault."""
        if (service, region, account) not in self._clients:
            key = self.world.key_of(account, user=_ONLOOKER).environment()
            self._clients[service, region, account] = boto3.client(
                service,
                region_name=region,
                aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
            )
        return self._clients[service, region, account]

    def clients(self, service: str) -> list[Any]:
        """One such client of each account."""
        return [self.client(service, account=account) for account in self.accounts]

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield every object of every bucket that is no machine's work, and what is in it."""
        for account, bucket in self._buckets():
            client = self.client("s3", account=account)
            for row in client.list_objects_v2(Bucket=bucket).get("Contents", []):
                if "/work/" not in row["Key"]:
                    yield row["Key"], self._get(account, bucket, row["Key"]) or b""

    def versions(self) -> Iterator[Mapping[str, Any]]:
        """Yield every version of every object."""
        for account, bucket in self._buckets():
            client = self.client("s3", account=account)
            yield from client.list_object_versions(Bucket=bucket).get("Versions", [])

    def _buckets(self) -> list[tuple[str, str]]:
        """Every bucket with its account."""
        return [
            (account, row["Name"])
            for account in self.accounts
            for row in self.client("s3", account=account).list_buckets()["Buckets"]
        ]

    def _put(self, account: str, bucket: str, key: str, body: bytes) -> str:
        reply = self.client("s3", account=account).put_object(Bucket=bucket, Key=key, Body=body)
        return str(reply.get("VersionId", ""))

    def _get(self, account: str, bucket: str, key: str) -> bytes | None:
        client = self.client("s3", account=account)
        try:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        except client.exceptions.NoSuchKey:
            return None

    def _role_id(self, account: str, name: str) -> str:
        client = self.client("iam", account=account)
        try:
            return str(client.get_role(RoleName=name)["Role"]["RoleId"])
        except client.exceptions.NoSuchEntityException:
            return ""


#: Calls that may show what the machines have told by then.
_READING = frozenset({"ListObjectsV2", "GetObject"})
#: What may really run, in a machine's folder: the programs that copy work. Everything else, such as cleaning a system, is pretended.
_HARMLESS = ("true", "python3 -I -c ", "rsync --server")
#: Kinds that go on after the first time, at every later call of the same operation or, for some, at every call.
_LASTING = frozenset({"always lost", "always throttled", "error", "refused"})

#: What lasts is over after so many calls: enough for every patience but that of minutes, whose every look would take real time.
_LASTS = 40


def _is_same(broken: Broken, label: str) -> bool:
    return broken.at.rsplit(" #", 1)[0] == label


class _SshCall:
    """One `ssh` that is under way."""

    def __init__(self, end: socket.socket, child: _Child) -> None:
        self.end = end
        self.child = child
        self.fault: Broken | None = None


def _destination(argv: Sequence[str]) -> tuple[str, str]:
    """Read the address and the command from ssh's arguments; rsync leaves `--` out."""
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word in ("-F", "-o", "-E", "-L", "-p", "-l", "-i"):
            rest.pop(0)
    return rest[0], " ".join(rest[1:])


def _word(command: str) -> str:
    """Name a command on the instance shortly: `gpulab-agent save`, `python3 list`."""
    words = command.split()
    if words and words[0] == "python3":
        return f"python3 {words[-2]}"
    return " ".join(words[:2])[:40]


def _refused(call: Any, refusal: Refusal) -> tuple[Any, ...]:
    found = write_refusal(call, refusal)
    return "answer", found.status, dict(found.headers), found.body


def _command_line(words: Sequence[str]) -> int:
    from gpulab.cli.main import run

    return run(words)


def _become_command(
    stage: Stage,
    words: Sequence[str],
    outs: Sequence[Path],
    door: str,
    end: socket.socket,
    broken: Broken | None,
    skew: timedelta,
) -> None:
    """Turn this fork into the command's process; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.disable()  # it would copy the memory that is shared with the stage, for a process that lives a second
        for number, path in ((1, outs[0]), (2, outs[1])):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
            os.close(handle)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they live as long as the process
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the same
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - the same
        os.environ["GPULAB_HOME"] = str(stage.home)
        os.environ["HOME"] = str(stage.home.parent)
        os.environ["CRASH_DOOR"] = door
        # In the user agent of each AWS call, for whoever judges whether the command may make it.
        os.environ |= said_in_calls(words)
        os.environ["GPULAB_COURSE"] = str(stage.home.parent / "course")
        os.environ["PATH"] = f"{stage.guests.programs}:{os.defpath}"
        os.chdir(stage.home.parent)
        seams = Seams(Line(end), stage.home.parent, stage.clock, broken, stage.is_recording, skew)
        seams.install()
        if stage.sandboxes is not None:
            nursery.take(seams, stage.sandboxes)
        code = stage.enter(words)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # what the product lets through is a finding, not our end
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        exit_now(code)
