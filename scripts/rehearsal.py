"""
The installed gpulab against a simulated AWS whose instances really boot: what the tests of whole lives and the benchmark drive.

Everything goes through the command line, as a student types it; AWS is looked at through boto3, as a console would show it. Needs root on
Linux and the packages that `gpulab sandbox start --machines container` names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from gpulab.sandbox.witnesses import said_in_calls

_ANSWERS_WITHIN_S = 280
# Eight machines at once install their environments on two cores that others may use as well.
_IS_UP_WITHIN_S = 900
_SSH = (
    *("StrictHostKeyChecking=yes", "BatchMode=yes", "ConnectTimeout=5", "LogLevel=ERROR"),
    *("ServerAliveInterval=3", "ServerAliveCountMax=3"),  # a machine that goes off says nothing
)


class Failed(Exception):
    """A command or a wait did not come to what it should; the text has the last words of both streams."""


@dataclass(frozen=True)
class Machine:
    """
    An instance that runs, reached by ssh with the key that gpulab has pinned.

    Attributes:
        folder: `GPULAB_HOME` of its owner.
        url: JupyterLab through the tunnel; empty without one.
    """

    id: str
    name: str
    zone: str
    address: str
    folder: Path
    url: str = ""

    def ssh(self, script: str, *, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a shell script as the login user, whatever comes of it."""
        mine = self.folder / "profiles" / "sandbox"
        known = (f"UserKnownHostsFile={mine / 'known_hosts'}", f"HostKeyAlias={self.id}")
        words = ["ssh", "-F", "none", "-i", str(mine / "keys" / "id_ed25519")]
        words += [word for option in (*_SSH, *known) for word in ("-o", option)]
        words += [f"ubuntu@{self.address}", script]
        return subprocess.run(
            words, input=given, capture_output=True, timeout=_ANSWERS_WITHIN_S, check=False
        )

    def run(self, script: str, *, given: bytes = b"") -> str:
        """
        Run a shell script that must succeed.

        Returns:
            What it printed, without white space around.

        Raises:
            Failed: It ended with an error.
        """
        done = self.ssh(script, given=given)
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:].decode(errors="replace")
            raise Failed(f"`{script[:200]}` on {self.name} ended with {done.returncode}: {said}")
        return done.stdout.decode(errors="replace").strip()

    def status(self) -> dict[str, Any]:
        """What the agent says."""
        return dict(json.loads(self.run("gpulab-agent status")))

    def log(self) -> str:
        """What the agent wrote down."""
        return self.run("cat /var/log/gpulab/agent.log")


@dataclass(frozen=True)
class Rehearsal:
    """
    A student's computer and account, both made up.

    Attributes:
        folder: `GPULAB_HOME`.
        surroundings: Environment variables without any of this computer's AWS settings.
    """

    folder: Path
    surroundings: dict[str, str]

    def gpulab(self, *words: str, timeout_s: float = _ANSWERS_WITHIN_S) -> str:
        """
        Run a command to its end.

        Returns:
            Its standard output.

        Raises:
            Failed: It ended with another code than 0.
        """
        program = Path(sys.executable).with_name("gpulab")
        done = subprocess.run(
            [program, *words],
            env=self.surroundings | said_in_calls(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            said = f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
            raise Failed(f"`gpulab {' '.join(words)}` ended with {done.returncode}: {said}")
        return done.stdout

    def up(self, name: str, *words: str, environment: str = "tf2-small") -> Machine:
        """Start an instance, or bring one back; with `--no-open` among the words there is no tunnel."""
        asked = ("up", name, "--env", environment, "--yes", "--json", *words)
        said = json.loads(self.gpulab(*asked, timeout_s=_IS_UP_WITHIN_S))
        instance = said["instance"]
        return Machine(
            id=instance["id"],
            name=name,
            zone=instance["place"]["zone"],
            address=instance["address"],
            folder=self.folder,
            url=said["url"],
        )

    def seen(self, machine: Machine) -> dict[str, Any]:
        """The instance as DescribeInstances shows it now."""
        found = self.client("ec2").describe_instances(InstanceIds=[machine.id])
        return dict(found["Reservations"][0]["Instances"][0])

    def wait_until_ended(self, machine: Machine, *, within_s: float = 280) -> datetime:
        """Wait until AWS says `terminated`; returns when that was seen."""
        eventually(
            lambda: self.seen(machine)["State"]["Name"] == "terminated",
            lambda: f"{machine.name} is {self.seen(machine)['State']['Name']}",
            within_s=within_s,
            look_s=2,  # many wait at once, and EC2 has a limit of calls a second
        )
        return datetime.now(UTC)

    def console(self, machine: Machine) -> str:
        """What the machine wrote to its console, also after its end."""
        said = self.client("ec2").get_console_output(InstanceId=machine.id, Latest=True)
        return str(said.get("Output", ""))

    def kept(self, name: str) -> dict[str, dict[str, Any]]:
        """The manifest of the kept work, by path; empty when nothing was kept."""
        s3 = self.client("s3")
        bucket, key = self._kept_at(name, "manifest.json")
        try:
            body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return {}
        return {entry["path"]: entry for entry in json.loads(body)["entries"]}

    def kept_file(self, name: str, path: str) -> bytes:
        """A file of the kept work, as any S3 client reads it."""
        bucket, key = self._kept_at(name, f"work/{path}")
        return bytes(self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())

    def pull_the_plug(self, machine: Machine) -> None:
        """Cut the power of a machine, without a word to anyone: its host process dies, and all others with it."""
        listed = {
            int(pid)
            for folder in _cgroups(machine)
            for file in folder.rglob("cgroup.procs")
            for pid in file.read_text().split()
        }
        (host,) = [p for p in listed if _program(p) == "systemd-nspawn"]
        os.kill(host, signal.SIGKILL)

    def limit_memory(self, machine: Machine, mib: int) -> None:
        """Give a machine so much memory in all; the kernel ends the largest program when it needs more."""
        for folder in _cgroups(machine):
            for file in ("memory.max", "memory.limit_in_bytes"):
                if (folder / file).exists():
                    (folder / file).write_text(str(mib * 2**20))

    def client(self, service: str) -> Any:
        """An AWS client of this account."""
        home = self.folder / "sandbox" / "aws"
        keys = dict(
            line.split(" = ", 1)
            for line in (home / "credentials").read_text().splitlines()
            if " = " in line
        )
        control = json.loads((self.folder / "sandbox" / "control.json").read_text())
        session: Any = boto3
        return session.client(
            service,
            region_name="us-east-1",
            endpoint_url=control["url"],
            aws_access_key_id=keys["aws_access_key_id"],
            aws_secret_access_key=keys["aws_secret_access_key"],
            config=Config(retries={"mode": "standard", "total_max_attempts": 10}),
        )

    def _kept_at(self, name: str, path: str) -> tuple[str, str]:
        owner = self.setting("owner")
        return self.setting("keep_bucket"), f"{owner}/{name}/{path}"

    def setting(self, name: str) -> str:
        """A text in the profile that `gpulab init` wrote."""
        lines = (self.folder / "config.toml").read_text().splitlines()
        (value,) = [line.split('"')[1] for line in lines if line.startswith(f"{name} = ")]
        return value


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _cgroups(machine: Machine) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [*top.glob(f"*/{machine.id}"), *top.glob(f"*/*/{machine.id}")]


@contextmanager
def rehearsal(folder: Path, environ: dict[str, str]) -> Iterator[Rehearsal]:
    """
    Start a simulated AWS with machines that boot, and set up an account in it; end all of it afterwards.

    Args:
        folder: Becomes `GPULAB_HOME`; need not exist.
        environ: Where caches and the base system are found; AWS's and gpulab's own settings in it are left out.
    """
    kept = ("GPULAB_SANDBOX_CACHE", "GPULAB_SANDBOX_ASKED")
    surroundings = {
        name: value
        for name, value in environ.items()
        if name in kept or not name.startswith(("AWS_", "GPULAB_", "BOTO_"))
    }
    surroundings |= {"GPULAB_HOME": str(folder), "GPULAB_PROFILE": "sandbox", "NO_COLOR": "1"}
    made = Rehearsal(folder, surroundings)
    made.gpulab("sandbox", "start", "--machines", "container")
    try:
        made.gpulab("init", "--yes")
        yield made
    finally:
        made.gpulab("sandbox", "stop")


def eventually(
    holds: Callable[[], bool],
    describe: Callable[[], str] = lambda: "",
    *,
    within_s: float = 120,
    look_s: float = 0.25,
) -> None:
    """
    Wait until a claim holds, looking every `look_s` seconds.

    Raises:
        Failed: It did not come true in time.
    """
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            raise Failed(f"it did not come true within {within_s:.0f} s: {describe()}")
        time.sleep(look_s)
