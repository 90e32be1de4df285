"""
Measure what keeping a work folder of many files costs an instance: the watcher's look, and a save of one changed file.

    python scripts/bench/keeping.py [--files 1000,10000,100000]

No network, no root: S3 is a stand-in that takes everything, so seconds of the CPU are printed and not of the transfer. Memory is the
largest of the process. Nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpulab.agent import agent

_A_FOLDER = 250
_MEASURED = """
import resource, runpy, sys
sys.argv = [sys.argv[1], "--root", sys.argv[2], "save"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


def main() -> None:
    """Print a line for each number of files."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--files", default="1000,10000,100000", help="with commas")
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
    for files in parser.parse_args().files.split(","):
        with tempfile.TemporaryDirectory(prefix="gpulab-bench-") as root, _bucket() as bucket:
            _measure(Path(root), int(files), bucket)


def _measure(root: Path, files: int, bucket: Bucket) -> None:
    here = _instance(root, bucket.server_port)
    for number in range(files):
        place = here.work / f"set/{number // _A_FOLDER}/image_{number:06}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        os.utime(place, (1_700_000_000, 1_700_000_000))
    _take_for_kept(here)
    look_s = min(_look(here) for _ in range(5))
    every_s = agent.look_every_s(look_s)
    (here.work / "set/0/image_000000.png").write_bytes(b"changed")
    bucket.taken = 0
    save_s, mib = _save(here)
    print(
        f"{files} files: a look takes {look_s:.3f} s of a core, every {every_s:.0f} s: {look_s / every_s:.2%};"
        f" a save of one of them {save_s:.1f} s, {mib} MiB of memory, {bucket.taken / 1e6:.1f} MB sent",
        flush=True,
    )


def _instance(root: Path, port: int) -> agent.Here:
    spec: dict[str, Any] = {"version": 1, "launch": "l-1", "name": "week4", "user": "ubuntu"}
    deadline = datetime.now(UTC) + timedelta(hours=1)
    spec |= {"deadline": deadline.isoformat(), "idle_minutes": 0, "usd_per_hour": "0.2"}
    spec |= {"environment": {"name": "tf2"}, "owner": "s-1"}
    place = {"bucket": "kept", "prefix": "s-1/week4/", "region": "us-east-1"}
    spec["keep"] = {**place, "endpoint": f"http://127.0.0.1:{port}"}
    agent.write_json(root / "etc/gpulab/spec.json", spec)
    here = agent.Here(str(root))
    here.work.mkdir(parents=True)
    return here


def _take_for_kept(here: agent.Here) -> None:
    """Note every file as brought, as a first save would after minutes."""
    found = agent.scan(here.work).files
    entries = {
        path: {**agent.entry_of(path, known, sha256="0" * 64), "key": f"s-1/week4/work/{path}"}
        for path, known in found.items()
    }
    for entry in entries.values():
        entry["version"] = "v" * 32
    agent.write_json(here.path("var/lib/gpulab/kept.json"), {"launch": "l-1", "entries": entries})


def _look(here: agent.Here) -> float:
    began = time.process_time()
    agent.scan(here.work, agent.Glance())
    return time.process_time() - began


def _save(here: agent.Here) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, agent.__file__, here.root],
        env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": here.spec["keep"]["endpoint"]},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, kib = done.stderr.split()[-2:]
    return float(seconds), int(kib) >> 10


class Bucket(ThreadingHTTPServer):
    """Takes every object, and is the metadata service as well."""

    taken = 0


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_GET(self) -> None:
        """Give the key of a role."""
        key = {"AccessKeyId": "AKIA", "SecretAccessKey": "s", "Token": "t"}
        is_key = self.path.endswith("security-credentials/student")
        is_list = self.path.endswith("security-credentials/")
        self._say(json.dumps(key).encode() if is_key else b"student" if is_list else b"")

    def do_PUT(self) -> None:
        """Take an object, or give a token."""
        size = int(self.headers.get("content-length") or 0)
        self.rfile.read(size)
        self.server.taken += size
        self._say(b"token" if "/api/token" in self.path else b"")

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library names it
        """Say nothing."""


@contextmanager
def _bucket() -> Iterator[Bucket]:
    server = Bucket(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
