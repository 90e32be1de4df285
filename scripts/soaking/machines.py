"""
Machines without processes, for thousands of lives in simulated time: files are real and are kept by the agent's own code; booting,
JupyterLab and ssh are played. What a machine cannot keep before it is cut is written down with its reason.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gpulab.errors import Unreachable
from gpulab.remote import process as remote
from gpulab.remote.process import Completed
from gpulab.remote.target import SshTarget
from gpulab.sandbox.calls import ConnectionLost
from gpulab.sandbox.machines import Birth, Disk, Ingress, LiveMetadata
from gpulab.sandbox.machines.metadata import Guest
from gpulab.sandbox.wire import read_call
from gpulab.sandbox.world import World
from soaking.agent_program import load_agent
from soaking.clockwork import Clockwork, Ended

# What a start takes that no simulator can know; the lower part of what booted machines showed, see docs/machines.md.
_SSH_S = (12.0, 30.0, 18.0)
_JUPYTER_S = (15.0, 90.0, 30.0)
_LAST_SAVE_S = 20.0
_SAVE_LIMIT_S = 45.0
_LOOK_ON_NOTICE_S = 10.0
_TOKEN, _TTL = "x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"
_ENDINGS = {"user": "stopped by somebody", "notice": "spot notice", "cut": "cut without a notice"}


@dataclass(frozen=True)
class Lost:
    """
    A file that was not kept as it was last.

    Attributes:
        age_s: How long before the machine's end it was written.
        cause: How the machine ended.
        noticed_s: How long before its end the machine knew of it; 0 when it did not.
        is_refused: Whether S3 had refused the last attempt to keep it.
        has_bucket: Whether the instance could keep anything by itself.
    """

    path: str
    age_s: float
    cause: str
    noticed_s: float
    is_refused: bool = False
    has_bucket: bool = True


@dataclass
class Tally:
    """What became of all machines together."""

    booted: int = 0
    without_bucket: int = 0
    interrupted: int = 0
    doubled: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    saves: int = 0
    failed_saves: int = 0
    restores: int = 0
    restored_files: int = 0
    ends: dict[str, int] = field(default_factory=dict)


class Machines:
    """
    A kind of machine for `Sandbox(machines=...)`; give it its clockwork before the first launch.

    Args:
        folder: Where their disks lie.
    """

    name = "soak"
    clockwork: Clockwork

    def __init__(self, folder: Path, seed: str) -> None:
        self.tally = Tally()
        self.by_id: dict[str, Machine] = {}
        self.random = random.Random(seed)
        self.on_boot: Callable[[Machine], None] = lambda machine: None
        self._folder = folder

    def boot(self, birth: Birth, *, on_exit: Callable[[str], None]) -> Machine:
        """Make a machine and let it boot."""
        launch = birth.tags.get("gpulab:launch", "")
        twins = [m for m in self.by_id.values() if m.birth.tags.get("gpulab:launch") == launch]
        self.tally.doubled += [
            f"{launch}: {birth.instance_id}, {m.birth.instance_id}" for m in twins
        ]
        self.tally.booted += 1
        machine = Machine(self, birth, self._folder / birth.instance_id, on_exit)
        self.by_id[birth.instance_id] = machine
        self.on_boot(machine)
        return machine

    def addresses(self) -> tuple[str, str] | None:
        """Let the simulated EC2 choose."""
        return None

    def endpoint_host(self) -> str:
        """This computer; nothing listens there."""
        return "127.0.0.1"

    def delete_volume(self, volume_id: str) -> None:
        """No volume outlives its machine here."""

    def close(self) -> None:
        """Forget every machine."""
        self.by_id.clear()

    def host(self, target: SshTarget) -> Host:
        """Open an instance as if over ssh."""
        return Host(self, target)


class Machine:
    """One machine; see `gpulab.sandbox.machines.Machine` for what its calls promise."""

    door = None

    def __init__(
        self, kind: Machines, birth: Birth, root: Path, on_exit: Callable[[str], None]
    ) -> None:
        self.birth, self.root = birth, root
        self.is_off = False
        self.is_restored = False
        self.has_bucket = True
        self.kept: dict[str, str] = {}
        self.fetched: dict[str, str] = {}
        self.ready_at: datetime | None = None
        self.ssh_at: datetime | None = None
        self._kind, self._on_exit = kind, on_exit
        self._clockwork, self._now = kind.clockwork, kind.clockwork.world.now
        self._agent = self._own_agent()
        self._metadata = Guest(birth, new_token=lambda: "soak")
        self._metadata.answer("PUT", "/latest/api/token", {_TTL: "21600"})
        self._notice: Mapping[str, str] | None = None
        self._noticed_at: datetime | None = None
        self._written: dict[str, tuple[str, datetime]] = {}
        self._busy = threading.Lock()
        self._is_save_planned = False
        self._is_refused = False
        self._used_at = self._now()
        # Its kernel begins when EC2 says that it runs.
        self._booted_at = self._now() + self._clockwork.world.rules.delays.boot
        self._deadline: datetime | None = None
        self._keys = Ed25519PrivateKey.generate().public_key()
        self.here: Any = None
        self._clockwork.begin(self._now(), self._boot)

    # -- what the simulated EC2 asks -------------------------------------------------------------------------------------------

    def console(self) -> str:
        """Show the host key between its markers."""
        line = self._keys.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return f"-----BEGIN SSH HOST KEY KEYS-----\n{line} root@soak\n-----END SSH HOST KEY KEYS-----\n"

    def publish(self, metadata: LiveMetadata) -> None:
        """Take new metadata; a notice is seen at the agent's next look."""
        self._metadata.publish(metadata)
        self._notice = metadata.notice
        if metadata.notice and self._noticed_at is None:
            self._noticed_at = self._now()
            self._kind.tally.interrupted += 1
            self._clockwork.after(self._kind.random.uniform(0, 5), self._save_on_notice)

    def admit(self, ingress: tuple[Ingress, ...]) -> None:
        """Nothing knocks here."""

    def power_off(self) -> None:
        """Go off, some seconds from now."""
        self._clockwork.after(self._kind.random.uniform(2, 15), lambda: self._off("user"))

    def cut(self) -> None:
        """Go off now."""
        self._off("notice" if self._noticed_at else "cut")

    def power_on(self) -> None:
        """One-time spot instances are never started again."""

    def attach(self, disk: Disk) -> None:
        """No volumes are attached in a term."""

    def detach(self, volume_id: str) -> None:
        """No volumes are detached in a term."""

    def discard(self) -> None:
        """Remove the disk."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._kind.by_id.pop(self.birth.instance_id, None)

    # -- what a student and gpulab's ssh do ------------------------------------------------------------------------------------

    def write(self, path: str, content: bytes) -> None:
        """Save a file in JupyterLab."""
        place = self.here.work / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        at = int(self._now().timestamp() * 1e9)
        os.utime(place, ns=(at, at))
        self._written[path] = (hashlib.sha256(content).hexdigest(), self._now())
        self._used_at = self._now()
        if not self._is_save_planned:
            self._is_save_planned = True
            self._clockwork.after(
                self._kind.random.uniform(0, self._agent.SAVE_S), self._save_when_seen
            )

    def status(self) -> dict[str, Any]:
        """What the agent tells."""
        ready = self.ready_at is not None
        at = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        phases = [
            {"name": name, "state": "done" if ready else "running", "seconds": 1.0, "message": ""}
            for name in ("armed", "work", "jupyter")
        ]
        return {
            "version": 1,
            "at": at,
            "phases": phases,
            "idle_minutes": self.here.spec["idle_minutes"],
            "jupyter": {"port": 8888, "ready": ready},
            "gpu": [],
        }

    def save(self) -> dict[str, Any]:
        """
        Keep the work, by the agent's own code, one save at a time.

        Raises:
            Problem: S3 does not answer.
        """
        if not self.has_bucket:
            return {}
        while not self._busy.acquire(blocking=False):
            self._nap(1)
        self._count_use()
        try:
            said = self._agent.save(self.here, self)
        except self._agent.Problem:
            self._kind.tally.failed_saves += 1
            self._is_refused = True
            raise
        except OSError as error:
            if self.is_off:  # cut meanwhile, and its disk is gone
                raise Ended from error
            raise
        finally:
            self._busy.release()
        self._kind.tally.saves += 1
        self._is_refused = False
        return dict(said)

    def manifest(self) -> list[dict[str, Any]]:
        """List the work with hashes, by the agent's own code."""
        return list(self._agent.manifest(self.here))

    def copy_program(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run the instance's side of a copy in the home folder, as ssh would."""
        if words[4] == "list":  # no time passes before what is listed is copied
            self.fetched = {path: sha256 for path, (sha256, _) in self._written.items()}
        return subprocess.Popen(
            [sys.executable, *words[1:]],
            cwd=self.here.work.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def extend(self, until: str) -> None:
        """Move the deadline."""
        self._deadline = datetime.fromisoformat(until.replace("Z", "+00:00"))

    @property
    def problem(self) -> type[Exception]:
        """What the agent's program raises when it cannot save."""
        return self._agent.Problem  # type: ignore[no-any-return]

    # -- the metadata service, as the agent asks it ----------------------------------------------------------------------------

    answers = True
    skew_s = 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._now().timestamp()

    def get(self, path: str) -> bytes | None:
        """Answer as the simulator's own service does."""
        found = self._metadata.answer("GET", f"/latest/{path}", {_TOKEN: "soak"})
        return found.body if found.status == 200 else None

    def _own_agent(self) -> Any:
        """The agent's own program, with the world's clock and with its connections to S3 led into the world."""
        agent = load_agent()
        agent.time = self._clockwork.as_time()
        agent.connect = lambda endpoint: S3Connection(self, self._clockwork.world, endpoint)
        # The host's disk is not what is tested, and syncing it would make everybody on this computer wait.
        agent.os = _Without(os, sync=lambda: None)
        return agent

    # -- its life --------------------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        draw = self._kind.random.triangular
        self._nap(draw(*_SSH_S))
        spec = _spec_of(self.birth.user_data)
        place = self.root / "etc/gpulab/spec.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(spec))
        clock = self.root / "proc/stat"
        clock.parent.mkdir()
        clock.write_text(f"btime {self._booted_at.timestamp():.0f}\n")
        self.has_bucket = spec["keep"] is not None
        self._kind.tally.without_bucket += not self.has_bucket
        self.here = self._agent.Here(str(self.root))
        self.here.work.mkdir(parents=True)
        limits = self.root / "var/lib/gpulab/limits.json"
        self._agent.write_json(limits, {"instance": self.birth.instance_id})
        self._deadline = datetime.fromisoformat(spec["deadline"].replace("Z", "+00:00"))
        self.ssh_at = self._now()
        self._restore()
        self._nap(draw(*_JUPYTER_S))
        self.ready_at = self._used_at = self._now()
        self._clockwork.after(self._agent.BEAT_S, self._beat)
        self._live_on(timedelta(minutes=spec["idle_minutes"]))

    def _beat(self) -> None:
        """Tell every five minutes, as the agent does, that the machine lives."""
        while self.has_bucket and not self.is_off:
            self._count_use()
            self._agent.tell_costs(self.here, self)
            self._nap(self._agent.BEAT_S)

    def _count_use(self) -> None:
        """Note what the agent's watcher does: since when it counts, and how long."""
        if self.ssh_at is not None:
            seconds = round((self._now() - self.ssh_at).total_seconds())
            since = self._agent.iso(self.ssh_at.timestamp())
            used = {"since": since, "seconds": seconds, "idle_seconds": 0}
            self._agent.write_json(self.root / "run/gpulab/status.json", {"used": used})

    def _restore(self) -> None:
        if not self.has_bucket:
            return
        try:
            said = self._agent.restore(self.here, self)
        except self._agent.Problem:
            return  # the first save does it again, and keeps nothing before it has
        self.is_restored = True
        self._kind.tally.restores += 1
        if said[0].isdigit():
            self._kind.tally.restored_files += int(said.split()[0])

    def _live_on(self, idle: timedelta) -> None:
        """Wait for the end, the deadline's or that of idleness, as the agent does: a last save, then the power."""
        while True:
            assert self._deadline is not None
            idle_end = self._used_at + idle if idle else self._deadline
            end = min(self._deadline, idle_end)
            left = (end - self._now()).total_seconds()
            if left <= _LAST_SAVE_S:
                break
            self._nap(left - _LAST_SAVE_S)
        reason = "idle" if idle_end < self._deadline else "deadline"
        self._write_down(end, by="user", reason=reason)
        limit = end + timedelta(seconds=_SAVE_LIMIT_S)
        self._clockwork.begin(self._now(), self._save_at_end)
        self._nap(max(0.0, (end - self._now()).total_seconds()))
        while self._is_saving_last and self._now() < limit:
            self._nap(1)
        self._off(reason)

    _is_saving_last = True

    def _save_at_end(self) -> None:
        with contextlib.suppress(self._agent.Problem):
            self.save()
        self._is_saving_last = False

    def _save_when_seen(self) -> None:
        """Save at this look, and at each one after it until everything is kept."""
        self._is_save_planned = False
        while self.has_bucket and self._unkept():
            with contextlib.suppress(self._agent.Problem):
                self.save()
            if self._unkept():
                self._nap(self._agent.SAVE_S)

    def _save_on_notice(self) -> None:
        """Save at once, and until the cut at every look that finds something new; looks are closer now."""
        if self.here is None:
            return
        assert self._notice is not None
        until = datetime.fromisoformat(self._notice["time"].replace("Z", "+00:00"))
        self._write_down(until, by="aws", reason="Server.SpotInstanceTermination")
        while True:
            with contextlib.suppress(self._agent.Problem):
                self.save()
            self._nap(_LOOK_ON_NOTICE_S)
            while not self._unkept():
                self._nap(_LOOK_ON_NOTICE_S)

    def _unkept(self) -> list[str]:
        """Paths whose last content is not in the kept copy."""
        kept = self._kept_now()
        return [path for path, (sha256, _) in self._written.items() if kept.get(path) != sha256]

    def _kept_now(self) -> dict[str, str]:
        """What is in the kept copy, hash by path, as the agent's own note of its last manifest says."""
        if self.here is None or not self.has_bucket:
            return self.fetched
        known = self._agent.read_json(self.root / "var/lib/gpulab/kept.json")
        return {path: entry["sha256"] for path, entry in known.get("entries", {}).items()}

    def _write_down(self, at: datetime, *, by: str, reason: str) -> None:
        moment = self._agent.iso(at.timestamp())
        self._agent.fact(self.here, "ended", moment, by=by, how="terminated", reason=reason)

    def _off(self, cause: str) -> None:
        if self.is_off:
            return
        self.is_off = True
        self.kept = self._kept_now()
        now, tally = self._now(), self._kind.tally
        noticed = (now - self._noticed_at).total_seconds() if self._noticed_at else 0.0
        named = _ENDINGS.get(cause, cause)
        tally.ends[named] = tally.ends.get(named, 0) + 1
        for path in self._unkept():
            age = (now - self._written[path][1]).total_seconds()
            tally.lost.append(Lost(path, age, named, noticed, self._is_refused, self.has_bucket))
        self._on_exit(self.birth.instance_id)

    def _nap(self, seconds: float) -> None:
        self._clockwork.sleep(seconds)
        if self.is_off:
            raise Ended


class Host:
    """An instance over ssh, as far as gpulab asks it."""

    starter = None

    def __init__(self, machines: Machines, target: SshTarget) -> None:
        self.target = target
        self._machines = machines

    def run(
        self, command: Sequence[str], *, check: bool = True, given: bytes = b"", **_: Any
    ) -> Completed:
        """
        Answer a command.

        Raises:
            Unreachable: The machine is off, or not that far.
        """
        machine = self._machine()
        words = list(command)
        if words[0] == "python3":
            with machine.copy_program(words) as program:
                said, _complaint = program.communicate(given)
            return Completed(program.returncode, said, "")
        if words == ["true"]:
            return Completed(0, b"", "")
        if words[:2] == ["gpulab-agent", "status"]:
            return Completed(0, json.dumps(machine.status()).encode(), "")
        if words[:2] == ["gpulab-agent", "extend"]:
            machine.extend(words[3])
            return Completed(0, b"", "")
        if words[:2] == ["gpulab-agent", "manifest"]:
            lines = [json.dumps(entry) for entry in machine.manifest()]
            return Completed(0, "\n".join(lines).encode(), "")
        if words[:2] == ["gpulab-agent", "save"]:
            return self._saved(machine)
        raise AssertionError(f"nobody taught this machine {words}")

    def start(self, command: Sequence[str]) -> Program:
        """
        Start the instance's side of a copy.

        Raises:
            Unreachable: The machine is off, or not that far.
        """
        return Program(self._machine().copy_program(list(command)))

    def raise_if_ssh_failed(self, ended: remote.Ended) -> None:
        """Nothing lies between here and a machine."""

    def _machine(self) -> Machine:
        machine = self._machines.by_id.get(self.target.instance_id)
        if machine is None or machine.is_off or machine.ssh_at is None:
            raise Unreachable("Connection timed out")
        return machine

    def _saved(self, machine: Machine) -> Completed:
        try:
            return Completed(0, json.dumps(machine.save()).encode(), "")
        except machine.problem as problem:
            return Completed(1, b"", f"error: {problem}")
        except Ended:
            raise Unreachable("Connection reset") from None


class Program:
    """A program that runs, as `gpulab.remote` takes it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout
        self._process = process

    def wait(self) -> remote.Ended:
        """Wait for its end."""
        code = self._process.wait()
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode()
        for pipe in (self.stdin, self.stdout, self._process.stderr):
            pipe.close()
        return remote.Ended(code, said, "")

    def kill(self) -> None:
        """End it."""
        self._process.kill()


class S3Connection:
    """What the agent takes for an `http.client.HTTPSConnection`; its requests go straight into the world."""

    def __init__(self, machine: Machine, world: World, endpoint: str) -> None:
        self._machine, self._world, self._endpoint = machine, world, endpoint.rstrip("/")
        self._answer: Any = None

    def request(self, method: str, path: str, body: bytes = b"", headers: Any = None) -> None:
        """
        Send a request.

        Raises:
            OSError: The connection broke.
            Ended: The machine is off.
        """
        if self._machine.is_off:
            raise Ended
        url = self._endpoint + quote(path, safe="/-_.~%?&=")
        sent = {**(headers or {}), "Host": self._endpoint.partition("://")[2]}
        try:
            found = self._world.handle(read_call(method, url, sent, body), self._world.forward)
        except ConnectionLost as lost:
            raise ConnectionResetError(str(lost)) from lost
        names = {name.lower(): str(value) for name, value in found.headers.items()}
        self._answer = SimpleNamespace(
            status=found.status, headers=_Headers(names), read=lambda: found.body
        )

    def getresponse(self) -> Any:
        """Return the answer to the last request."""
        return self._answer


class _Headers(dict[str, str]):
    """Header names in any case."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())


class _Without:
    """A module with something replaced."""

    def __init__(self, module: Any, **instead: Any) -> None:
        self._module = module
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _spec_of(user_data: bytes) -> dict[str, Any]:
    config = json.loads(gzip.decompress(user_data).decode().partition("\n")[2])
    files = {one["path"]: one["content"] for one in config["write_files"]}
    return dict(json.loads(files["/etc/gpulab/spec.json"]))
