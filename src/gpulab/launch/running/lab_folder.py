"""Which folder of the work is the lab's, of an instance or of what is kept. What it is told is an instance's words: it refuses a path that leads elsewhere."""

from __future__ import annotations

import json

from gpulab.errors import WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.running import instances, keep
from gpulab.launch.running.keep import KeptWork
from gpulab.model.instance import Instance
from gpulab.remote import archive

# Below the work folder; the instance writes it when it delivers notebooks.
FILE = ".gpulab/lab.json"
_LARGEST_BYTES = 1 << 16


def of_instance(context: Context, instance: Instance) -> str:
    """
    Ask an instance.

    Returns:
        A path below the work folder, with `/`.

    Raises:
        WrongUsage: No lab's notebooks were brought there.
        RemoteError: As from `Host.run`.
    """
    command = ["cat", f"work/{FILE}"]
    said = instances.host(context, instance).run(command, check=False, max_bytes=_LARGEST_BYTES)
    return read(said.stdout, name=instance.name)


def of_kept(context: Context, work: KeptWork) -> str:
    """
    Look into kept work.

    Returns:
        A path below the work folder, with `/`.

    Raises:
        WrongUsage: It has no lab's notebooks.
        GpulabError: The copy cannot be read.
    """
    return read(keep.content(context, work, FILE), name=work.name)


def read(said: bytes, *, name: str) -> str:
    """
    Read what a delivery has written down.

    Args:
        name: Whose it is, for the error.

    Raises:
        WrongUsage: It is not there, or no folder below the work folder.
    """
    try:
        folder = json.loads(said)["folder"]
    except (ValueError, KeyError, TypeError, RecursionError):
        folder = ""
    if not isinstance(folder, str) or not folder.isprintable() or archive.unsafe_name(folder):
        raise WrongUsage(
            f"{name} has no lab's notebooks",
            hint=f"`gpulab up {name} --notebooks URL` brings them; without `--lab` all of the work is meant",
        )
    return folder
