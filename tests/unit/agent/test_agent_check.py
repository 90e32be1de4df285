"""The program behind `gpulab check`: what it tells of a machine with a GPU, without one, and of one in trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpulab
from gpulab.bootstrap import environment_names, load_environment

SOURCE = (Path(gpulab.__file__).parent / "agent" / "check.py").read_text("utf-8")
# Plays nvidia-smi: its answers lie beside it, one file a question.
SMI = """#!/bin/sh
case "$1" in
  *name,driver*) echo "Tesla T4, 595.71.05" ;;
  *memory.used,memory.total*) echo "14000, 15360" ;;
  *compute-apps*) cat "$(dirname "$0")/apps" ;;
  *compute_cap*) cat "$(dirname "$0")/compute" ;;
esac
"""


@pytest.fixture
def instance(tmp_path):
    """An instance in a folder, whose kernel is this Python; nothing else is on its PATH."""
    kernel = tmp_path / "opt/gpulab/kernel"
    (kernel / "bin").mkdir(parents=True)
    (kernel / "bin/python").symlink_to(sys.executable)
    (kernel / ".gpulab-lock").touch()
    spec = tmp_path / "opt/gpulab/server/share/jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps({"argv": [str(kernel / "bin/python")], "display_name": "TensorFlow 2"})
    )
    (tmp_path / "bin").mkdir()
    return tmp_path


def run(instance, check="", program=SOURCE):
    """Run the program as ssh does; returns name -> (state, text)."""
    first, future, rest = program.partition("from __future__ import annotations\n")
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{first}{future}CHECK = {check!r}\n{rest}",
        env={"PATH": f"{instance}/bin:/bin:/usr/bin", "GPULAB_ROOT": str(instance)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: (row["state"], row["text"]) for row in rows}


def with_gpu(instance, apps="", *, compute="7.5"):
    (instance / "bin/nvidia-smi").write_text(SMI)
    (instance / "bin/nvidia-smi").chmod(0o755)
    (instance / "bin/apps").write_text(apps)
    (instance / "bin/compute").write_text(f"{compute}\n")


def without_smi():
    return pytest.mark.skipif(
        any(Path(p, "nvidia-smi").exists() for p in ("/bin", "/usr/bin")),
        reason="this computer has a GPU of its own",
    )


@without_smi()
def test_a_machine_without_a_gpu_says_so_and_checks_the_rest(instance):
    """A CPU instance is no failure; a red line would send the student to a TA for nothing."""
    found = run(instance, "def _sum():\n    return str(1 + 1)\nCHECKS = (_sum,)\n")

    assert ("skipped", "this machine has no GPU") == found["driver"] == found["gpu memory"]
    assert "ok" == found["disk"][0]
    assert ("ok", "2") == found["sum"]


@without_smi()
def test_a_gpu_without_a_driver_is_a_failure(instance):
    """Someone launched the plain image on a GPU type: the student pays for a GPU nobody can use."""
    device = instance / "sys/bus/pci/devices/0000:00:1e.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")

    assert (
        "failed",
        "there is an NVIDIA GPU and no driver: the image is not a GPU image",
    ) == run(instance)["driver"]


def test_a_gpu_is_named_with_its_driver_and_memory(instance):
    """The three facts every question to a TA begins with."""
    with_gpu(instance)

    found = run(instance)

    assert ("ok", "Tesla T4, 595.71.05") == found["driver"]
    assert ("ok", "14000 of 15360 MiB used, no notebook holds any") == found["gpu memory"]


def test_memory_is_told_by_process_when_it_is_no_notebook(instance):
    """A failing matrix product mostly means that someone else holds the memory; this line says who."""
    with_gpu(instance, f"{os.getpid()}, 13500\n")

    said = run(instance)["gpu memory"][1]

    assert f"14000 of 15360 MiB used: process {os.getpid()} 13500 MiB" == said


def test_a_check_that_fails_is_a_line_and_not_the_end(instance):
    """The check after the failing one is often the one that explains it."""
    check = """
def _first():
    raise RuntimeError("no kernel image\\nmore")
def _second():
    raise Skipped("nothing to do")
def _third_one():
    return "fine"
CHECKS = (_first, _second, _third_one)
"""

    found = run(instance, check)

    assert ("failed", "RuntimeError: no kernel image") == found["first"]
    assert ("skipped", "nothing to do") == found["second"]
    assert ("ok", "fine") == found["third one"]


def test_a_python_that_dies_is_told(instance):
    """A broken CUDA library kills the process; silence would read as "everything is fine"."""
    found = run(
        instance,
        "import os, sys\nsys.stderr.write('illegal instruction'); sys.stderr.flush(); os._exit(132)\n",
    )

    assert ("failed", "its Python ended (132): illegal instruction") == found["environment"]


def test_tensorflow_1_names_the_libraries_it_misses(instance):
    """It computes on the CPU without a word then: a student would train for an hour on a GPU that idles."""
    with_gpu(instance)
    check = load_environment("tf1-legacy").check() + "CHECKS = (_gpu,)\n"

    state, said = run(instance, check)["gpu"]

    assert "failed" == state
    assert "TensorFlow does not see the GPU: it misses libcudart.so.10.0, " in said
    assert said.endswith("libcudnn.so.7")


def test_tensorflow_1_leaves_a_gpu_alone_that_it_would_hang_on(instance):
    """On the GPU of a G5 instance a session compiles for minutes and hangs: the checks after it would never answer."""
    with_gpu(instance, compute="8.6")
    after = "def _left():\n    import os\n    return os.environ['CUDA_VISIBLE_DEVICES']\nCHECKS = (_gpu, _left)\n"

    found = run(instance, load_environment("tf1-legacy").check() + after)

    assert (
        "failed",
        "RuntimeError: CUDA 10.0 does not know this GPU (compute capability 8.6): a session hangs or fails; take a T4",
    ) == found["gpu"]
    assert ("ok", "-1") == found["left"]


def test_an_environment_that_is_still_being_installed_is_told(instance):
    """Right after the start this is the usual case."""
    (instance / "opt/gpulab/kernel/.gpulab-lock").unlink()

    assert (
        "skipped",
        "it is still being installed; `gpulab logs -f` follows it",
    ) == run(instance, "CHECKS = ()")["environment"]


def test_the_server_s_python_that_stands_in_is_not_checked(instance):
    """JupyterLab answers first, with its own Python for a kernel: that is no environment without a check."""
    spec = instance / "opt/gpulab/server/share/jupyter/kernels/python3/kernel.json"
    kernel = json.loads(spec.read_bytes())
    python = instance / "opt/gpulab/server/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to(sys.executable)
    (instance / "opt/gpulab/server/.gpulab-lock").touch()
    title = "Python 3 (environment is being installed)"
    spec.write_text(json.dumps(kernel | {"argv": [str(python)], "display_name": title}))

    assert (
        "skipped",
        "it is still being installed; `gpulab logs -f` follows it",
    ) == run(instance, "CHECKS = ()")["environment"]


@pytest.mark.parametrize("name", environment_names())
def test_every_shipped_check_is_python_3_7_and_names_its_functions(name):
    """The kernel of 2017 runs Python 3.7; a syntax error there would be the first thing a student sees."""
    import ast

    tree = ast.parse(load_environment(name).check(), feature_version=(3, 7))

    named = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert {name.id for name in named["CHECKS"].elts} <= defined
