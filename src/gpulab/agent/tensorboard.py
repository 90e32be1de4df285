"""
Starts TensorBoard on an instance, on loopback only; what `gpulab open --tensorboard` gives to `python3 -`.

One file, standard library only, Python 3.10 or newer. `PORT LOGDIR`: when something answers as TensorBoard on the port already, it is used
again. Prints `{"state": "running"|"started", "logdir"}`; what is wrong goes to stderr with exit code 1. It runs as the login user and
outlives the connection. Under `GPULAB_ROOT` (a machine without a port of its own) it takes a free port and writes it into `ports.json`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = os.environ.get("GPULAB_ROOT", "")
_WITHIN_S = 180.0


def main(argv: list[str]) -> int:
    """Start it or find it; returns the exit code."""
    asked, folder = int(argv[0]), Path.home() / argv[1]
    if answers(real_port(asked)):
        print(json.dumps({"state": "running", "logdir": str(folder)}))
        return 0
    python = kernel_python()
    if python is None or not (python.parent / "tensorboard").exists():
        print(
            "the lab's environment has no TensorBoard, or is still being installed", file=sys.stderr
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    log = Path.home() / ".cache/gpulab-tensorboard.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    port = free_port(asked)
    child = start(python, port, folder, log)
    until = time.monotonic() + _WITHIN_S
    while not answers(port):
        if child.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            print(f"TensorBoard did not start: {said[0]}", file=sys.stderr)
            return 1
        time.sleep(0.3)
    print(json.dumps({"state": "started", "logdir": str(folder)}))
    return 0


def start(python: Path, port: int, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that it outlives the connection."""
    words = ["-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    # Looking through the folder every 5 s, its own default, would read as work and keep an idle instance alive.
    words += ["--port", str(port), "--reload_interval", "30"]
    with log.open("wb") as out:
        return subprocess.Popen(
            [str(python), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def answers(port: int) -> bool:
    """Whether TensorBoard answers there, and not something else."""
    try:
        server = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        server.request("GET", "/data/environment")
        answer = server.getresponse()
        return answer.status == 200 and b"data_location" in answer.read(2**20)
    except (OSError, http.client.HTTPException):
        return False


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
