"""
What the agent on an instance can be asked over ssh. Hides its words and the form of its answers; believes none of them unread.

The instance's owner is root there, so an answer may be anything: its size has a limit, and what cannot be read is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gpulab.errors import CommandFailed, RemoteError
from gpulab.model.status import AgentStatus, read_status
from gpulab.remote.host import Host

_AGENT = "gpulab-agent"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A full work folder is read and hashed, and may go to a bucket.
_SAVE_WITHIN_S = 1800.0
# What the agent leaves out and nobody misses: caches, sockets and pipes.
_BY_CHOICE = ("excluded", "not a file")
STOP_WRITING = "Stop what writes to it and stop again, or use `--no-save`"
_USE_NO_SAVE = "Close what writes to them and stop again, or use `--no-save`"


def status(host: Host, *, timeout_s: float = 20) -> AgentStatus:
    """
    Ask what it is doing.

    Raises:
        RemoteError: It does not answer, or not in words we know.
    """
    said = host.run([_AGENT, "status"], timeout_s=timeout_s, max_bytes=1 << 20)
    try:
        return read_status(said.stdout.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise RemoteError(
            "the instance does not tell its status in words gpulab knows",
            hint="`gpulab logs` may show why",
        ) from error


def save(host: Host) -> bool:
    """
    Let it bring everything to the disk and, where it has one, to the bucket.

    Returns:
        Whether the bucket has it now; otherwise the work is still to be fetched.

    Raises:
        RemoteError: It does not answer, or some of the work could not be kept.
    """
    said = host.run([_AGENT, "save"], timeout_s=_SAVE_WITHIN_S, check=False, max_bytes=16 << 20)
    try:
        summary = json.loads(said.stdout or b"{}")
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict) or (said.exit_code != 0 and not summary.get("failed")):
        raise CommandFailed(f"the agent could not save: {said.stderr.strip()[-300:]}")
    failed = summary.get("failed") or []
    if not isinstance(failed, list):
        raise CommandFailed("the agent does not say in words gpulab knows what it could not save")
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise CommandFailed(f"could not keep {failed[0]}{more}", hint=_USE_NO_SAVE)
    return bool(summary.get("saved_at"))


def hashes(host: Host) -> dict[str, str]:
    """
    Ask for the sha256 of every regular file of the work, by path; not of what is never kept.

    A file that cannot be read has the hash `""`, which no kept copy has.

    Raises:
        RemoteError: It does not answer, or not in words we know; a file is left out that its owner would miss, or is being written to.
    """
    said = host.run([_AGENT, "manifest"], timeout_s=_SAVE_WITHIN_S, max_bytes=256 << 20)
    try:
        entries = [json.loads(line) for line in said.stdout.splitlines()]
        left_out = [e for e in entries if e.get("skipped") and e.get("reason") not in _BY_CHOICE]
        if left_out:
            raise _not_kept(left_out)
        changing = [str(e["path"]) for e in entries if e.get("unsettled")]
        if changing:
            raise CommandFailed(being_written(changing), hint=STOP_WRITING)
        return {e["path"]: _sha256(e.get("sha256")) for e in entries if _is_regular_file(e)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandFailed("the agent's list of the work cannot be read") from error


def being_written(paths: Sequence[str]) -> str:
    """Say which files change faster than they can be copied: whichever way they are kept, the copy may be torn."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0][:200]}{more} is being written to"


def extend(host: Host, until: datetime) -> None:
    """
    Move its timer.

    Raises:
        RemoteError: It does not answer, or refuses.
    """
    text = until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    host.run([_AGENT, "extend", "--until", text], timeout_s=20)


def idle(host: Host, minutes: int) -> None:
    """
    Move its idle limit.

    Args:
        minutes: At least 1.

    Raises:
        RemoteError: It does not answer, or refuses.
    """
    host.run([_AGENT, "idle", "--minutes", str(minutes)], timeout_s=20)


def token(host: Host) -> str:
    """
    Ask for JupyterLab's token. It is a secret: never printed, never an argument of a program.

    Raises:
        RemoteError: It does not answer.
    """
    return host.run([_AGENT, "token"], timeout_s=20).stdout.decode("ascii", "replace").strip()


def log(host: Host, *, follow: bool) -> Iterator[str]:
    """
    Yield the lines of its log; with `follow`, those to come too, until the iterator is closed.

    Raises:
        RemoteError: It does not answer.
    """
    yield from host.stream([_AGENT, "log", *(["--follow"] if follow else [])])


def _not_kept(left_out: Sequence[Mapping[str, Any]]) -> CommandFailed:
    first = left_out[0]
    more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return CommandFailed(
        f"{str(first['path'])[:200]}{more} is not kept: {str(first.get('reason'))[:80]}",
        hint="`gpulab pull` copies it here; then move it out of `work`, or use `--no-save`",
    )


def _sha256(value: object) -> str:
    if value and (not isinstance(value, str) or not _SHA256.fullmatch(value)):
        raise ValueError("a hash that is none")
    return str(value or "")


def _is_regular_file(entry: Mapping[str, Any]) -> bool:
    if entry.get("skipped") or entry.get("link") is not None:
        return False
    return not entry["path"].endswith("/")
