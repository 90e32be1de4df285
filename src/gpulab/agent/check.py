"""
What `gpulab check` runs on an instance: driver, GPU memory by notebook, disk, then the environment's own checks in its kernel.

One file, standard library only, Python 3.10 or newer, given to `python3 -` over ssh, or by `gpulab-agent check` on the instance. Prints a JSON object a line:
`{"name", "state": "ok|failed|skipped", "text", "seconds"}`. Refuses nothing: what fails is a line. Reads `CHECK`, set before it: the
text of the environment's `check.py`, which sets `CHECKS`, a sequence of functions that return a sentence or raise. With `TABLE`, set too, people read
it: a row for each, and the exit code is 5 when something failed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECK: str = globals().get("CHECK", "")
TABLE: bool = globals().get("TABLE", False)
_STATES = {"ok": "ok", "failed": "FAILED", "skipped": "-"}
ROOT = os.environ.get("GPULAB_ROOT", "")
_SMALLEST_GIB = 2.0
_WITHIN_S = 900
# Runs in the kernel's own Python, from 3.7 on, behind the environment's check. Only the GPU memory it needs is taken: a
# notebook may be training beside it.
_HARNESS = """
import json as _json, sys as _sys, time as _time
for _check in CHECKS:
    _began = _time.time()
    try:
        _said, _state = _check(), "ok"
    except Skipped as _error:
        _said, _state = str(_error), "skipped"
    except Exception as _error:
        _said, _state = "%s: %s" % (type(_error).__name__, str(_error).split("\\n")[0]), "failed"
    _name = _check.__name__.strip("_").replace("_", " ")
    _told = {"name": _name, "state": _state, "text": _said, "seconds": round(_time.time() - _began, 1)}
    print("\\n" + _json.dumps(_told), flush=True)
"""
_BEFORE = "class Skipped(Exception):\n    pass\n"


class Skipped(Exception):
    """There is nothing to check here; the text says why."""


def main() -> int:
    """Print a line for each check; returns the exit code."""
    for check in (driver, gpu_memory, disk):
        tell(check)
    in_kernel()
    return 5 if TABLE and "failed" in _told else 0


def tell(check: Callable[[], str]) -> None:
    """Run one check and print what came of it."""
    began = time.monotonic()
    try:
        said, state = check(), "ok"
    except Skipped as reason:
        said, state = str(reason), "skipped"
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        said, state = str(error) or type(error).__name__, "failed"
    line(check.__name__.replace("_", " "), state, said, time.monotonic() - began)


_told: list[str] = []


def line(name: str, state: str, text: str, seconds: float = 0.0) -> None:
    """Print one result."""
    _told.append(state)
    told = {"name": name, "state": state, "text": text, "seconds": round(seconds, 1)}
    print(f"{_STATES[state]:6}  {name:14}  {text}" if TABLE else json.dumps(told), flush=True)


def driver() -> str:
    """Name GPU and driver; a GPU on the bus without a driver is a failure."""
    if shutil.which("nvidia-smi") is None:
        if has_nvidia_device():
            raise RuntimeError("there is an NVIDIA GPU and no driver: the image is not a GPU image")
        raise Skipped("this machine has no GPU")
    return "; ".join(smi("--query-gpu=name,driver_version"))


def gpu_memory() -> str:
    """Say how much is used, and by which notebook: a full GPU is the usual reason of a failing cell."""
    if shutil.which("nvidia-smi") is None:
        raise Skipped("this machine has no GPU")
    total = "; ".join(
        f"{used} of {size} MiB used"
        for used, size in (row.split(", ") for row in smi("--query-gpu=memory.used,memory.total"))
    )
    rows = [row.split(", ") for row in smi("--query-compute-apps=pid,used_memory")]
    names = notebooks()
    held = [f"{names.get(kernel_of(pid), 'process ' + pid)} {mib} MiB" for pid, mib in rows]
    return f"{total}: {', '.join(held)}" if held else f"{total}, no notebook holds any"


def disk() -> str:
    """Say what is free; the fast local disk too where there is one."""
    places = {"root": Path(f"{ROOT}/"), "fast local disk": Path(f"{ROOT}/opt/dlami/nvme")}
    free = {
        name: shutil.disk_usage(place).free / 2**30
        for name, place in places.items()
        if name == "root" or place.is_mount()
    }
    if free["root"] < _SMALLEST_GIB:
        raise RuntimeError(f"{free['root']:.1f} GiB free; delete something or ask for `--disk`")
    return ", ".join(f"{gib:.0f} GiB free on the {name}" for name, gib in free.items())


def in_kernel() -> None:
    """Run the environment's checks with the Python of its kernel."""
    python = kernel_python()
    if python is None or not (python.parent.parent / ".gpulab-lock").exists():
        line("environment", "skipped", "it is still being installed; `gpulab logs -f` follows it")
        return
    if python.parent.parent.name == "server" or not CHECK:
        line("environment", "skipped", "this environment brings no check of its own")
        return
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    words = [str(python), "-c", _BEFORE + CHECK + _HARNESS]
    child = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    try:
        out, err = child.communicate(timeout=_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        err = f"it did not end within {_WITHIN_S} s".encode()
    for said in out.decode("utf-8", "replace").splitlines():
        if said.startswith('{"name"'):
            line(**json.loads(said))
    if child.returncode:
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
        line("environment", "failed", f"its Python ended ({child.returncode}): {last[0]}")


def kernel_python() -> Path | None:
    """The Python that notebooks run in; none while it is still being installed."""
    spec = Path(f"{ROOT}/opt/gpulab/server/share/jupyter/kernels/python3/kernel.json")
    try:
        kernel = json.loads(spec.read_bytes())
        # Until the lab's environment is there, JupyterLab's own Python stands in for it, and its title says so.
        return None if "being installed" in kernel["display_name"] else Path(kernel["argv"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def smi(question: str) -> list[str]:
    """
    Ask nvidia-smi.

    Raises:
        RuntimeError: The driver does not answer.
    """
    words = ["nvidia-smi", question, "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the driver does not answer: {(done.stdout or done.stderr).strip()[:200]}"
        )
    return [row for row in done.stdout.splitlines() if row.strip()]


def has_nvidia_device() -> bool:
    """Whether the PCI bus has a device of NVIDIA's."""
    vendors = Path(f"{ROOT}/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == "0x10de" for vendor in vendors)


def kernel_of(pid: str) -> str:
    """The id of the kernel that a process is; empty when it is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(r"kernel-([0-9a-f-]{36})\.json", words)
    return found[1] if found else ""


def notebooks() -> dict[str, str]:
    """The open notebooks' paths by the id of their kernel, as JupyterLab knows them."""
    try:
        token = Path(f"{ROOT}/run/gpulab/token").read_text()
        ports = json.loads(Path(f"{ROOT}/run/gpulab/ports.json").read_bytes()) if ROOT else {}
        server = http.client.HTTPConnection("127.0.0.1", int(ports.get("8888", 8888)), timeout=5)
        headers = {"Authorization": f"token {token}"}
        server.request("GET", "/api/sessions?no_track_activity=1", headers=headers)
        said: list[dict[str, Any]] = json.loads(server.getresponse().read())
        return {row["kernel"]["id"]: str(row["path"]) for row in said}
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return {}


if __name__ == "__main__":
    sys.exit(main())
