"""
Makes the checkout's own Python environments from hash-locked files. Standard library only; installs nothing that is not locked.

Used by `test.py` and `demo.py`, which run with whatever Python 3.11 or newer the reader has, and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import host_packages

CHECKOUT = Path(__file__).resolve().parent.parent
LOCKS = CHECKOUT / "scripts" / "locks"
# What another environment left behind; PYTHON* too: without bytecode each test process would compile everything again.
_OF_ANOTHER = ["VIRTUAL_ENV", "__PYVENV_LAUNCHER__"]
_STAMP = ".gpulab-lock.json"


class CannotPrepare(Exception):
    """The environment cannot be made here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Environment:
    """
    One virtual environment.

    Attributes:
        folder: Where it lies, inside the checkout.
        was_kept: True when it already was what the lock says, so nothing was installed.
    """

    folder: Path
    was_kept: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.program("python")

    def program(self, name: str) -> Path:
        """The path of one of its programs, whether or not it is there."""
        if os.name == "nt":
            return self.folder / "Scripts" / f"{name}.exe"
        return self.folder / "bin" / name


def require_python() -> None:
    """Stop with one line when this Python is too old to run gpulab."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the reader may start us with any Python
        raise SystemExit(
            f"error: gpulab needs Python 3.11 or newer, this is {platform.python_version()}"
        )


def prepare(folder: Path, lock: str, *, editable: bool = False) -> Environment:
    """
    Make `folder` hold exactly what the lock says; keep it when it already does.

    Args:
        folder: Its parent exists or is made; anything else in it is replaced when the lock has changed.
        lock: Name of a file in `scripts/locks`, such as `dev`.
        editable: Also install the project itself, as links to the checkout.

    Raises:
        CannotPrepare: This Python cannot make environments.
        subprocess.CalledProcessError: pip or uv failed; they have said why.
    """
    wanted = _stamp(folder, lock, editable=editable)
    stamp = folder / _STAMP
    environment = Environment(folder)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and _runs(environment):
        return Environment(folder, was_kept=True)
    stamp.unlink(missing_ok=True)
    if not _runs(environment):
        _create(environment)
    install_uv(environment)
    uv(environment, "sync", "--require-hashes", "--compile-bytecode", str(LOCKS / f"{lock}.txt"))
    if editable:
        uv(
            environment,
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--offline",
            "--editable",
            str(CHECKOUT),
        )
    stamp.write_text(wanted, encoding="utf-8")
    return environment


def install_uv(environment: Environment) -> None:
    """Put the locked `uv` into an environment by its own pip."""
    _call(
        environment.python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "--requirement",
        str(LOCKS / "uv.txt"),
    )


def uv(environment: Environment, command: str, *arguments: str) -> None:
    """Run `uv pip COMMAND` on an environment that has uv; certificates are the system's, as behind a proxy."""
    _call(
        environment.program("uv"),
        "pip",
        command,
        "--quiet",
        "--system-certs",
        "--python",
        str(environment.python),
        *arguments,
    )


def surroundings() -> dict[str, str]:
    """
    The environment variables for everything the scripts start.

    Caches (uv's, and the base systems of booted machines) lie in the checkout, so that deleting the checkout deletes everything,
    and hard links stay possible.
    """
    variables = dict(os.environ)
    for name in [n for n in variables if n.startswith("PYTHON")] + _OF_ANOTHER:
        variables.pop(name, None)
    cache = variables.setdefault("XDG_CACHE_HOME", str(CHECKOUT / ".cache"))
    variables.setdefault("UV_CACHE_DIR", str(Path(cache) / "uv"))
    variables.setdefault("UV_SYSTEM_CERTS", "true")
    variables["UV_NO_CONFIG"] = "1"
    bundle = ssl.get_default_verify_paths().cafile
    if bundle:
        variables.setdefault("PIP_CERT", bundle)
    return variables


def disk_mb(folder: Path) -> int:
    """What a folder takes on disk, in MB of 10^6 bytes; a file with several links counts once."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, files in os.walk(folder):
        for name in files:
            status = (Path(root) / name).lstat()
            seen[status.st_dev, status.st_ino] = getattr(status, "st_blocks", 0) * 512 or (
                status.st_size
            )
    return round(sum(seen.values()) / 1e6)


def _stamp(folder: Path, lock: str, *, editable: bool) -> str:
    digest = hashlib.sha256()
    names = [LOCKS / "uv.txt", LOCKS / f"{lock}.txt"]
    if editable:
        names.append(CHECKOUT / "pyproject.toml")  # entry points live there
    for name in names:
        digest.update(name.read_bytes())
    return json.dumps(
        {
            "folder": str(folder),
            "python": f"{sys.implementation.name} {platform.python_version()}",
            "inputs": digest.hexdigest(),
        }
    )


def _runs(environment: Environment) -> bool:
    """Whether the environment's interpreter starts and is this Python's version; a moved checkout breaks it."""
    if not environment.python.exists():
        return False
    answer = subprocess.run(
        [environment.python, "-c", "import sys, pip; print(sys.prefix, sys.version_info[:3])"],
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = f"{environment.folder} {sys.version_info[:3]}"
    return answer.returncode == 0 and answer.stdout.strip() == wanted


def _create(environment: Environment) -> None:
    if environment.folder.exists():
        shutil.rmtree(environment.folder)
    if importlib.util.find_spec("ensurepip") is None:
        _install_ensurepip()
    # A process of its own: what apt installed a moment ago is found there.
    command = [sys.executable, "-m", "venv", str(environment.folder)]
    if subprocess.run(command, check=False, env=surroundings()).returncode:
        raise CannotPrepare(f"`{' '.join(command)}` failed")


def _install_ensurepip() -> None:
    """Debian and Ubuntu keep what makes environments in a package of its own."""
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"

    def run(command: list[str], extra: dict[str, str]) -> int:
        print("$", " ".join(command), flush=True)
        return subprocess.run(command, check=False, env=surroundings() | extra).returncode

    if not host_packages.can_install() or host_packages.install([package], run):
        raise CannotPrepare(
            "this Python cannot make environments (ensurepip is missing)\n\n"
            f"hint: on Debian and Ubuntu `sudo apt-get install {package}`"
        )


def _call(program: Path, *arguments: str) -> None:
    subprocess.run([program, *arguments], check=True, env=surroundings(), cwd=CHECKOUT)
