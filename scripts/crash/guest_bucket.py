"""
What a machine of the stage writes into its bucket, in the real agent's places and words: the work with its manifest, and what it cost.

Refused where AWS would: a role that was removed writes nothing, and one that a class shares only under the instance's own id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulab.bootstrap import Keep

if TYPE_CHECKING:
    from crash.guests import Guest

#: So often an agent tells what it cost so far.
_TELLS_EVERY = timedelta(minutes=5)
_OWN_WORDS = ".gpulab/ledger"


class CannotKeepError(Exception):
    """The agent cannot keep the work, and says why."""


class GuestBucket:
    """
    The bucket as one machine reaches it.

    Attributes:
        written: Every object of its work that it wrote: key, version, and what is in it.
    """

    def __init__(self, guest: Guest, keep: Mapping[str, str]) -> None:
        self._guest = guest
        self._keep = keep
        self._has_agent = False
        self._told_until: datetime | None = None
        self.name = keep["bucket"]
        self.prefix = keep["prefix"].replace(Keep.INSTANCE, guest.birth.instance_id)
        self.written: list[tuple[str, str, bytes]] = []

    @property
    def _is_shared(self) -> bool:
        return Keep.INSTANCE in self._keep["prefix"]

    def save(self) -> dict[str, Any]:
        """
        Put the files, then the manifest that names them.

        Raises:
            CannotKeepError: It has no whole agent, or its role may not.
        """
        self._be_whole()
        self.tell()
        entries = []
        for entry in self._guest.entries():
            key = f"{self.prefix}work/{entry['path']}"
            body = (self._guest.work / entry["path"]).read_bytes()
            entries.append({**entry, "key": key, "version": self._put(key, body)})
        at, launch = iso(self._guest.kind.world.now()), self._guest.spec["launch"]
        whole = {"version": 1, "at": at, "launch": launch, "entries": entries}
        self._put(f"{self.prefix}manifest.json", json.dumps(whole).encode())
        return {"saved_at": at, "files": len(entries), "skipped": [], "failed": []}

    def kept(self) -> dict[str, bytes] | None:
        """Read what lies there, by path; `None` where nothing does."""
        found = self._get(f"{self.prefix}manifest.json")
        if found is None:
            return None
        return {e["path"]: self._get(e["key"]) or b"" for e in json.loads(found)["entries"]}

    def tell(self, *, is_at_once: bool = True) -> None:
        """
        Put what the machine cost beside the work.

        Args:
            is_at_once: As at a save; else what it told at the last of its regular words, if that was after what it told before.
        """
        since = self._guest.instance.running_at
        now = self._guest.kind.world.now()
        if since is None:
            return
        until = now if is_at_once else since + (now - since) // _TELLS_EVERY * _TELLS_EVERY
        if until <= (self._told_until or since) or not self._may_write():
            return
        self._told_until = until
        lines = [*self._facts(since, until), *_lines(self._noted)]
        subject, folder = self._guest.birth.instance_id, self.prefix.rstrip("/")
        folder = folder if self._is_shared else folder.rpartition("/")[0].removesuffix("/.bake")
        body = "".join(f"{line}\n" for line in lines).encode()
        self._send(f"{folder}/.ledger/{subject}.jsonl", body)

    def note_end(self, reason: str, *, by: str = "user", at: datetime | None = None) -> None:
        """Note, beside the work, that the machine ends: itself, and now, unless said otherwise."""
        self._noted.parent.mkdir(parents=True, exist_ok=True)
        at, subject = at or self._guest.kind.world.now(), self._guest.birth.instance_id
        said = _fact("ended", subject, at, by=by, how="terminated", reason=reason)
        self._noted.write_text(said + "\n")

    @property
    def _noted(self) -> Path:
        return self._guest.work / _OWN_WORDS / f"{self._guest.birth.instance_id}.jsonl"

    def _put(self, key: str, body: bytes) -> str:
        version = self._send(key, body)
        self.written.append((key, version, body))
        return version

    def _send(self, key: str, body: bytes) -> str:
        return self._guest.kind.put(self._guest.birth.account, self.name, key, body)

    def _get(self, key: str) -> bytes | None:
        found = self._guest.kind.get(self._guest.birth.account, self.name, key)
        return None if found is None else bytes(found)

    def _be_whole(self) -> None:
        """Fetch the rest of the agent, which whoever launched the machine must have put there before."""
        place = self._keep.get("shared") or self.prefix
        key = f"{place}agent-{self._keep['agent'][:16]}.py"
        if not self._has_agent:
            body = self._get(key)
            self._has_agent = hashlib.sha256(body or b"").hexdigest() == self._keep["agent"]
        if not self._has_agent:
            raise CannotKeepError(f"{key} in the bucket cannot be read")
        if not self._may_write():
            raise CannotKeepError(f"S3 does not PUT {self.name}/{self.prefix}: AccessDenied")

    def _may_write(self) -> bool:
        birth = self._guest.birth
        role_id = self._guest.kind.role_id(birth.account, birth.role)
        own = f"{role_id}:{birth.instance_id}"
        return bool(role_id) and (not self._is_shared or self.prefix.split("/")[-2] == own)

    def _facts(self, since: datetime, until: datetime) -> list[str]:
        """List what the machine knows of its own costs."""
        guest, birth = self._guest, self._guest.birth
        spec, subject, at = guest.spec, birth.instance_id, guest.instance.launched_at
        rates = spec.get("facts") or {}
        about = {word: spec.get(word, "") for word in ("name", "owner", "course", "lab")}
        place = {"zone": birth.zone, "instance_type": birth.instance_type, "market": birth.market}
        launch = {"launch_id": spec["launch"], "expires_at": spec["deadline"]}
        disk = {"type": "gp3", "size_gb": birth.tags["gpulab:disk"], "instance_id": subject}
        disk |= {"owner": spec["owner"], "ends_with_instance": "yes"}
        used = {"seconds": int((until - since).total_seconds()), "idle_seconds": 0}
        return [
            _fact("launched", subject, at, **about, **place, **launch, **rates.get("launched", {})),
            _fact("started", subject, since),
            _fact("volume", f"{subject}/root", at, **disk, **rates.get("volume", {})),
            _fact("address", subject, at, **rates.get("address", {})),
            _fact("usage", subject, since, **used),
        ]


def iso(moment: datetime) -> str:
    """Write a moment as the agent does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _fact(kind: str, subject: str, at: datetime, **details: Any) -> str:
    words = {key: str(value) for key, value in details.items() if value != ""}
    said = {"kind": kind, "subject": subject, "at": iso(at), "source": "agent", "details": words}
    return json.dumps(said)
