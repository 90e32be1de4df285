"""Starting TensorBoard on an instance: once, on loopback, and in words when it does not come up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpulab

PROGRAM = Path(gpulab.__file__).parent / "agent" / "tensorboard.py"
# Plays the package tensorboard: answers what the real one answers, and says with what words it was started.
BOARD = """
import json, sys, os, http.server
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open(os.environ["GPULAB_ROOT"] + "/started", "a").write(json.dumps({**words, "pid": os.getpid()}) + "\\n")
if os.path.exists(os.environ["GPULAB_ROOT"] + "/broken"):
    sys.exit("ERROR: no protobuf")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"data_location": "x"}')
    def log_message(self, *_): pass
http.server.HTTPServer((words["--host"], int(words["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def instance(tmp_path):
    """An instance in a folder whose kernel has a TensorBoard; ends what was started."""
    kernel = tmp_path / "opt/gpulab/kernel/bin"
    kernel.mkdir(parents=True)
    package = tmp_path / "site/tensorboard"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(BOARD)
    (kernel / "python").write_text(
        f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n'
    )
    (kernel / "python").chmod(0o755)
    (kernel / "tensorboard").touch()
    spec = tmp_path / "opt/gpulab/server/share/jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(kernel / "python")]}))
    (tmp_path / "run/gpulab").mkdir(parents=True)
    (tmp_path / "run/gpulab/ports.json").write_text('{"8888": 40123}')
    yield tmp_path
    for one in started(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one["pid"], signal.SIGKILL)


def started(instance) -> list[dict]:
    file = instance / "started"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(instance) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-", "6006", "work/logs"],
        input=PROGRAM.read_text(),
        env={"PATH": os.defpath, "GPULAB_ROOT": str(instance), "HOME": str(instance / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_started_once_on_loopback_and_found_again(instance):
    """Two windows of one student must not be two TensorBoards, and nobody else on the network may see it."""
    said = [json.loads(run(instance).stdout)["state"] for _ in range(2)]

    (one,) = started(instance)
    assert ["started", "running"] == said
    assert "127.0.0.1" == one["--host"]
    assert str(instance / "home/work/logs") == one["--logdir"]
    assert (instance / "home/work/logs").is_dir()


def test_machines_that_share_a_loopback_each_have_their_own(instance):
    """In the sandbox ten machines are on one computer; JupyterLab's own entry must survive."""
    run(instance)

    ports = json.loads((instance / "run/gpulab/ports.json").read_text())
    (one,) = started(instance)
    assert {"8888": 40123, "6006": int(one["--port"])} == ports


def test_one_that_does_not_start_says_why(instance):
    """A spinner for three minutes and then "timeout" would tell nothing."""
    (instance / "broken").touch()

    done = run(instance)

    assert (1, "TensorBoard did not start: ERROR: no protobuf\n") == (done.returncode, done.stderr)


def test_an_environment_without_it_is_told_as_that(instance):
    """tf2-small has none; so has an instance that is still installing."""
    (instance / "opt/gpulab/kernel/bin/tensorboard").unlink()

    done = run(instance)

    assert 1 == done.returncode
    assert "the lab's environment has no TensorBoard, or is still being installed\n" == done.stderr
