"""
Who looks at every permission that is asked for, in whichever world: for proofs over whole test runs. Sees, and changes nothing.

A sandbox in a process of its own keeps it in a file, where `KEPT_IN` names a folder; whoever judges reads it there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpulab.sandbox.calls import Call
from gpulab.sandbox.iam_policies import Asked

Witness = Callable[[Call, list[Asked]], None]

#: Of every world of this process, while it is in the list.
EVERYWHERE: list[Witness] = []

KEPT_IN = "GPULAB_SANDBOX_ASKED"
"""The environment variable that names the folder."""


APP = "AWS_SDK_UA_APP_ID"
"""
With this in the environment, each call of the process has `app/NAME` in its `User-Agent`, whichever SDK makes it.

Source:
    https://docs.aws.amazon.com/sdkref/latest/guide/feature-appid.html
"""


def said_in_calls(words: Sequence[str]) -> dict[str, str]:
    """Return the environment in which every AWS call says which command was typed, `app/fleet.up`, for whoever judges it."""
    return {APP: ".".join(itertools.takewhile(str.isalpha, words))}


@dataclass(frozen=True)
class Seen:
    """
    One call.

    Attributes:
        agent: Its `User-Agent`; empty for what AWS does by itself.
        name: Service and operation, `ec2:RunInstances`.
        asked: What it must be allowed; empty where nobody can tell.
    """

    agent: str
    name: str
    asked: tuple[Asked, ...]

    @classmethod
    def of(cls, call: Call, asked: list[Asked]) -> Seen:
        """Take what a witness is told."""
        agent = call.headers.get("user-agent", "")
        return cls(agent, f"{call.service}:{call.operation}", tuple(asked))

    @classmethod
    def read(cls, line: str) -> Seen:
        """Read what `keep_in` wrote."""
        said = json.loads(line)
        return cls(said["agent"], said["name"], tuple(Asked(**one) for one in said["asked"]))

    def written(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str) + "\n"


def keep_in(environment: Mapping[str, str]) -> None:
    """
    Keep each call to every world of this process and its forks as a line of a new file, if the environment says where.

    Raises:
        OSError: There is no such folder, or it takes no file.
    """
    if folder := environment.get(KEPT_IN):
        EVERYWHERE.append(_kept(Path(folder)))


def _kept(folder: Path) -> Witness:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    file = os.open(folder / f"{secrets.token_hex(8)}.jsonl", flags, 0o600)

    def keep(call: Call, asked: list[Asked]) -> None:
        # As a whole, since calls come at once; a full disk is no reason to refuse one.
        with contextlib.suppress(OSError):
            os.write(file, Seen.of(call, asked).written().encode())

    return keep
