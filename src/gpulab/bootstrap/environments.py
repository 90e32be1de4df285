"""
Lab environments as data. Hides where they lie and how `environment.toml` is read; refuses one without a lock.

An environment is a folder: `environment.toml`, `requirements.in`, `cpu.lock`, perhaps `gpu.lock` and `check.py`.
JupyterLab itself is not in it: every environment runs beside the one shared server lock.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulab.bootstrap.locks import Lock, parse_lock
from gpulab.bootstrap.resources import shipped
from gpulab.errors import WrongUsage

_SERVER = "server"


@dataclass(frozen=True)
class Environment:
    """
    One lab environment, and the server it runs beside.

    Attributes:
        name: Folder name, `tf2`.
        title: What JupyterLab shows as the kernel's name.
        server: The lock of JupyterLab.
        cpu: The kernel's lock on an instance without a GPU.
        gpu: The kernel's lock on an instance with one; the same as `cpu` where the environment has no other.
        uv: One requirement line with hashes: what installs the locks.
        experimental: What is unverified, a sentence; empty for an environment that was run.
        installed_gib: Disk the GPU variant occupies, GiB; `None` if not measured.
        folder: Where it was read from.
    """

    name: str
    title: str
    server: Lock
    cpu: Lock
    gpu: Lock
    uv: str
    experimental: str
    installed_gib: float | None
    folder: Path

    def kernel(self, *, has_gpu: bool) -> Lock:
        """The kernel's lock for an instance with or without a GPU."""
        return self.gpu if has_gpu else self.cpu

    def check(self) -> str:
        """The text of the check script; empty where the environment has none."""
        script = self.folder / "check.py"
        return script.read_text(encoding="utf-8") if script.exists() else ""


def load_environment(name: str, extra_folders: Sequence[Path] = ()) -> Environment:
    """
    Read an environment.

    Args:
        extra_folders: Folders of environments looked at before the shipped ones; a course's own.

    Raises:
        WrongUsage: There is no such environment, or its files are not right; names the file.
    """
    folder = _find(name, extra_folders)
    described = _description(folder)
    server = shipped("ami") / "environments" / _SERVER
    cpu = _lock(folder / "cpu.lock")
    gpu_file = folder / "gpu.lock"
    uv = _lock(server / "uv.lock").requirements().replace("\\\n   ", "").strip()
    return Environment(
        name=name,
        title=described["title"],
        server=_lock(server / f"{described.get('server', 'cpu')}.lock"),
        cpu=cpu,
        gpu=_lock(gpu_file) if gpu_file.exists() else cpu,
        uv=uv,
        experimental=described.get("experimental", ""),
        installed_gib=described.get("installed_gib"),
        folder=folder,
    )


def environment_names(extra_folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """Every environment there is, sorted."""
    found = {
        file.parent.name
        for folder in (*extra_folders, shipped("ami") / "environments")
        for file in folder.glob("*/environment.toml")
    }
    return tuple(sorted(found - {_SERVER}))


def _find(name: str, extra_folders: Sequence[Path]) -> Path:
    known = environment_names(extra_folders)
    if name not in known:
        raise WrongUsage(f"there is no environment {name!r}", hint=f"There are {', '.join(known)}")
    places = (folder / name for folder in (*extra_folders, shipped("ami") / "environments"))
    return next(place for place in places if (place / "environment.toml").exists())


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "environment.toml"
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise WrongUsage(f"{path} is not TOML: {error}") from error
    if not isinstance(described.get("title"), str):
        raise WrongUsage(
            f"{path} has no title", hint='Add `title = "..."`, what JupyterLab calls the kernel'
        )
    return described


def _lock(path: Path) -> Lock:
    if not path.exists():
        raise WrongUsage(f"{path} is missing", hint="Make it with `gpulab env lock`")
    return parse_lock(path.read_text(encoding="utf-8"), source=str(path))
