"""A lab's notebooks: read from what the user types, and brought over ssh where the instance cannot fetch them by itself. Never fails a launch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from gpulab.bootstrap.shipping import lab_program
from gpulab.bootstrap.spec import notebooks_json
from gpulab.errors import CommandFailed, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.running.instances import target
from gpulab.model.course import DataSet, Notebooks
from gpulab.model.instance import Instance

_WITHIN_S = 900.0
_SOURCE = re.compile(
    r"(?P<url>https://[A-Za-z0-9.-]+(?::\d+)?/[^\s@:\"'\\]+)"
    r"(?:@(?P<commit>[A-Za-z0-9][A-Za-z0-9._/-]{0,99}))?"
    r"(?::(?P<folder>[^\s/:\\][^:\\]{0,199}))?"
)
_DATA = re.compile(r"(?P<url>https://[^\s#\"'\\]+)#(?P<sha256>[0-9a-f]{64})")


def read_notebooks(source: str, data: Iterable[str] = ()) -> Notebooks:
    """
    Read `URL[@COMMIT][:FOLDER]`, and data sets as `URL#SHA256`.

    Raises:
        WrongUsage: One of them is not in that form; an address with a password in it is refused, since everybody on the instance could read it.
    """
    found = _SOURCE.fullmatch(source)
    folder = (found["folder"] or "").rstrip("/") if found else ""
    if found is None or ".." in folder.split("/"):
        raise WrongUsage(
            f"`{source}` does not name notebooks",
            hint="URL[@COMMIT][:FOLDER], such as https://github.com/tensorflow/docs@master:site/en/tutorials; without a password in the address",
        )
    return Notebooks(found["url"], found["commit"] or "", folder, tuple(map(_data_set, data)))


def bring(context: Context, instance: Instance, notebooks: Notebooks) -> str:
    """
    Bring notebooks over ssh, and let the instance go on with the data sets by itself.

    Returns:
        What was done, in the instance's words; from outside, so printed through the filter only.

    Raises:
        RemoteError: The instance does not answer, or cannot have them; its reason is in the message.
    """
    host = context.host(target(context, instance))
    said = host.run(
        ["sudo", "-n", "python3", "-", "lab", json.dumps(notebooks_json(notebooks))],
        given=lab_program(),
        timeout_s=_WITHIN_S,
        check=False,
        max_bytes=1 << 20,
    )
    if said.exit_code:
        reason = said.stderr.strip().splitlines()[-1:] or [f"exit code {said.exit_code}"]
        raise CommandFailed(reason[0])
    return said.stdout.decode("utf-8", "replace").strip()


def _data_set(text: str) -> DataSet:
    found = _DATA.fullmatch(text)
    if found is None:
        raise WrongUsage(
            f"`{text}` does not name a data set",
            hint="URL#SHA256; `sha256sum FILE` prints it",
        )
    return DataSet(found["url"], found["sha256"])
