"""
Starts TensorBoard on an instance, on loopback only; what `gpulab open --tensorboard` gives to `python3 -`.

One file, standard library only, Python 3.10 or newer. `PORT LOGDIR`: when one that was started here answers on the port already, it is used
again. Prints `{"state": "running"|"started", "logdir", "path"}`; what is wrong goes to stderr with exit code 1. It runs as the login user and
outlives the connection. Under `GPULAB_ROOT` (a machine without a port of its own) it takes a free port and writes it into `ports.json`.

TensorBoard has no password. What stands for one is `path`, 256 bits that every address begins with: without it there is nothing but 404. It is
in a file of the user alone, and in no argument list. TensorBoard writes it into its log and into `.tensorboard-info` of its temporary folder,
where everybody could read it, so both are in a closed folder.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

ROOT = os.environ.get("GPULAB_ROOT", "")
_WITHIN_S = 180.0
# What the lab's Python runs: TensorBoard with one more option, which is read here instead of standing in the argument list.
_BEHIND_A_PATH = """
import runpy, sys
with open(sys.argv.pop(1)) as file:
    sys.argv += ["--path_prefix", file.read()]
runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
"""


def main(argv: list[str]) -> int:
    """Start it or find it, one call at a time; returns the exit code."""
    with (own_folder() / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return found_or_started(int(argv[0]), Path.home() / argv[1])


def found_or_started(asked: int, folder: Path) -> int:
    """Say where the one is that runs, or start one; returns the exit code."""
    port = real_port(asked)
    path = known_path()
    if path and answers(port, path):
        print(json.dumps({"state": "running", "logdir": str(folder), "path": path}))
        return 0
    python = kernel_python()
    if python is None or not (python.parent / "tensorboard").exists():
        print(
            "the lab's environment has no TensorBoard, or is still being installed", file=sys.stderr
        )
        return 1
    port = free_port(asked)
    if is_taken(port):
        print(
            f"port {asked} of the instance is taken, by a TensorBoard of your own perhaps; end it first",
            file=sys.stderr,
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    path = new_path()
    child = start(python, port, folder)
    until = time.monotonic() + _WITHIN_S
    while not answers(port, path):
        if child.poll() is not None or time.monotonic() > until:
            log = (own_folder() / "log").read_text(errors="replace")
            said = log.strip().splitlines()[-1:] or ["no reason given"]
            print(f"TensorBoard did not start: {said[0]}", file=sys.stderr)
            return 1
        time.sleep(0.3)
    print(json.dumps({"state": "started", "logdir": str(folder), "path": path}))
    return 0


def start(python: Path, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that it outlives the connection."""
    words = ["--logdir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    # Looking through the folder every 5 s, its own default, would read as work and keep an idle instance alive.
    words += ["--reload_interval", "30"]
    own = own_folder()
    with private(own / "log") as out:
        return subprocess.Popen(
            [str(python), "-c", _BEHIND_A_PATH, str(own / "path"), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "TMPDIR": str(own)},
            start_new_session=True,
        )


def known_path() -> str:
    """The path of the one that was started last; empty when there was none."""
    try:
        return (own_folder() / "path").read_text()
    except OSError:
        return ""


def new_path() -> str:
    """Make the path of one that is about to be started."""
    path = "/" + os.urandom(32).hex()
    with private(own_folder() / "path") as file:
        file.write(path.encode())
    return path


def own_folder() -> Path:
    """The folder of what only this user may read, closed whatever the umask."""
    folder = Path.home() / ".cache/gpulab-tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def private(file: Path) -> BinaryIO:
    """Open a new file in place of an old one, for this user alone."""
    file.unlink(missing_ok=True)
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def answers(port: int, path: str) -> bool:
    """Whether TensorBoard answers there behind its path, and not something else."""
    try:
        server = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        server.request("GET", f"{path}/data/environment")
        answer = server.getresponse()
        return answer.status == 200 and b"data_location" in answer.read(2**20)
    except (OSError, http.client.HTTPException):
        return False


def is_taken(port: int) -> bool:
    """Whether anything listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def real_port(asked: int) -> int:
    """The port behind the one that is asked for; the same one on an instance."""
    return int(ports().get(str(asked), asked))


def free_port(asked: int) -> int:
    """The port to listen on: the one asked for on an instance, any free one where machines share a loopback."""
    if not ROOT:
        return asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    file = Path(f"{ROOT}/run/gpulab/ports.json")
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(json.dumps({**ports(), str(asked): port}))
    fresh.replace(file)
    return port


def ports() -> dict[str, int]:
    """What `ports.json` says; empty on an instance."""
    try:
        known: dict[str, int] = json.loads(Path(f"{ROOT}/run/gpulab/ports.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return known


def kernel_python() -> Path | None:
    """The Python that notebooks run in."""
    spec = Path(f"{ROOT}/opt/gpulab/server/share/jupyter/kernels/python3/kernel.json")
    try:
        return Path(json.loads(spec.read_bytes())["argv"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
