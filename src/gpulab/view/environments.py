"""Lab environments as tables and texts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from gpulab.bootstrap.checking import Flaw, fits_alone
from gpulab.bootstrap.environments import Environment
from gpulab.bootstrap.locking import Renewed
from gpulab.bootstrap.locks import Lock
from gpulab.view.console import table
from gpulab.view.instances import pairs_text
from gpulab.view.words import counted

COLUMNS = (
    "name",
    "title",
    "python",
    "packages",
    "download_mib",
    "installed_gib",
    "locked_on",
    "age_days",
    "base",
    "is_experimental",
)
_HEADINGS = ("NAME", "TITLE", "PYTHON", "PACKAGES", "DOWNLOAD", "ON DISK", "LOCKED", "AGE", "")


def environment_row(environment: Environment, *, today: date) -> dict[str, Any]:
    """Return one environment for programs; figures are those of the GPU variant."""
    lock = environment.gpu
    return {
        "name": environment.name,
        "title": environment.title,
        "python": lock.python,
        "packages": len(lock.pins),
        "download_mib": lock.download_mib,
        "installed_gib": environment.installed_gib,
        "locked_on": lock.locked_on.isoformat() if lock.locked_on else None,
        "age_days": (today - lock.locked_on).days if lock.locked_on else None,
        "base": environment.base,
        "is_experimental": bool(environment.experimental),
    }


def environments_text(environments: Sequence[Environment], *, today: date) -> str:
    """List environments, a line each, and below what is unverified about one."""
    rows = []
    for environment in environments:
        row = environment_row(environment, today=today)
        rows.append(
            [
                row["name"],
                row["title"],
                row["python"],
                str(row["packages"]),
                _sized(row["download_mib"], "MiB"),
                _sized(row["installed_gib"], "GiB"),
                row["locked_on"] or "?",
                f"{row['age_days']} d" if row["age_days"] is not None else "?",
                "experimental" if environment.experimental else "",
            ]
        )
    return table(rows, _HEADINGS, right=(3, 4, 5, 7))


def environment_text(environment: Environment, *, today: date) -> str:
    """Say everything about one environment: what it is, what it costs to start, every pin."""
    about = {
        "name": environment.name,
        "title": environment.title,
        "from": "gpulab itself" if environment.is_shipped else str(environment.folder),
        "on top of": environment.base or "-",
        "check": "yes" if environment.check() else "none",
        "no bucket": _without_bucket(environment),
    }
    parts = [pairs_text(about)]
    if environment.experimental:
        parts += ["", f"Experimental: {environment.experimental}"]
    for title, lock, gib in _locks(environment):
        parts += ["", _lock_text(title, lock, gib, today=today)]
    return "\n".join(parts)


def environment_json(environment: Environment, *, today: date) -> dict[str, Any]:
    """Return everything about one environment for programs."""
    locks = [
        {
            "variant": title,
            "sha256": lock.sha256,
            "python": lock.python,
            "download_mib": lock.download_mib,
            "installed_gib": gib,
            "locked_on": lock.locked_on.isoformat() if lock.locked_on else None,
            "pins": {pin.name: pin.version for pin in lock.pins},
        }
        for title, lock, gib in _locks(environment)
    ]
    return {
        **environment_row(environment, today=today),
        "folder": environment.folder,
        "experimental": environment.experimental,
        "fits_without_bucket": fits_alone(environment),
        "locks": locks,
    }


def problem_text(problem: Flaw) -> str:
    """Say one problem with what to do about it."""
    where = f"{problem.environment} {problem.where}".strip()
    return f"{where}: {problem.text}" + (f"\n  {problem.hint}" if problem.hint else "")


def renewed_text(renewed: Sequence[Renewed]) -> str:
    """Say what new locks changed, a line for each package."""
    parts = []
    for one in renewed:
        size = f"{counted(len(one.lock.pins), 'package')}, {_sized(one.lock.download_mib, 'MiB')} to download"
        parts.append(f"{one.variant}.lock: {size}, {counted(len(one.changes), 'change')}")
        parts += [f"  {line}" for line in one.changes]
    return "\n".join(parts)


def renewed_json(renewed: Sequence[Renewed]) -> list[dict[str, Any]]:
    """Return new locks for programs."""
    return [
        {
            "variant": one.variant,
            "file": one.path,
            "sha256": one.lock.sha256,
            "packages": len(one.lock.pins),
            "download_mib": one.lock.download_mib,
            "changes": one.changes,
        }
        for one in renewed
    ]


def _without_bucket(environment: Environment) -> str:
    if not fits_alone(environment):
        return "too large for user data: launches only where the work is kept in a bucket"
    has_extensions = environment.server != environment.core_server
    return "launches without one too" + (", with JupyterLab alone" if has_extensions else "")


def _locks(environment: Environment) -> list[tuple[str, Lock, float | None]]:
    server = ("JupyterLab beside it", environment.server, environment.server_installed_gib)
    if environment.gpu == environment.cpu:
        return [("with and without a GPU", environment.cpu, environment.installed_gib), server]
    return [
        ("with a GPU", environment.gpu, environment.installed_gib),
        ("without a GPU", environment.cpu, environment.cpu_installed_gib),
        server,
    ]


def _lock_text(title: str, lock: Lock, gib: float | None, *, today: date) -> str:
    age = (
        f"{lock.locked_on}, {counted((today - lock.locked_on).days, 'day')} ago"
        if lock.locked_on
        else "?"
    )
    about = {
        title: f"{counted(len(lock.pins), 'package')}, {_sized(lock.download_mib, 'MiB')} to download, {_sized(gib, 'GiB')} on disk",
        "locked": age,
        "sha256": lock.sha256,
    }
    return "\n".join([pairs_text(about), *(f"  {p.name} {p.version}" for p in lock.pins)])


def _sized(value: float | None, unit: str) -> str:
    return f"{value} {unit}" if value is not None else "?"
