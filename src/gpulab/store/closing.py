"""What the user's folder keeps of a course that was closed, and how its personal data goes. Deletes nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpulab.errors import StoreError, disk_hint
from gpulab.model.moment import read_moment
from gpulab.store.courses import ROSTER_FILE, course_home, secret_file
from gpulab.store.files import write_atomically
from gpulab.store.home import Home

_FILE = "closed.json"


@dataclass(frozen=True)
class Closed:
    """
    That a course was closed.

    Attributes:
        is_purged: Whether its roster, and the key of its opaque ids, were to be deleted.
    """

    at: datetime
    is_purged: bool


def closed(home: Home, course_id: str) -> Closed | None:
    """Return when a course was closed; `None` when it was not."""
    try:
        found = json.loads((course_home(home, course_id) / _FILE).read_bytes())
        at = read_moment(found["closed_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Closed(at, bool(found.get("is_purged"))) if at else None


def remember_closed(home: Home, course_id: str, *, at: datetime, is_purged: bool) -> None:
    """
    Write down that a course was closed.

    Raises:
        StoreError: It cannot be written.
    """
    said = json.dumps({"closed_at": at.isoformat(), "is_purged": is_purged}).encode()
    write_atomically(course_home(home, course_id) / _FILE, said)


def open_again(home: Home, course_id: str) -> None:
    """
    Forget that a course was closed. Again, it does nothing.

    Raises:
        StoreError: The file cannot be deleted.
    """
    _delete(course_home(home, course_id) / _FILE)


def forget_tickets(home: Home, course_id: str) -> int:
    """
    Delete the private keys of the course's tickets and the notes of who failed; return how many keys there were.

    Raises:
        StoreError: A file cannot be deleted.
    """
    folder = course_home(home, course_id)
    count = sum(1 for _ in (folder / "tickets").glob("*/id_ed25519"))
    for name in ("tickets", "failed"):
        _delete(folder / name)
    return count


def purge(home: Home, course_id: str, folder: Path) -> None:
    """
    Delete the roster, then the key of the opaque ids: from then on nobody can tell who they were. Again, it does nothing.

    Raises:
        StoreError: A file cannot be deleted.
    """
    _delete(folder / ROSTER_FILE)
    _delete(secret_file(home, course_id))


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"could not delete {path}: {error.strerror}", hint=disk_hint(error)
        ) from error
