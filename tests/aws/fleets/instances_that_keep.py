"""Instances whose files are real and kept by the agent's own code, with the credentials that the simulated EC2 gives them; ssh is played."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpulab.remote import hostkeys
from gpulab.sandbox import Sandbox
from gpulab.sandbox.births import birth_of
from gpulab.sandbox.machines.metadata import Guest

_SCRIPTS = str(Path(__file__).parents[3] / "scripts")


def soaking() -> Any:
    """The parts of the soak's machines that need no clock of their own."""
    if _SCRIPTS not in sys.path:
        sys.path.append(_SCRIPTS)
    from soaking import machines

    return machines


class Machine:
    """
    One instance, booted: what was kept before is back, as far as its agent finds it.

    Args:
        name: What it says it serves; by default the truth. Its user is root there.
    """

    is_off = False
    answers, skew_s = True, 0.0
    until = ""

    def __init__(self, sandbox: Sandbox, instance_id: str, folder: Path, *, name: str = "") -> None:
        self.sandbox, self.instance_id, self.ssh_at = sandbox, instance_id, sandbox.now()
        machines = soaking()
        self.agent = machines.load_agent()
        self.problem = self.agent.Problem
        self.agent.connect = lambda url: machines.S3Connection(self, sandbox, url)
        self.agent.os = machines._Without(self.agent.os, sync=lambda: None)
        self.spec = machines._spec_of(
            birth_of(sandbox, sandbox.instances_by_id[instance_id]).user_data
        )
        self.spec["name"] = name or self.spec["name"]
        place = folder / instance_id / "etc/gpulab/spec.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(self.spec))
        self.here = self.agent.Here(str(folder / instance_id))
        self.here.work.mkdir(parents=True)
        limits = folder / instance_id / "var/lib/gpulab/limits.json"
        self.agent.write_json(limits, {"instance": instance_id})
        if self.spec["keep"]:
            self.agent.restore(self.here, self)

    # -- the metadata service ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.sandbox.now().timestamp()

    def get(self, path: str) -> bytes | None:
        known = self.sandbox.instances_by_id[self.instance_id]
        role = known.profile[2] if known.profile else ""
        if path == "meta-data/iam/security-credentials/":
            return role.encode() or None
        if path == f"meta-data/iam/security-credentials/{role}":
            given = self.sandbox.credentials.for_role(
                known.account, role, self.instance_id, self.sandbox.now()
            )
            return json.dumps(given).encode()
        birth = birth_of(self.sandbox, self.sandbox.instances_by_id[self.instance_id])
        found = Guest(replace(birth, http_tokens="optional")).answer("GET", f"/latest/{path}", {})
        return found.body if found.status == 200 else None

    # -- its student, and gpulab's ssh ---------------------------------------------------------------------------------------

    def write(self, path: str, content: bytes) -> None:
        place = self.here.work / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def read(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.here.work)): p.read_bytes()
            for p in self.here.work.rglob("*")
            if p.is_file()
        }

    def save(self) -> dict[str, Any]:
        """What the agent does by itself: every minute, on a notice, before the deadline."""
        return dict(self.agent.save(self.here, self))

    def extend(self, until: str) -> None:
        self.until = until

    def manifest(self) -> list[dict[str, Any]]:
        return list(self.agent.manifest(self.here))

    def copy_program(self, words: list[str]) -> Any:
        return soaking().subprocess.Popen(
            [sys.executable, *words[1:]],
            cwd=self.here.work.parent,
            stdin=-1,
            stdout=-1,
            stderr=-1,
        )

    def status(self) -> dict[str, Any]:
        phase = {"name": "jupyter", "state": "done", "seconds": 1.0, "message": ""}
        return {
            "version": 1,
            "at": self.agent.iso(self.sandbox.now().timestamp()),
            "phases": [phase],
            "idle_minutes": 60,
            "jupyter": {"port": 8888, "ready": True},
            "gpu": [],
        }


class Machines:
    """Every machine of a test, as ssh finds them."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox, self.folder = sandbox, folder
        self.by_id: dict[str, Machine] = {}

    def boot(self, instance_id: str, **more: Any) -> Machine:
        machine = self.by_id[instance_id] = Machine(self.sandbox, instance_id, self.folder, **more)
        return machine

    def connect(self, target: Any) -> Any:
        """Open an instance; one that nobody has booted yet boots at the first look."""
        if target.instance_id not in self.by_id:
            self.boot(target.instance_id)
        return soaking().Host(self, target)

    def end(self, instance_id: str) -> None:
        """The instance ends by itself, as at its deadline, and nobody is there."""
        self.by_id[instance_id].is_off = True
        self.sandbox.machine_exited(instance_id)
        self.sandbox.advance(60)


def pin(known_hosts: Path, *instance_ids: str) -> None:
    """Pin a host key, as the console would have shown it."""
    for number, instance_id in enumerate(instance_ids):
        hostkeys.pin(known_hosts, instance_id, [hostkeys.HostKey(bytes([number]) * 32)])
