"""
Lab environments as data. Hides where they lie and how `environment.toml` is read; refuses one without a lock.

An environment is a folder: `environment.toml`, `requirements.in`, `cpu.lock`, perhaps `gpu.lock` and `check.py`.
A course's own may stand on another one: `base = "tf2"` and a `requirements.in` or `requirements.txt` with what comes on top.
JupyterLab itself is not in it: every environment runs beside the one shared server lock.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpulab.bootstrap.locks import Lock, parse_lock
from gpulab.bootstrap.resources import shipped
from gpulab.errors import WrongUsage
from gpulab.model.toml import read_toml

_SERVER = "server"
# Which of its locks fits into user data in place of another.
_CORE = {"extended": "cpu"}


@dataclass(frozen=True)
class Environment:
    """
    One lab environment, and the server it runs beside.

    Attributes:
        name: Folder name, `tf2`.
        title: What JupyterLab shows as the kernel's name.
        server: The lock of JupyterLab with its extensions.
        core_server: The lock of JupyterLab alone, where user data must hold everything; the same where there are no extensions.
        cpu: The kernel's lock on an instance without a GPU.
        gpu: The kernel's lock on an instance with one; the same as `cpu` where the environment has no other.
        uv: One requirement line with hashes: what installs the locks.
        experimental: What is unverified, a sentence; empty for an environment that was run.
        installed_gib: Disk the GPU variant occupies with JupyterLab not counted, GiB; `None` if not measured.
        cpu_installed_gib: The same of the CPU variant.
        server_installed_gib: The same of JupyterLab with its extensions.
        folder: Where it was read from.
        base: What it stands on; empty for one that stands alone.
        check_file: Its check, or its base's; `None` where neither has one.
    """

    name: str
    title: str
    server: Lock
    core_server: Lock
    cpu: Lock
    gpu: Lock
    uv: str
    experimental: str
    installed_gib: float | None
    folder: Path
    base: str = ""
    check_file: Path | None = None
    cpu_installed_gib: float | None = None
    server_installed_gib: float | None = None

    @property
    def is_shipped(self) -> bool:
        """Whether it came with gpulab; a course's own can be locked anew."""
        return self.folder.parent == shipped("ami") / "environments"

    def kernel(self, *, has_gpu: bool) -> Lock:
        """The kernel's lock for an instance with or without a GPU."""
        return self.gpu if has_gpu else self.cpu

    @property
    def locks(self) -> tuple[Lock, ...]:
        """What an instance may have to install, with or without a GPU; unique."""
        return tuple(dict.fromkeys((self.server, self.cpu, self.gpu)))

    def image_key(self, *, has_gpu: bool, has_bucket: bool) -> str:
        """
        Name all that an image with this environment has installed: 16 hex digits, others when any file is another.

        Args:
            has_bucket: Whether JupyterLab's extensions are in it, which come with a bucket.
        """
        kind = "gpu" if has_gpu else "cpu"
        server = self.server if has_bucket else self.core_server
        both = f"{kind} {server.sha256} {self.kernel(has_gpu=has_gpu).sha256}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def check(self) -> str:
        """The text of the check script; empty where the environment has none."""
        return self.check_file.read_text(encoding="utf-8") if self.check_file else ""


def load_environment(name: str, extra_folders: Sequence[Path] = ()) -> Environment:
    """
    Read an environment.

    Args:
        extra_folders: Folders of environments looked at before the shipped ones; a course's own.

    Raises:
        WrongUsage: There is no such environment, or its files are not right; names the file.
    """
    folder = find_environment(name, extra_folders)
    described = describe(folder)
    base = described.get("base", "")
    below = _below(folder, base, extra_folders) if base else None
    server = shipped("ami") / "environments" / _SERVER
    variant = described.get("server", "extended")
    cpu = _lock(folder / "cpu.lock")
    gpu_file = folder / "gpu.lock"
    uv = _lock(server / "uv.lock").requirements().replace("\\\n   ", "").strip()
    return Environment(
        name=name,
        title=described["title"],
        server=below.server if below else _lock(server / f"{variant}.lock"),
        core_server=below.core_server
        if below
        else _lock(server / f"{_CORE.get(variant, variant)}.lock"),
        cpu=cpu,
        gpu=_lock(gpu_file) if gpu_file.exists() else cpu,
        uv=uv,
        experimental=described.get("experimental", below.experimental if below else ""),
        installed_gib=described.get("installed_gib"),
        folder=folder,
        base=base,
        check_file=_check_file(folder) or (below.check_file if below else None),
        cpu_installed_gib=described.get("cpu_installed_gib"),
        server_installed_gib=below.server_installed_gib
        if below
        else describe(server)[variant].get("installed_gib"),
    )


def environment_names(extra_folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """Every environment there is, sorted."""
    found = {
        file.parent.name
        for folder in (*extra_folders, shipped("ami") / "environments")
        for file in folder.glob("*/environment.toml")
    }
    return tuple(sorted(found - {_SERVER}))


def find_environment(name: str, extra_folders: Sequence[Path] = ()) -> Path:
    """
    Find the folder of an environment; a course's own comes before a shipped one.

    Raises:
        WrongUsage: There is none of that name.
    """
    known = environment_names(extra_folders)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"Did you mean `{near[0]}`? " if near else ""
        raise WrongUsage(
            f"there is no environment {name!r}", hint=f"{meant}There are {', '.join(known)}"
        )
    places = (folder / name for folder in (*extra_folders, shipped("ami") / "environments"))
    return next(place for place in places if (place / "environment.toml").exists())


def describe(folder: Path) -> dict[str, Any]:
    """
    Read `environment.toml`.

    Raises:
        WrongUsage: It is not TOML, has no title, or stands on itself.
    """
    path = folder / "environment.toml"
    try:
        described = read_toml(path.read_bytes())
    except ValueError as error:
        raise WrongUsage(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise WrongUsage(f"could not read {path}: {error.strerror}") from error
    if not isinstance(described.get("title"), str):
        raise WrongUsage(
            f"{path} has no title", hint='Add `title = "..."`, what JupyterLab calls the kernel'
        )
    for key, kinds in _KINDS.items():
        if not isinstance(described.get(key, kinds[0]()), kinds):
            raise WrongUsage(f"{path}: `{key}` must be {'a number' if float in kinds else 'text'}")
    if described.get("base") == folder.name:
        raise WrongUsage(f"{path} stands on itself", hint="Give the folder another name")
    return described


_KINDS: Mapping[str, tuple[type, ...]] = {
    "base": (str,),
    "server": (str,),
    "experimental": (str,),
    "installed_gib": (float, int),
    "cpu_installed_gib": (float, int),
}


def wishes_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that name what an environment asks for; empty when there is none."""
    files = (folder / "requirements.in", folder / "requirements.txt")
    return tuple(file for file in files if file.exists())


def _below(folder: Path, base: str, extra_folders: Sequence[Path]) -> Environment:
    if "base" in describe(find_environment(base, extra_folders)):
        raise WrongUsage(
            f"{folder / 'environment.toml'} stands on {base!r}, which stands on another one itself",
            hint="Name that one as the base, and repeat the wishes",
        )
    return load_environment(base, extra_folders)


def _check_file(folder: Path) -> Path | None:
    script = folder / "check.py"
    return script if script.exists() else None


def _lock(path: Path) -> Lock:
    if not path.exists():
        raise WrongUsage(f"{path} is missing", hint="Make it with `gpulab env lock`")
    try:
        return parse_lock(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(
            f"could not read {path}: {error}", hint="Make it with `gpulab env lock`"
        ) from error
