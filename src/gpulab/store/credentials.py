"""
Pasted AWS credentials: reading what class pages and consoles hand out, and keeping it readable by its owner only.

Hides the four forms people paste; refuses what is none of them, naming the line and never the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import WrongUsage
from gpulab.model.typed import typed
from gpulab.store.files import write_atomically

_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
# `export AWS_ACCESS_KEY_ID=...`, `$Env:AWS_ACCESS_KEY_ID="..."`, `set AWS_...=...`, `aws_access_key_id = ...`
_LINE = re.compile(r"(?:export\s+|set\s+|\$env:)?([a-z_]+)\s*=\s*(.*)", re.IGNORECASE)
_ACCESS_KEY = re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{12,124}")
_SECRET = re.compile(r"[A-Za-z0-9/+=]{30,256}")
_TOKEN = re.compile(r"[A-Za-z0-9/+=_-]{16,16384}")
_LIMIT = 65_536


@dataclass(frozen=True, repr=False)
class Credentials:
    """
    Keys to an account; never shown, not even by `repr`.

    Attributes:
        session_token: `""` for keys that do not expire.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str

    def __repr__(self) -> str:
        return "Credentials(...)"


def parse_pasted(text: str, *, profile: str = "") -> Credentials:
    """
    Read pasted credentials: an INI block, or lines for bash, PowerShell or cmd.

    Args:
        profile: Whose they are to be, as `--profile` must name it; `""` for the default one.

    Raises:
        WrongUsage: It holds no keys, one of them is malformed, or there are two of a kind; the line is named, its text is not.
    """
    hint = _hint(profile)
    if len(text) > _LIMIT:
        raise WrongUsage("the pasted text is too long to be credentials", hint=hint)
    found = _values(text, hint)
    for key in _KEYS[:2]:
        if key not in found:
            raise WrongUsage(f"the pasted text has no `{key}`", hint=hint)
    if found["aws_access_key_id"].startswith("ASIA") and "aws_session_token" not in found:
        raise WrongUsage(
            "the pasted keys are temporary, and `aws_session_token` is missing", hint=hint
        )
    return Credentials(
        found["aws_access_key_id"],
        found["aws_secret_access_key"],
        found.get("aws_session_token", ""),
    )


def write_credentials(path: Path, credentials: Credentials, *, profile: str) -> None:
    """Keep credentials in a file of AWS's own form, 0600."""
    lines = [
        f"[{profile}]",
        f"aws_access_key_id = {credentials.access_key_id}",
        f"aws_secret_access_key = {credentials.secret_access_key}",
    ]
    if credentials.session_token:
        lines.append(f"aws_session_token = {credentials.session_token}")
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _hint(profile: str) -> str:
    command = typed("init --paste", profile=profile)
    return f"Copy the whole block, from `[default]` to the end of the token, for {command}"


def _values(text: str, hint: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(raw.strip())
        key = match[1].lower() if match else ""
        if match is None or key not in _KEYS:
            continue
        value = match[2].strip().strip("'\"")
        if key in found:
            raise WrongUsage(f"line {number} of the pasted text: `{key}` is there twice", hint=hint)
        if not _FORMS[key].fullmatch(value):
            raise WrongUsage(
                f"line {number} of the pasted text: `{key}` is not of AWS's form", hint=hint
            )
        found[key] = value
    return found


_FORMS = dict(zip(_KEYS, (_ACCESS_KEY, _SECRET, _TOKEN), strict=True))
