"""The fuzzer's runs leave nothing in memory: libFuzzer ends its process at once, and whoever fuzzes all night presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
# Ends as libFuzzer does, by itself or not at all; feeds one input.
ATHERIS = """
import os, time
from contextlib import nullcontext

def instrument_imports(include):
    return nullcontext()

def Setup(arguments, one):
    one(b"{}")

def Fuzz():
    time.sleep(float(os.environ["FUZZES_FOR_S"]))
    os._exit(0)
"""


def files_of(fuzzer: int) -> list[Path]:
    """What readers were given to read, of one run of the fuzzer."""
    places = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return [file for place in places for file in place.glob(f"gpulab-fuzz-{fuzzer}-*/*/*")]


def folders_of(fuzzer: int) -> list[Path]:
    """The folders of one run of the fuzzer."""
    places = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return [folder for place in places for folder in place.glob(f"gpulab-fuzz-{fuzzer}-*")]


@pytest.mark.skipif(sys.platform != "linux", reason="atheris is fuzzed with on Linux")
@pytest.mark.parametrize(
    ("ending", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_run_of_the_fuzzer_leaves_no_files_in_memory_however_it_ends(tmp_path, ending, code):
    """A night's targets left one folder each in memory, which nobody gets back before a restart."""
    (tmp_path / "atheris.py").write_text(ATHERIS)
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "FUZZES_FOR_S": "60" if ending else "0",
    }
    command = [sys.executable, "scripts/fuzz.py", "config", "--runs", "1"]
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=surroundings,
        stdout=subprocess.PIPE,
        text=True,
        # Python leaves a Ctrl-C alone that its parent ignores, as a shell's background jobs do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as fuzzer:
        seen = files_of(fuzzer.pid)
        deadline = time.monotonic() + 40
        while not seen and fuzzer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            seen = files_of(fuzzer.pid)
        if ending:
            fuzzer.send_signal(ending)
        told, _ = fuzzer.communicate(timeout=40)

    assert ending is None or seen
    assert [] == folders_of(fuzzer.pid)
    assert code == fuzzer.returncode
    assert ending is not None or "0 findings" in told
