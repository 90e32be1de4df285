"""What AWS said and may be believed for a while, in one small file of the profile. An unreadable file is an empty cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpulab import __version__
from gpulab.errors import StoreError
from gpulab.store.files import write_atomically


class Cache:
    """
    Values by key, each with an end. Threads share a file safely; two processes may lose each other's last entry, which costs a call.

    So nothing belongs here that cannot be asked again: what guards somebody's work is a note (`store/notes.py`).

    Args:
        path: The file.
        now: The clock.
    """

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path = path
        self._now = now
        self._lock = _lock_of(path)

    def get(self, key: str) -> Any:
        """Return what is believed, or `None`."""
        return self.below(key).get(key)

    def below(self, prefix: str) -> Mapping[str, Any]:
        """Return everything believed whose key begins so."""
        now = self._now().isoformat()
        entries = self._entries()
        return {
            k: e["value"] for k, e in entries.items() if k.startswith(prefix) and e["until"] > now
        }

    def until(self, key: str) -> datetime | None:
        """Return how long an entry is believed."""
        entry = self._entries().get(key)
        return datetime.fromisoformat(entry["until"]) if entry else None

    def put(self, key: str, value: Any, *, lasting: timedelta) -> None:
        """Believe something for a while; a full disk costs the cache, nothing else."""
        now = self._now()
        with self._lock, contextlib.suppress(StoreError):
            entries = {k: e for k, e in self._entries().items() if e["until"] > now.isoformat()}
            entries[key] = {"until": (now + lasting).isoformat(), "value": value}
            self._write(entries)

    def drop(self, prefix: str) -> None:
        """Forget everything whose key begins so."""
        with self._lock, contextlib.suppress(StoreError):
            entries = self._entries()
            kept = {k: e for k, e in entries.items() if not k.startswith(prefix)}
            if kept != entries:
                self._write(kept)

    def _entries(self) -> dict[str, Any]:
        try:
            seal, _, body = self._path.read_bytes().partition(b"\n")
        except OSError:
            return {}
        if seal != _seal(body):
            return {}
        entries: dict[str, Any] = json.loads(body)
        return entries

    def _write(self, entries: Mapping[str, Any]) -> None:
        body = json.dumps(entries).encode()
        write_atomically(self._path, _seal(body) + b"\n" + body)


# Every context has a cache of its own: what is the same for all of them is the file.
_LOCKS: dict[Path, threading.RLock] = {}
_LOCKING = threading.Lock()


def _lock_of(path: Path) -> threading.RLock:
    with _LOCKING:
        return _LOCKS.setdefault(path, threading.RLock())


def _seal(body: bytes) -> bytes:
    """Tell what this gpulab wrote from what is damaged, edited or another version's: only the former has the values we expect."""
    return hashlib.sha256(__version__.encode() + body).hexdigest().encode()
