"""What must not be in an image: each kind of secret is put on a builder, and looked for afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpulab

PROGRAM = Path(gpulab.__file__).parent / "agent" / "clean.py"
SECRETS = [
    "home/ubuntu/.ssh/authorized_keys",
    "home/ubuntu/.bash_history",
    "home/ubuntu/.jupyter/jupyter_cookie_secret",
    "home/ubuntu/.local/share/jupyter/runtime/kernel.json",
    "home/ubuntu/.config/kaggle/kaggle.json",
    "home/ubuntu/.node_repl_history",
    "home/ubuntu/work/solution.ipynb",
    "root/.ssh/authorized_keys",
    "root/.bash_history",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/gpulab/spec.json",
    "var/lib/gpulab/limits.json",
    "var/lib/cloud/instances/i-1/user-data.txt",
    "var/log/cloud-init-output.log",
    "var/log/gpulab/agent.log",
    "var/log/journal/abc/system.journal",
    "var/lib/systemd/random-seed",
    "run/gpulab/token",
]
STAYS = [
    "opt/gpulab/kernel/bin/python",
    "opt/gpulab/server/bin/jupyter",
    "opt/gpulab/uv/bin/uv",
    "etc/hostname",
]


@pytest.fixture
def builder(tmp_path):
    """A builder in a folder, full of what must not travel."""
    for name in (*SECRETS, *STAYS, "etc/machine-id", "var/log/wtmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (tmp_path / "etc/gpulab/spec.json").write_text('{"bake": true, "user": "ubuntu"}')
    return tmp_path


def run(root) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-"],
        input=PROGRAM.read_text(),
        env={"PATH": os.defpath, "GPULAB_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_key_token_history_or_machine_id_is_left(builder):
    """Thirty students would have the teacher's key, and thirty machines one identity."""
    done = run(builder)

    assert (0, []) == (done.returncode, json.loads(done.stdout)["left"])
    assert [] == [name for name in SECRETS if (builder / name).exists()]
    assert ("", "") == (
        (builder / "etc/machine-id").read_text(),
        (builder / "var/log/wtmp").read_text(),
    )


def test_the_environment_stays(builder):
    """It is what the image is for."""
    run(builder)

    assert STAYS == [name for name in STAYS if (builder / name).exists()]


@pytest.mark.parametrize("spec", ["{}", '{"bake": false, "user": "ubuntu"}', "nonsense"])
def test_a_machine_that_is_no_builder_is_not_touched(builder, spec):
    """Run on a student's instance by mistake it would delete the work."""
    (builder / "etc/gpulab/spec.json").write_text(spec)

    done = run(builder)

    assert (1, "this is no builder: nothing was removed\n") == (done.returncode, done.stderr)
    assert (builder / "home/ubuntu/work/solution.ipynb").exists()
