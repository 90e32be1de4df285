"""
A student's ticket: everything to open one instance for the length of a lab, in one small file. Refuses a file that is anything else.

A ticket names no command and no path, so opening one that somebody else wrote cannot run anything here; its private key is of no use
after the lab, since the instance itself refuses it from then on.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gpulab.errors import WrongUsage

VERSION = 1
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,38}[a-z0-9])?")
_ID = re.compile(r"i-[0-9a-f]{8,17}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LONGEST = 20_000


@dataclass(frozen=True)
class Ticket:
    """
    One ticket.

    Attributes:
        host_key: The instance's public key, base64 of its ssh form; whoever answers with another is not it.
        private_key: OpenSSH's PEM text; `""` when the student uses their own key.
        ends_at: When the key and the instance end; aware UTC.
    """

    name: str
    instance_id: str
    address: str
    user: str
    host_key: str
    private_key: str
    ends_at: datetime


def write_ticket(ticket: Ticket) -> str:
    """Write a ticket as JSON."""
    return (
        json.dumps(
            {
                "gpulab_ticket": VERSION,
                "name": ticket.name,
                "instance": ticket.instance_id,
                "address": ticket.address,
                "user": ticket.user,
                "host_key": ticket.host_key,
                "private_key": ticket.private_key,
                "ends_at": ticket.ends_at.astimezone(UTC).isoformat(),
            },
            indent=1,
        )
        + "\n"
    )


def read_ticket(raw: bytes, *, file: str) -> Ticket:
    """
    Read a ticket.

    Raises:
        WrongUsage: It is none, or of a newer gpulab.
    """
    if len(raw) > _LONGEST:
        raise _no_ticket(file, "it is too long")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise _no_ticket(file, "it is not JSON") from None
    if not isinstance(found, dict) or "gpulab_ticket" not in found:
        raise _no_ticket(file, "it does not say so")
    if found["gpulab_ticket"] != VERSION:
        raise WrongUsage(f"{file} is a ticket of another version", hint="Update gpulab")
    wrong = [key for key, fits in _FORM.items() if not _is_of_form(found.get(key), fits)]
    if wrong:
        raise _no_ticket(file, f"`{wrong[0]}` is missing or wrong")
    return Ticket(
        name=found["name"],
        instance_id=found["instance"],
        address=found["address"],
        user=found["user"],
        host_key=found["host_key"],
        private_key=found["private_key"],
        ends_at=_moment(found["ends_at"]),
    )


def authorized_line(public_key: str, *, ends_at: datetime) -> str:
    """
    Write the line that lets a key in until a moment, in UTC.

    Source:
        `expiry-time` in sshd(8), OpenSSH 9.1 and later for the `Z`.
    """
    return f"{expiry(ends_at)} {public_key}"


def expiry(ends_at: datetime) -> str:
    """Write the option that such a line begins with."""
    return f'expiry-time="{ends_at.astimezone(UTC):%Y%m%d%H%M}Z"'


def _is_of_form(value: object, fits: Callable[[str], object]) -> bool:
    try:
        return isinstance(value, str) and bool(fits(value))
    except (ValueError, OverflowError):
        return False


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_host_key(text: str) -> bool:
    blob = base64.b64decode(text, validate=True)
    return len(blob) == 51 and blob.startswith(b"\0\0\0\x0bssh-ed25519")


def _is_private_key(text: str) -> bool:
    begins, ends = "-----BEGIN OPENSSH PRIVATE KEY-----\n", "-----END OPENSSH PRIVATE KEY-----\n"
    return not text or (text.isascii() and text.startswith(begins) and text.endswith(ends))


_FORM: Mapping[str, Callable[[str], object]] = {
    "name": _NAME.fullmatch,
    "instance": _ID.fullmatch,
    "address": ipaddress.ip_address,
    "user": _USER.fullmatch,
    "host_key": _is_host_key,
    "private_key": _is_private_key,
    "ends_at": _moment,
}


def _no_ticket(file: str, why: str) -> WrongUsage:
    return WrongUsage(
        f"{file} is no ticket: {why}", hint="Take the file your teacher sent, ending in .ticket"
    )
