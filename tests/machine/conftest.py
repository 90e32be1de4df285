"""What the tests of booted machines share: one network for the whole run, machines by a birth, ssh with the key from the console."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpulab.sandbox.machines import Birth, CannotBoot, Disk, Ingress
from gpulab.sandbox.machines.container import ContainerKind, build, missing, open_kind
from gpulab.sandbox.machines.container.boot import ContainerMachine
from gpulab.sandbox.witnesses import KEPT_IN

# Read before the tests get a stranger's empty HOME: a base is built once for all runs.
_HOST = dict(os.environ)
_numbers = itertools.count(0xABC000)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

BOOT_SECONDS = 120
"""How long a test waits for what a boot brings, on a busy computer."""

SETUP_SECONDS = 420
"""How long a test waits for the last phase: with TensorFlow 2 GB are unpacked and imported, by cores that others may use as well."""

_TEST_SECONDS = 600
"""How long a test may take that says nothing else: longer than what it waits for, so that the wait says what is missing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder the time that a busy computer takes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker(
            "timeout"
        ):
            item.add_marker(pytest.mark.timeout(_TEST_SECONDS))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the base before the first test's time runs: it takes minutes on a slow computer, and no test is about it."""
    is_wanted = any(item.get_closest_marker("machine") for item in session.items)
    if is_wanted and not session.config.option.collectonly and not missing(for_build=True):
        with contextlib.suppress(CannotBoot):  # the fixture says it where it is read
            build(_environment())


@pytest.fixture(scope="session")
def container_environment() -> dict[str, str]:
    """The environment machines are made with, its base built; skips where this host cannot boot machines."""
    lack = missing(for_build=True)
    if lack:
        pytest.skip(lack)
    build(_environment())
    return _environment()


def _environment() -> dict[str, str]:
    return _HOST | {"HOME": _HOST.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir}


@pytest.fixture(scope="session")
def container_kind(container_environment: dict[str, str]) -> Iterator[ContainerKind]:
    """One network of machines for the whole run; everything in it ends with the run."""
    kind = open_kind(container_environment)
    yield kind
    kind.close()


@pytest.fixture(scope="session")
def notebook() -> ModuleType:
    """`scripts/notebook.py`: runs a notebook as a browser does."""
    return _script("notebook")


@pytest.fixture(scope="session")
def student(container_environment: dict[str, str], tmp_path_factory: Any) -> Iterator[Any]:
    """One student's computer and account for the whole run, driven by the real command line (`scripts/rehearsal.py`)."""
    home = tmp_path_factory.mktemp("student") / "gpulab"
    surroundings = container_environment | {KEPT_IN: os.environ[KEPT_IN]}
    with _script("rehearsal").rehearsal(home, surroundings) as made:
        made.gpulab("sandbox", "quota", "L-3819A6DF", "512", "--region", "us-east-1")
        yield made


def _script(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def login_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private key of the login user; the public one lies beside it."""
    key = tmp_path_factory.mktemp("login") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return key


@pytest.fixture
def machines(
    container_kind: ContainerKind, login_key: Path, tmp_path: Path
) -> Iterator[MachineMaker]:
    """Boots machines for one test, and discards them after it."""
    maker = MachineMaker(container_kind, login_key, tmp_path)
    yield maker
    maker.discard_all()


@dataclass
class Booted:
    """One machine under test, with the moments it went off."""

    machine: ContainerMachine
    birth: Birth
    key: Path
    folder: Path
    exits: list[str] = field(default_factory=list)
    has_gone_off: threading.Event = field(default_factory=threading.Event)

    def went_off(self, instance_id: str) -> None:
        """Take down that the machine told of its end."""
        self.exits.append(instance_id)
        self.has_gone_off.set()

    def wait_until_off(self) -> None:
        """Wait for the machine to tell that it is off."""
        assert self.has_gone_off.wait(BOOT_SECONDS), self.machine.console()[-2000:]
        self.has_gone_off.clear()

    def wait_for_ssh(self) -> Booted:
        """Wait until a command runs, with the host key that the console shows."""
        eventually(
            lambda: bool(self.host_keys()) and self.ssh("true").returncode == 0,
            lambda: self.machine.console()[-3000:],
        )
        return self

    def host_keys(self) -> list[str]:
        """The host keys on the console, as cloud-init prints them at the end of the first boot."""
        kinds = ("ssh-ed25519 ", "ecdsa-sha2-", "ssh-rsa ")
        return [line for line in self.machine.console().splitlines() if line.startswith(kinds)]

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the login user; a changed host key is refused."""
        known = self.folder / f"known-{self.birth.instance_id}"
        address, port = self.machine.door or (self.birth.private_address, 22)
        known.write_text("".join(f"{address} {key}\n" for key in self.host_keys()))
        options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
        options += ["ConnectTimeout=2", "IdentitiesOnly=yes", "LogLevel=ERROR"]
        words = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(port)]
        words += [word for option in options for word in ("-o", option)]
        words += [f"ubuntu@{address}", command]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    def run(self, command: str) -> str:
        """Run a command that must succeed; return what it printed, without white space around."""
        done = self.ssh(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()


@dataclass
class MachineMaker:
    """Boots machines, remembers them, discards them."""

    kind: ContainerKind
    key: Path
    folder: Path
    made: list[Booted] = field(default_factory=list)

    def boot(self, **changes: object) -> Booted:
        """Boot a machine from a small cloud-config; `changes` replace parts of its birth."""
        birth = replace(self.birth(), **changes)  # type: ignore[arg-type]
        told: list[Callable[[str], None]] = []
        machine = self.kind.boot(birth, on_exit=lambda instance_id: told[0](instance_id))
        booted = Booted(machine, birth, self.key, self.folder)
        told.append(booted.went_off)
        self.made.append(booted)
        return booted

    def birth(self) -> Birth:
        """An instance with a root of 8 GiB, whose security group lets this host in on port 22."""
        private, public = self.kind.addresses()
        number = next(_numbers)
        return Birth(
            instance_id=f"i-{os.getpid():08x}{number:09x}",
            account="123456789012",
            region="us-east-1",
            zone="us-east-1a",
            instance_type="g4dn.xlarge",
            image_id="ami-0debian",
            market="spot",
            private_address=private,
            public_address=public,
            public_key=self.key.with_name("key.pub").read_text().strip(),
            user_data=b"#cloud-config\nruncmd:\n- [touch, /root/user-data-ran]\n",
            tags={"gpulab:name": "week4"},
            launched_at=datetime.now(UTC),
            tags_in_metadata=True,
            disks=(self.disk("root", is_root=True),),
            ingress=(Ingress("tcp", 22, 22, f"{self.kind.endpoint_host()}/32"),),
        )

    def disk(self, name: str, *, is_root: bool = False, survives: bool = False) -> Disk:
        """A volume with an id of its own: 8 GiB for a root, else 1 GiB."""
        device, size_gib = ("/dev/sda1", 8) if is_root else ("/dev/sdf", 1)
        volume_id = f"vol-{name}{os.getpid():x}{next(_numbers):x}"
        return Disk(
            volume_id, device, size_gib, is_root=is_root, delete_on_termination=not survives
        )

    def discard_all(self) -> None:
        """Cut and remove every machine of the test."""
        for booted in self.made:
            booted.machine.discard()
        for booted in self.made:
            booted.machine.wait_until_off(BOOT_SECONDS)


def eventually(
    holds: Callable[[], bool],
    describe: Callable[[], str] = lambda: "",
    *,
    patience_s: float = BOOT_SECONDS,
) -> None:
    """Wait until a claim holds; fail with a description when it does not come true."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if holds():
            return
        time.sleep(0.1)
    pytest.fail(f"it did not come true in time: {describe()}")


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., None]:
    """Waits until a claim holds."""
    return eventually


def set_up(
    machine: Any, *, until: str = "", patience_s: float = SETUP_SECONDS
) -> dict[str, dict[str, Any]]:
    """
    Wait until an instance has gone through its phases, or through one of them; each is given by its name.

    A phase that failed fails the test at once, in its own words: whatever would come later is a symptom.
    """
    phases: dict[str, dict[str, Any]] = {}

    def is_over() -> bool:
        said = machine.ssh("gpulab-agent status")
        if said.returncode == 0:
            phases.update({phase["name"]: phase for phase in json.loads(said.stdout)["phases"]})
        for name, phase in phases.items():
            if phase["state"] == "failed":
                pytest.fail(f"phase {name} failed: {phase['message']}\n\n{_last_lines(machine)}")
        waited_for = [phases[until]] if until in phases else phases.values()
        return bool(phases) and all(phase["state"] == "done" for phase in waited_for)

    eventually(is_over, lambda: f"{phases}\n\n{_last_lines(machine)}", patience_s=patience_s)
    return phases


def _last_lines(machine: Any) -> str:
    """The end of the agent's log, by which a person sees why."""
    said = machine.ssh("tail -n 40 /var/log/gpulab/agent.log").stdout
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return f"the end of the agent's log:\n{text}"


@pytest.fixture(name="set_up", scope="session")
def _set_up() -> Callable[..., dict[str, dict[str, Any]]]:
    """Waits until an instance is set up, and says which phase failed."""
    return set_up
