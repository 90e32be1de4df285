"""
Measure lives of machines that really boot: from RunInstances to TensorFlow, what an interruption and a hard cut cost, what the agent costs.

    sudo python scripts/bench/machine.py [--environment tf2] [--skip start,notice,large,cut]

Needs root on Linux and what `gpulab sandbox start --machines container` names. Run it twice: the first run fills the package cache. It
takes about six minutes. Seconds of a shared machine mean little, so the load is printed beside them and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rehearsal import Failed, Machine, Rehearsal, eventually, rehearsal

_FILES = """
import os, random
source = random.Random(7)
for n in range({count}):
    folder = f"/home/ubuntu/work/many/{{n % 20}}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{{folder}}/{{n}}.bin", "wb") as out:
        for _ in range({parts}):
            out.write(source.randbytes({part}))
"""
_EDITS = """
import time
while True:
    open("/home/ubuntu/work/edits.txt", "a").write(f"{time.time():.1f}\\n")
    time.sleep(1)
"""
_COST = """
pid=$(systemctl show -p MainPID --value gpulab-agent)
grep VmRSS /proc/$pid/status | tr -dc 0-9; echo
cut -d ' ' -f 14,15 /proc/$pid/stat
cut -d ' ' -f 16,17 /proc/$pid/stat
"""


def main() -> None:
    """Run the measurements and print them as they come."""
    wanted = _arguments()
    measurements: dict[str, Callable[[Rehearsal], None]] = {
        "start": lambda student: _start(student, wanted.environment),
        "notice": lambda student: _notice(student, count=1000, parts=1, part=25_000, lead="20s"),
        "large": lambda student: _notice(student, count=1, parts=100, part=10**7, lead="2m"),
        "cut": _cut,
    }
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpulab-bench-") as folder:
        with rehearsal(Path(folder) / "home", dict(os.environ)) as student:
            for name, measure in measurements.items():
                if name not in wanted.skip.split(","):
                    measure(student)
                    print(f"  load after it: {os.getloadavg()[0]:.1f}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--environment", default="tf2", help="lab environment (default: tf2)")
    parser.add_argument("--skip", default="", help="measurements to leave out, with commas")
    return parser.parse_args()


def _start(student: Rehearsal, environment: str) -> None:
    """From RunInstances to each sign of life; the agent's log has whole seconds."""
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(student.up, "start", "--no-open", environment=environment)
        eventually(lambda: bool(_addresses(student)))
        eventually(lambda: _greets(_addresses(student)[0]))
        ssh_at = time.time()
        machine = coming.result()
    asked_at = _asked_at(student)
    eventually(lambda: _is_set_up(machine), machine.log, within_s=280)
    print(f"RunInstances to ssh:        {ssh_at - asked_at:5.1f} s (target 6)")
    print(
        f"RunInstances to JupyterLab: {_said(machine, 'phase jupyter') - asked_at:5.0f} s (target 20)"
    )
    print(
        f"RunInstances to the kernel: {_said(machine, 'phase gpu') - asked_at:5.0f} s (target 90)"
    )
    for phase in machine.status()["phases"]:
        print(f"  {phase['name']:12} {phase['seconds']:6.1f} s  {phase['message']}")
    _cost(machine)
    student.gpulab("stop", "start", "--yes")


def _cost(machine: Machine) -> None:
    """The watching agent over a minute, and its children (saves) apart."""
    before = _ticks(machine)
    time.sleep(60)
    after = _ticks(machine)
    own, children = (
        (b - a) / os.sysconf("SC_CLK_TCK") / 60 for a, b in zip(before[1:], after[1:], strict=True)
    )
    print(
        f"agent: {after[0] / 1000:.1f} MB (target 30), {own:.2%} of a core (target 0.50%), its saves {children:.2%}"
    )


def _ticks(machine: Machine) -> tuple[float, int, int]:
    kib, own_user, own_system, user, system = machine.run(_COST).split()
    return int(kib) * 1.024, int(own_user) + int(own_system), int(user) + int(system)


def _notice(student: Rehearsal, *, count: int, parts: int, part: int, lead: str) -> None:
    """Everything is new when the notice comes: the worst case."""
    name = "few" if count == 1 else "many"
    machine = student.up(name, "--no-open")
    eventually(lambda: machine.status()["saved_at"] is not None)
    machine.run("python3 -", given=_FILES.format(count=count, parts=parts, part=part).encode())
    asked_at = time.time()
    student.gpulab("sandbox", "interrupt", name, "--in", lead)
    eventually(lambda: _saved(machine)[1] >= count, machine.log)
    seen_s, saved_s = _said(machine, "told: AWS takes") - asked_at, _saved(machine)[0] - asked_at
    ended_at = student.wait_until_ended(machine).timestamp()
    kept = [path for path in student.kept(name) if path.startswith("many/")]
    print(
        f"notice with {count * parts * part / 1e6:.0f} MB in {count} new files: seen {seen_s:.0f} s, saved {saved_s:.1f} s,"
    )
    print(f"  cut off {ended_at - asked_at:.0f} s after it, {count - len(kept)} files lost")


def _cut(student: Rehearsal) -> None:
    """A line a second; the newest one that is kept says what was lost."""
    machine = student.up("cut", "--no-open")
    machine.run(f"nohup python3 -c '{_EDITS}' >/dev/null 2>&1 & sleep 100")
    cut_at = time.time()
    student.pull_the_plug(machine)
    student.wait_until_ended(machine)
    newest = float(student.kept_file("cut", "edits.txt").split()[-1])
    print(f"hard cut: {cut_at - newest:.0f} s of edits lost (target 60)")


def _addresses(student: Rehearsal) -> list[str]:
    found = student.client("ec2").describe_instances()["Reservations"]
    listed: list[dict[str, Any]] = [i for r in found for i in r["Instances"]]
    return [i["PrivateIpAddress"] for i in listed if i.get("PrivateIpAddress")]


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=0.3) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _asked_at(student: Rehearsal) -> float:
    calls = json.loads(student.gpulab("sandbox", "log", "--json"))
    return max(_seconds(call["time"]) for call in calls if call["operation"] == "RunInstances")


def _is_set_up(machine: Machine) -> bool:
    return all(phase["state"] in ("done", "failed") for phase in machine.status()["phases"])


def _said(machine: Machine, text: str) -> float:
    lines = [line for line in machine.log().splitlines() if text in line]
    if not lines:
        raise Failed(f"the agent of {machine.name} never wrote {text!r}")
    return _seconds(lines[-1].split()[0])


def _saved(machine: Machine) -> tuple[float, int]:
    """When the last save ended, seconds since 1970, and how many files it knew."""
    said = machine.run("stat -c %.Y /run/gpulab/saved.json; cat /run/gpulab/saved.json")
    at, _, summary = said.partition("\n")
    files = json.loads(summary).get("files", 0)
    return float(at), files


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).astimezone(UTC).timestamp()


if __name__ == "__main__":
    main()
