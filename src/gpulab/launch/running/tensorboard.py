"""TensorBoard on an instance: started on its loopback when it does not run. Hides the program that does it."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import gpulab
from gpulab.errors import CommandFailed, WrongUsage
from gpulab.launch.context import Context
from gpulab.launch.running.instances import target
from gpulab.model.instance import Instance

PORT = 6006
_WITHIN_S = 240.0
_PATH = re.compile(r"/[0-9a-f]{64}")


def start(context: Context, instance: Instance, *, logdir: str = "work") -> str:
    """
    Start TensorBoard, unless it runs already.

    Returns:
        The path that all its addresses begin with, such as `/0123...`. It is a secret: TensorBoard has no password, and answers nothing
        outside of this path. Never printed, never an argument of a program.

    Args:
        logdir: Folder below the login user's home that it reads; made when it is not there.

    Raises:
        WrongUsage: `logdir` is no folder below the home.
        RemoteError: The instance does not answer, its environment has no TensorBoard, or it does not tell the path.
    """
    folder = PurePosixPath(logdir)
    if folder.is_absolute() or ".." in folder.parts:
        raise WrongUsage(
            f"`{logdir}` is not a folder below the home",
            hint="Such as work/logs, where the notebook writes",
        )
    host = context.host(target(context, instance))
    said = host.run(
        ["python3", "-", str(PORT), str(folder)],
        given=(Path(gpulab.__file__).parent / "agent" / "tensorboard.py").read_bytes(),
        timeout_s=_WITHIN_S,
        check=False,
        max_bytes=1 << 20,
    )
    if said.exit_code:
        reason = said.stderr.strip().splitlines()[-1:] or [f"exit code {said.exit_code}"]
        raise CommandFailed(reason[0], hint="`gpulab check` shows what the environment can do")
    return _path(said.stdout)


def _path(answer: bytes) -> str:
    """Read the path; the instance's owner is root there, so it may be anything."""
    try:
        path = json.loads(answer)["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        path = None
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise CommandFailed("the instance does not tell where TensorBoard is in words gpulab knows")
    return path
