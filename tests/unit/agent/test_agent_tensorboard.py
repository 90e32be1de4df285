"""Starting TensorBoard on an instance: once, on loopback, and in words when it does not come up."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpulab

PROGRAM = Path(gpulab.__file__).parent / "agent" / "tensorboard.py"
# Plays the package tensorboard: answers what the real one answers, 404 outside of its path too, and says with what words it was started.
# As the real one, it writes the path where everybody may read: on its output and into its temporary folder.
BOARD = """
import json, sys, os, http.server, tempfile
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
prefix = words.get("--path_prefix", "")
print("TensorBoard at", prefix, flush=True)
with open(os.path.join(tempfile.gettempdir(), "pid.info"), "w") as info:
    info.write(prefix)
open(os.environ["GPULAB_ROOT"] + "/started", "a").write(json.dumps({**words, "pid": os.getpid()}) + "\\n")
if os.path.exists(os.environ["GPULAB_ROOT"] + "/broken"):
    sys.exit("ERROR: no protobuf")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_there = self.path.startswith(prefix + "/")
        self.send_response(200 if is_there else 404); self.end_headers(); self.wfile.write(b'{"data_location": "x"}')
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


def status(port: int, path: str) -> int:
    """What anybody gets who asks on the loopback; 0 where nothing listens."""
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        server.request("GET", path)
    except ConnectionError:
        return 0
    return server.getresponse().status


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(holds) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


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


def test_it_answers_behind_a_secret_path_alone(instance):
    """It has no password: without the path, every user of the laptop and every name that leads to 127.0.0.1 would read it."""
    told = json.loads(run(instance).stdout)
    (ours,) = started(instance)
    port = int(ours["--port"])
    plain = free_port()
    words = ["-m", "tensorboard.main", "--host", "127.0.0.1", "--port", str(plain)]
    subprocess.Popen(
        [instance / "opt/gpulab/kernel/bin/python", *words],
        env={"PATH": os.defpath, "GPULAB_ROOT": str(instance), "TMPDIR": str(instance)},
    )
    wait_for(lambda: len(started(instance)) == 2 and status(plain, "/"))

    found = {
        "weak": status(plain, "/"),
        "ours": status(port, "/"),
        "ours, guessed": status(port, "/" + "0" * 64 + "/"),
        "ours, half": status(port, told["path"][:-1] + "/"),
        "ours, known": status(port, told["path"] + "/"),
    }

    assert {
        "weak": 200,
        "ours": 404,
        "ours, guessed": 404,
        "ours, half": 404,
        "ours, known": 200,
    } == found
    assert 65 == len(told["path"])


def test_its_path_is_nowhere_another_user_looks(instance):
    """Arguments are everybody's to read; so are the log and the notes TensorBoard leaves, unless their folder is closed."""
    path = json.loads(run(instance).stdout)["path"]
    (one,) = started(instance)
    words = Path(f"/proc/{one['pid']}/cmdline").read_bytes()

    assert path == one["--path_prefix"]
    assert b"--logdir" in words
    assert path.encode() not in words
    holding = [
        str(file.relative_to(instance))
        for file in instance.rglob("*")
        if file.is_file() and path.encode() in file.read_bytes() and file.name != "started"
    ]
    own = "home/.cache/gpulab-tensorboard"
    assert {f"{own}/path", f"{own}/log", f"{own}/pid.info"} == {*holding}
    assert 0o700 == stat.S_IMODE((instance / own).stat().st_mode)
    assert 0o600 == stat.S_IMODE((instance / own / "path").stat().st_mode)
    assert 0o600 == stat.S_IMODE((instance / own / "log").stat().st_mode)


def test_each_start_has_a_path_of_its_own(instance):
    """A path that was in somebody's browser once must not open what is started later."""
    paths = []
    for _ in range(2):
        paths.append(json.loads(run(instance).stdout)["path"])
        os.kill(started(instance)[-1]["pid"], signal.SIGKILL)

    assert 2 == len(set(paths))


def test_a_tensorboard_of_the_users_own_is_told_and_not_opened(instance, monkeypatch, capsys):
    """`%tensorboard` in a notebook takes the same port; to lead there would be to lead to one without a path."""
    monkeypatch.setenv("GPULAB_ROOT", str(instance))
    monkeypatch.setenv("HOME", str(instance / "home"))
    program = runpy.run_path(str(PROGRAM))
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        monkeypatch.setitem(program["main"].__globals__, "free_port", lambda asked: port)
        code = program["main"](["6006", "work"])

    assert (1, []) == (code, started(instance))
    assert "6006 of the instance is taken, by a TensorBoard of your own perhaps" in (
        capsys.readouterr().err
    )


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
