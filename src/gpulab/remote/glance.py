"""
Sizes and times of a folder on the instance, without reading a file: what tells cheaply whether something has changed.
Believes nothing that an instance says before it was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpulab.errors import CommandFailed
from gpulab.remote.host import Host
from gpulab.remote.manifest import program

_LARGEST_ANSWER = 64 << 20
# A file whose time stamp is this young may change again within the same tick of its file system's clock.
_RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Glance:
    """
    A folder as it looked.

    Attributes:
        seen: One hash over all of it.
        files: Size in bytes and time in ns, by path; regular files only.
        others: What is no such file, and why, by path: links, pipes, folders that cannot be listed.
        young: Those that may have changed in the moment of the look.
    """

    seen: str = ""
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    young: frozenset[str] = frozenset()

    def changed_since(self, earlier: Glance) -> tuple[str, ...]:
        """Find the files that are new or other than in an earlier look, or were too young then; sorted."""
        known = {p: f for p, f in earlier.files.items() if p not in earlier.young}
        return tuple(p for p, found in sorted(self.files.items()) if known.get(p) != found)


def glance(
    host: Host, folder: str, earlier: Glance, *, exclude: Sequence[str] = (), timeout_s: float = 60
) -> Glance:
    """
    Look at a folder on the instance; where nothing has changed since an earlier look, only that is sent.

    Raises:
        RemoteError: As from `Host.run`; `CommandFailed` also when the answer is no list.
    """
    known = "" if earlier.young else earlier.seen
    given = json.dumps({"exclude": list(exclude), "known": known}).encode()
    said = host.run(
        program("glance", folder),
        given=given + b"\n",
        timeout_s=timeout_s,
        max_bytes=_LARGEST_ANSWER,
    )
    try:
        answer = json.loads(said.stdout)
        if answer["files"] is None:
            return earlier
        files = {str(path): (int(size), int(at)) for path, size, at in answer["files"]}
        others = {str(path): str(reason)[:200] for path, reason in answer["others"]}
        oldest = int(answer["now_ns"]) - _RACY_NS
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandFailed(f"the instance sent no usable list of {folder} ({error})") from error
    young = frozenset(path for path, (_, at) in files.items() if at >= oldest)
    return Glance(str(answer.get("seen", ""))[:64], files, others, young)
