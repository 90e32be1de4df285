"""
Measure installing tf2 from its lock with uv against pip, cold and warm in one run, on a machine that really boots; and when JupyterLab and
TensorFlow are there. Needs root on Linux and what `gpulab sandbox start --machines container` names.

    python scripts/bench/environment.py [--json]

It takes ten to thirty minutes, most of it pip's. Seconds of a shared machine mean nothing; ratios of one run mean something.
pip does what it does by itself, which includes byte-code; uv does what the agent asks of it, which does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gpulab.bootstrap import load_environment
from rehearsal import Machine, rehearsal

_WITHIN_S = 3600
_MEASURE = """
import json, os, subprocess, sys, time
top, lock = "/var/tmp/bench", "/var/tmp/lock.txt"
uv = ["/opt/gpulab/uv/bin/uv"]
env = {**os.environ, "PIP_CACHE_DIR": f"{top}/pip-cache", "HOME": "/root"}
def timed(*commands):
    os.sync()
    began = time.monotonic()
    for words in commands:
        subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 1)
def with_uv(name):
    place = f"{top}/{name}"
    return timed([*uv, "venv", "-q", place],
        [*uv, "pip", "sync", "-q", "--require-hashes", "--python", f"{place}/bin/python", lock])
def with_pip(name):
    place = f"{top}/{name}"
    return timed([sys.executable, "-m", "venv", place],
        [f"{place}/bin/pip", "install", "-q", "--no-deps", "--require-hashes", "-r", lock])
os.makedirs(top)
# Nothing is deleted in between: making thirty thousand files is ten times slower right after deleting as many.
found = []
order = ["uv cold", "uv warm", "pip cold", "uv warm", "pip warm", "uv warm", "uv cold"]
for name in order:
    if name == "uv cold":
        env["UV_CACHE_DIR"] = f"{top}/uv-cache-{len(found)}"
    measure = with_uv if name.startswith("uv") else with_pip
    found.append([name, measure(f"venv-{len(found)}")])
    with open("/var/tmp/found.json.part", "w") as out:
        json.dump({"seconds": found, "done": len(found) == len(order)}, out)
    os.replace("/var/tmp/found.json.part", "/var/tmp/found.json")
"""


def main() -> None:
    """Boot, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with rehearsal(Path(folder) / "home", dict(os.environ)) as student:
            first = student.up("first", "--no-open", environment="tf2")
            starts = {"first start": start_of(first)}
            student.gpulab("stop", "first", "--yes", "--no-save")
            second = student.up("second", "--no-open", environment="tf2")
            starts["second start"] = start_of(second)
            seconds = installs_of(second)
            student.gpulab("stop", "second", "--yes", "--no-save")
    found = {"starts": starts, "install_seconds": seconds, "ratios": ratios(seconds)}
    print(json.dumps(found, indent=1) if options.json else text(found))


def start_of(machine: Machine) -> dict[str, Any]:
    """Wait until all phases are over; their seconds, and how long after the first one JupyterLab and TensorFlow were there."""
    until = time.monotonic() + _WITHIN_S
    while True:
        phases = machine.status()["phases"]
        if all(phase["state"] in ("done", "failed") for phase in phases):
            break
        if time.monotonic() > until:
            sys.exit(f"the environment was not installed: {machine.log()[-2000:]}")
        time.sleep(2)
    failed = [f"{p['name']}: {p['message']}" for p in phases if p["state"] == "failed"]
    if failed:
        sys.exit("; ".join(failed))
    names = [phase["name"] for phase in phases]
    took = {phase["name"]: phase["seconds"] for phase in phases}
    upto = {name: round(sum(took[n] for n in names[: names.index(name) + 1]), 1) for name in names}
    return {"jupyter": upto["jupyter"], "tensorflow": upto["gpu"], "phases": took}


def installs_of(machine: Machine) -> dict[str, list[float]]:
    """Install the lock again and again on the machine, uv's and pip's turns mixed, while nothing else runs there."""
    lock = load_environment("tf2").cpu.requirements()
    machine.run("cat > /var/tmp/lock.txt", given=lock.encode())
    machine.run("cat > /var/tmp/measure.py", given=_MEASURE.encode())
    machine.run(
        "sudo rm -f /var/tmp/found.json; sudo systemd-run -q --unit=bench python3 /var/tmp/measure.py"
    )
    until = time.monotonic() + _WITHIN_S
    while time.monotonic() < until:
        said = machine.ssh("cat /var/tmp/found.json").stdout
        if said and json.loads(said)["done"]:
            took: dict[str, list[float]] = {}
            for name, seconds in json.loads(said)["seconds"]:
                took.setdefault(name, []).append(seconds)
            return took
        if machine.ssh("systemctl is-failed -q bench").returncode == 0:
            sys.exit(machine.run("sudo journalctl -u bench -n 20 --no-pager"))
        time.sleep(5)
    return sys.exit("the measurement took over an hour")


def ratios(took: dict[str, list[float]]) -> dict[str, float]:
    """What is worth comparing, by medians."""
    seconds = {name: statistics.median(values) for name, values in took.items()}
    return {
        "uv cold / pip cold": round(seconds["uv cold"] / seconds["pip cold"], 3),
        "uv warm / pip cold": round(seconds["uv warm"] / seconds["pip cold"], 3),
        "uv warm / pip warm": round(seconds["uv warm"] / seconds["pip warm"], 3),
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{name:24}{values} s" for name, values in found["install_seconds"].items()]
    lines += [f"{name:24}{value:8.3f}" for name, value in found["ratios"].items()]
    for name, start in found["starts"].items():
        lines.append(
            f"{name}: JupyterLab after {start['jupyter']} s, TensorFlow imported after {start['tensorflow']} s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
