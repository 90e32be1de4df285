"""
The journal of launches: what was about to be asked of AWS, written and synced before it is asked, and what came of it.

Hides the file (JSON Lines, 0600, append only) and its lock. Refuses nothing it reads: a torn last line, as a kill or a full disk leaves
it, is skipped and reported, since the call it was meant for was never made.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from gpulab.errors import Refused, StoreError, disk_hint
from gpulab.model.instance import TAG_ENVIRONMENT
from gpulab.store.files import sync_folder
from gpulab.store.locks import locked

VERSION = 1
# What a line that is none of ours may make of whoever reads it.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
# So many bytes before the place where reading goes on tell whether it is the same file still.
_RECOGNIZED = 128


@dataclass(frozen=True)
class Intent:
    """
    One launch call, written before it is made: everything to make it again, byte for byte.

    Attributes:
        launch_id: Of the launch; all its attempts share it.
        attempt: 1, 2, ...; a new place is a new attempt.
        token: Client token of this attempt.
        name: The user's name for the instance.
        region: Where the call goes.
        parameters: Of `RunInstances`, plain JSON, without the user data.
        user_data: Raw bytes.
        at: When it was written; aware UTC.
        keep_prefix: Where in a bucket the instance keeps its work; `""` for nowhere, `None` where nobody wrote it down.
    """

    launch_id: str
    attempt: int
    token: str
    name: str
    region: str
    parameters: Mapping[str, Any]
    user_data: bytes
    at: datetime
    keep_prefix: str | None = None

    def tag(self, key: str) -> str:
        """Return what the call tags its instance with; `""` if it says nothing."""
        specifications = self.parameters.get("TagSpecifications") or [{}]
        tags = specifications[0].get("Tags", [])
        return next((str(tag["Value"]) for tag in tags if tag["Key"] == key), "")


@dataclass(frozen=True)
class Made:
    """
    An instance that a launch made.

    Attributes:
        at: When its result was written; aware UTC.
        environment: Which lab environment it was launched with; `""` if its tags did not say.
        disk_gib: Size of the root volume that was asked for; `None` if the call did not say.
        keep_prefix: Where in a bucket it keeps its work by itself; `""` for nowhere, `None` where only its role is known.
    """

    launch_id: str
    name: str
    region: str
    instance_id: str
    at: datetime
    environment: str = ""
    disk_gib: int | None = None
    keep_prefix: str | None = ""


@dataclass(frozen=True)
class Story:
    """
    The journal as read.

    Attributes:
        open_intents: Calls whose result nobody wrote down, oldest first.
        made: What came of launches that succeeded, oldest first.
        torn_lines: Numbers of lines that could not be read, from 1.
    """

    open_intents: tuple[Intent, ...]
    made: tuple[Made, ...]
    torn_lines: tuple[int, ...]


class Journal:
    """
    One profile's journal.

    Args:
        path: The file; it and its folder are made when first written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _Known()
        self._reading = threading.Lock()

    def intend(self, intent: Intent) -> None:
        """
        Write an intent; when this returns it survives a kill and a power cut.

        Raises:
            StoreError: It could not be written; the call must not be made.
        """
        self._append(
            {
                "kind": "intent",
                "at": intent.at.isoformat(),
                "launch": intent.launch_id,
                "attempt": intent.attempt,
                "token": intent.token,
                "name": intent.name,
                "region": intent.region,
                "parameters": intent.parameters,
                "user_data": base64.b64encode(intent.user_data).decode("ascii"),
                "keep": intent.keep_prefix,
            },
            otherwise="Nothing was launched",
        )

    def conclude(
        self, intent: Intent, outcome: str, *, instance_id: str = "", at: datetime
    ) -> None:
        """
        Write what came of an intent.

        Args:
            outcome: `launched`, or AWS's error code, or a word of ours such as `never-took-effect`.
            instance_id: When something was launched.

        Raises:
            StoreError: It could not be written; the intent stays open and is looked up by the next command.
        """
        record = {"kind": "result", "at": at.isoformat(), "launch": intent.launch_id}
        record |= {"token": intent.token, "outcome": outcome, "instance": instance_id}
        made = f"{instance_id} was launched and may cost; `gpulab ls` shows it"
        self._append(record, otherwise=made if instance_id else "Nothing was launched")

    def read(self) -> Story:
        """
        Read everything; a missing journal is an empty one.

        Raises:
            StoreError: The file is there and cannot be read.
        """
        with self._reading:
            try:
                with self._path.open("rb") as file:
                    rest = self._known.catch_up(file)
            except FileNotFoundError:
                self._known, rest = _Known(), b""
            except OSError as error:
                raise StoreError(
                    f"could not read {self._path}: {error.strerror}", hint=disk_hint(error)
                ) from error
            return self._known.story(rest)

    @contextlib.contextmanager
    def launching(self, name: str, *, followed_by: str = "gpulab ls -w") -> Iterator[None]:
        """
        Keep every other gpulab on this computer from launching the same name at the same time.

        Args:
            followed_by: The command that shows how far the other one is.

        Raises:
            Refused: Another one is at it.
            StoreError: The lock file cannot be made.
        """
        with locked(self._path.parent / "locks" / name) as is_ours:
            if not is_ours:
                raise Refused(
                    f"another gpulab is launching {name} right now",
                    hint=f"`{followed_by}` follows it",
                )
            yield

    def is_launching(self, name: str) -> bool:
        """Whether a gpulab on this computer is launching the name right now."""
        try:
            with self.launching(name):
                return False
        except Refused:
            return True

    def _append(self, record: Mapping[str, Any], *, otherwise: str) -> None:
        """Write a record; `otherwise` says what it means when that fails."""
        line = json.dumps({"v": VERSION, **record}, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            with locked(self._path.with_name(self._path.name + ".lock"), is_patient=True):
                _write_synced(self._path, line)
        except OSError as error:
            raise StoreError(
                f"could not write {self._path}: {error.strerror}",
                hint=f"{otherwise}. Free some space or check the folder's owner, then repeat the command",
            ) from error


class _Known:
    """
    What was read so far. The file is only ever appended to and holds every launch of a term with its user data, so each look reads what
    is new, and decodes user data of what is open only.
    """

    def __init__(self) -> None:
        self._offset = 0
        self._last = b""
        self._lines = 0
        self._open: dict[str, tuple[int, Intent, object]] = {}
        self._made: list[Made] = []
        self._torn: list[int] = []

    def catch_up(self, file: BinaryIO) -> bytes:
        """Read the new lines; return what stands behind the last whole one."""
        file.seek(self._offset - len(self._last))
        if file.read(len(self._last)) != self._last:
            # Somebody put another file in its place.
            vars(self).update(vars(_Known()))
            file.seek(0)
        whole, newline, rest = file.read().rpartition(b"\n")
        # Only "\n" ends a record; `splitlines` would also split at other characters inside one.
        for line in whole.split(b"\n"):
            self._take(line)
        new = whole + newline
        self._offset += len(new)
        self._last = (self._last + new)[-_RECOGNIZED:]
        return rest

    def story(self, rest: bytes) -> Story:
        """Tell all of it, with a last line that has no end yet."""
        if rest.strip():
            known = copy.deepcopy(self)
            known._take(rest)
            return known.story(b"")
        intents = []
        for token, (number, intent, encoded) in list(self._open.items()):
            if encoded is not None:
                try:
                    whole = base64.b64decode(encoded, validate=True)  # type: ignore[arg-type]
                except _DAMAGE:
                    del self._open[token]
                    self._torn.append(number)
                    continue
                intent = replace(intent, user_data=whole)
                self._open[token] = number, intent, None
            intents.append(intent)
        return Story(tuple(intents), tuple(self._made), tuple(sorted(self._torn)))

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        self._lines += 1
        try:
            record = json.loads(line)
            if record["kind"] == "intent":
                intent = _intent(record)
                self._open[intent.token] = self._lines, intent, record["user_data"]
            elif record["kind"] == "result":
                instance_id = str(record["instance"])
                found = self._open.pop(record["token"], None)
                if found and instance_id:
                    self._made.append(_made(found[1], instance_id, _moment(record["at"])))
        except _DAMAGE:
            self._torn.append(self._lines)


def _intent(record: Mapping[str, Any]) -> Intent:
    """Read an intent, but for its user data."""
    parameters = record["parameters"]
    # What the call is made from again, and what is said about it.
    _text(parameters["Placement"]["AvailabilityZone"]), _text(parameters["InstanceType"])
    return Intent(
        launch_id=_text(record["launch"]),
        attempt=int(record["attempt"]),
        token=_text(record["token"]),
        name=_text(record["name"]),
        region=_text(record["region"]),
        parameters=parameters,
        user_data=b"",
        at=_moment(record["at"]),
        keep_prefix=_text_or_none(record.get("keep")),
    )


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a moment without its zone")
    return moment


def _made(intent: Intent, instance_id: str, at: datetime) -> Made:
    return Made(
        intent.launch_id,
        intent.name,
        intent.region,
        instance_id,
        at,
        intent.tag(TAG_ENVIRONMENT),
        _disk_gib(intent.parameters),
        # Without a role it could not, whoever did not write it down.
        intent.keep_prefix if intent.parameters.get("IamInstanceProfile") else "",
    )


def _disk_gib(parameters: Mapping[str, Any]) -> int | None:
    for mapping in parameters.get("BlockDeviceMappings", []):
        return int(mapping["Ebs"]["VolumeSize"])
    return None


def _write_synced(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    # O_NOFOLLOW: a link put in our place must not make us write elsewhere.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o600)
    try:
        if _is_torn(handle):
            line = b"\n" + line
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if is_new:
        sync_folder(path.parent)


def _is_torn(handle: int) -> bool:
    """Whether the file ends in the middle of a line; the next record must not be glued to it."""
    size = os.fstat(handle).st_size
    if size == 0:
        return False
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) != b"\n"
