"""
Finding the sandbox that runs, and talking to it: the record it leaves in the user's folder, and its control API.

The record holds the API's secret and is readable by its owner only. Refuses with an explained error when no sandbox runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpulab.errors import GpulabError, WrongUsage
from gpulab.sandbox.machines.process.trees import is_running

CONTROL_PATH = "/_gpulab/"
"""Where the control API lies on the server; no AWS service has such a path."""

PROFILE = "sandbox"
"""The gpulab profile and the AWS profile that lead to the sandbox."""

_TIMEOUT_S = 60


class NotRunning(GpulabError):
    """No sandbox runs in this user's folder."""


@dataclass(frozen=True)
class Daemon:
    """
    A sandbox that runs.

    Attributes:
        url: Where it answers, without a slash at the end.
        secret: Opens the control API.
        started: When its process started, see `trees.started_at`.
        machines: `process`, `container` or `none`.
        speed: Simulated seconds for each real one.
        seen_as: The address from which machines see this computer; what a security group must admit.
        account, access_key, secret_key: The made-up account the profile belongs to.
    """

    url: str
    secret: str
    pid: int
    started: str
    machines: str
    speed: float
    seed: int
    region: str
    seen_as: str
    account: str
    access_key: str
    secret_key: str


def folder_of(environment: Mapping[str, str]) -> Path:
    """Return the sandbox's folder: `sandbox` in `GPULAB_HOME` (by default `~/.gpulab`)."""
    home = environment.get("GPULAB_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".gpulab") / "sandbox"


def record(folder: Path) -> Path:
    """Return where a sandbox leaves its record."""
    return folder / "control.json"


def find(folder: Path) -> Daemon:
    """
    Return the sandbox that runs in a folder.

    Raises:
        NotRunning: There is none.
    """
    try:
        daemon = Daemon(**json.loads(record(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        daemon = None
    if daemon is None or not is_running(daemon.pid, daemon.started):
        raise NotRunning("the sandbox is not running", hint="Start it with `gpulab sandbox start`")
    return daemon


def write_record(folder: Path, daemon: Daemon) -> None:
    """Leave the record, as a whole, readable by its owner only."""
    fresh = record(folder).with_suffix(".new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(daemon), file)
    fresh.replace(record(folder))


def ask(daemon: Daemon, what: str, **parameters: Any) -> Any:
    """
    Ask the running sandbox something, or make it do something.

    Returns:
        Its answer, as JSON has it.

    Raises:
        WrongUsage: It does not know what the parameters name, or they make no sense.
        NotRunning: It does not answer.
    """
    import http.client

    host, _, port = daemon.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {daemon.secret}", "Content-Type": "application/json"}
    try:
        connection.request("POST", CONTROL_PATH + what, json.dumps(parameters), headers)
        reply = connection.getresponse()
        body = json.loads(reply.read() or b"null")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotRunning(
            f"the sandbox does not answer at {daemon.url}",
            hint="Start it anew with `gpulab sandbox stop` and `gpulab sandbox start`",
        ) from error
    finally:
        connection.close()
    if reply.status == 200:
        return body
    kind = WrongUsage if reply.status == 400 else GpulabError
    raise kind(str(body["error"]), hint=str(body.get("hint", "")))
