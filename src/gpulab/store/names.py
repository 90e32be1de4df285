"""The names a shell may complete, in a small local file. Hides that file; an unreadable one is no names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def known_names(cache: Path) -> tuple[str, ...]:
    """Return the names last seen, sorted; empty when none were."""
    try:
        return tuple(sorted(set((cache / "names").read_text(encoding="utf-8").split())))
    except (OSError, UnicodeDecodeError):
        return ()


def completable_names(environment: Mapping[str, str], profile: str | None) -> tuple[str, ...]:
    """
    Return the names a shell may complete, in a few milliseconds: the configuration is looked at, not parsed.

    Args:
        profile: From `--profile`; `None` to follow `GPULAB_PROFILE` or the configuration.
    """
    named = environment.get("GPULAB_HOME")
    root = Path(named).expanduser() if named else Path.home() / ".gpulab"
    wanted = profile or environment.get("GPULAB_PROFILE") or _default_profile(root / "config.toml")
    return known_names(root / "profiles" / wanted / "cache")


def _default_profile(config: Path) -> str:
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return "default"
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() == "default_profile":
            return value.split("#")[0].strip().strip("\"'")
    return "default"


def remember_names(cache: Path, names: Iterable[str]) -> None:
    """Replace the names; a full disk costs completion, nothing else."""
    import contextlib

    from gpulab.errors import StoreError
    from gpulab.store.files import write_atomically

    with contextlib.suppress(StoreError):
        write_atomically(cache / "names", "\n".join(sorted(set(names))).encode())
