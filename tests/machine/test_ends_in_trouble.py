"""
An instance ends in time and keeps the work, with the laptop gone and with something broken on it.

All instances live side by side, each with its own trouble, because the trouble takes seconds and the life takes a minute.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LIFE_S = 75

# A wrong clock for the agent alone: a machine shares its host's clock.
WRONG_CLOCK = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() - 1200
time.time_ns = lambda: _time_ns() - 1200 * 10**9
"""
GREEDY = """
import notebook
server = notebook.Server("127.0.0.1:8888", open("/tmp/token").read().strip())
try:
    notebook.run(server, "greedy.ipynb", ["import os", "x = bytearray(3 * 2**30)"])
except Exception as error:
    print(error)
"""


def wrong_clock(machine, _) -> None:
    folder = "/etc/gpulab/wrong-clock"
    machine.run(
        f"sudo mkdir -p {folder} /etc/systemd/system/gpulab-agent.service.d"
        f" && sudo tee {folder}/sitecustomize.py",
        given=WRONG_CLOCK.encode(),
    )
    machine.run(
        f"printf '[Service]\\nEnvironment=PYTHONPATH={folder}\\n'"
        " | sudo tee /etc/systemd/system/gpulab-agent.service.d/clock.conf"
        " && sudo systemctl daemon-reload && sudo systemctl restart gpulab-agent"
    )


def full_disk(machine, _) -> None:
    # Blocks are taken without writing them, and then the last ones by writing.
    machine.run(
        "sudo fallocate -l $(df --output=avail -B1 / | tail -1) /full;"
        " sudo dd if=/dev/zero of=/rest bs=64k 2>/dev/null; df -h /"
    )


def silent_metadata(machine, _) -> None:
    machine.run("sudo ip route replace blackhole 169.254.169.254/32")


def no_network(machine, _) -> None:
    # In a moment, so that this command still gets its answer; what is written then can go nowhere.
    machine.run(
        "card=$(ip -o route show default | grep -o 'dev [^ ]*' | cut -c 5- | head -1); test -n $card"
        " && sudo systemd-run --on-active=1 --timer-property=AccuracySec=100ms"
        ' sh -c "ip link set $card down; echo after > /home/ubuntu/work/after.txt"'
    )
    time.sleep(4)


def greedy_kernel(machine, student) -> None:
    machine.run("cat > /tmp/notebook.py", given=(SCRIPTS / "notebook.py").read_bytes())
    machine.run("gpulab-agent token > /tmp/token")
    student.limit_memory(machine, 900)
    machine.ssh("cd /tmp && timeout 30 python3 -", given=GREEDY.encode())


def killed_agent(machine, _) -> None:
    machine.run("sudo kill -9 $(systemctl show -p MainPID --value gpulab-agent)")


TROUBLES = {
    "deadline": lambda machine, student: None,
    "clock": wrong_clock,
    "disk": full_disk,
    "metadata": silent_metadata,
    "network": no_network,
    "memory": greedy_kernel,
    "agent": killed_agent,
}


@dataclass(frozen=True)
class Life:
    """What is known of an instance after its end."""

    limit: datetime
    ended_at: datetime
    kept: dict[str, Any]
    lines: str
    facts: list[dict[str, Any]]
    cost: dict[str, float]


@pytest.fixture(scope="module")
def lives(student, set_up) -> dict[str, Life]:
    """Every instance, from its start to its end."""
    # The budget counts from the first second, so that one boots while nobody else does.
    names = ["budget", *TROUBLES]
    first = start(student, "budget")
    limit = budget_end(first)
    with ThreadPoolExecutor(len(names)) as at_once:
        ending = at_once.submit(live, student, first, limit)
        machines = list(at_once.map(lambda name: start(student, name), TROUBLES))
        others = list(at_once.map(lambda m: suffer(student, m, set_up), machines))
        return dict(zip(names, [ending.result(), *others], strict=True))


def start(student, name: str):
    words = ("--budget", "0.0085", "--hours", "9m") if name == "budget" else ()
    machine = student.up(name, "--no-open", "--disk", "8", *words)
    machine.run("echo before > work/before.txt")
    return machine


def budget_end(machine) -> datetime:
    status = machine.status()
    left_usd = float(status["budget_usd"]) - float(status["spent_usd"])
    return datetime.now(UTC) + timedelta(seconds=left_usd / usd_per_second(machine))


def suffer(student, machine, set_up) -> Life:
    """Give an instance a minute to live and its trouble, and see it through."""
    # An installation that a full disk breaks off would give its space back.
    set_up(machine)
    # The agent would do so within the minute; that it does is seen by what comes after the trouble.
    machine.run("gpulab-agent save")
    assert "before.txt" in student.kept(machine.name)
    limit = datetime.now(UTC) + timedelta(seconds=LIFE_S)
    machine.run(f"gpulab-agent extend --until {limit.isoformat()}")
    TROUBLES[machine.name](machine, student)
    return live(student, machine, limit)


def live(student, machine, limit: datetime) -> Life:
    """See an instance through to its end."""
    machine.ssh("echo after > work/after.txt")
    before = cost(machine)
    time.sleep(max(0.0, (limit - datetime.now(UTC)).total_seconds() - 15))
    seen = machine.ssh("cat /var/log/gpulab/agent.log").stdout.decode(errors="replace")
    spent = cost(machine)
    ended_at = student.wait_until_ended(machine)
    facts = f".gpulab/ledger/{machine.id}.jsonl"
    kept = student.kept(machine.name)
    noted = student.kept_file(machine.name, facts).decode() if facts in kept else ""
    return Life(
        limit=limit,
        ended_at=ended_at,
        kept=kept,
        lines=seen + student.console(machine),
        facts=[json.loads(line) for line in noted.splitlines()],
        cost={"mib": spent["mib"], "cores": rate(before, spent)},
    )


def usd_per_second(machine) -> float:
    return (
        float(
            machine.run(
                'python3 -c \'import json; print(json.load(open("/etc/gpulab/spec.json"))["usd_per_hour"])\''
            )
        )
        / 3600
    )


COST = """
pid=$(systemctl show -p MainPID --value gpulab-agent)
grep VmRSS /proc/$pid/status | tr -dc 0-9; echo
cut -d ' ' -f 14,15 /proc/$pid/stat
"""


def cost(machine) -> dict[str, float]:
    """Memory and CPU seconds of the watching agent; zeros where nobody can ask."""
    said = machine.ssh(COST)
    if said.returncode:
        return {"mib": 0.0, "cpu_s": 0.0, "at": time.monotonic()}
    kib, user, system = said.stdout.split()
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "mib": int(kib) / 1024,
        "cpu_s": (int(user) + int(system)) / ticks,
        "at": time.monotonic(),
    }


def rate(before: dict[str, float], after: dict[str, float]) -> float:
    """Share of one core between two looks."""
    return (after["cpu_s"] - before["cpu_s"]) / max(1.0, after["at"] - before["at"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", [*TROUBLES, "budget"])
def test_the_end_comes_within_90_seconds_of_its_limit(lives, name):
    """With the laptop gone nobody else will end it, and every hour costs; a trouble on the instance changes nothing."""
    late = lives[name].ended_at - lives[name].limit

    assert timedelta(seconds=-10) < late < timedelta(seconds=90)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TROUBLES, "budget"])
def test_the_work_is_kept(lives, name):
    """What was there before the trouble is kept always, and what came after it unless there was no way out."""
    kept = {"before.txt", "after.txt"} & lives[name].kept.keys()

    assert kept == ({"before.txt"} if name == "network" else {"before.txt", "after.txt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("deadline", "power off: deadline; saved 20"),
        ("budget", "power off: budget; saved 20"),
        ("clock", "The clock was off by 1"),
        ("disk", "The disk is full: delete files, or nothing can be saved."),
        ("metadata", "AWS's metadata does not answer: a spot notice would not be seen."),
        ("network", ", then not: S3 does not"),
        ("memory", "The memory was full, so the system ended a program, likely a kernel."),
        ("agent", "the agent had ended and was started again"),
    ],
)
def test_one_line_says_what_happened(lives, name, line):
    """A student who finds the instance gone asks why; `gpulab logs` and AWS's console have the answer."""
    assert line in lives[name].lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deadline", "budget", "metadata", "memory", "agent"])
def test_the_ledger_has_the_end_beside_the_work(lives, name):
    """No gpulab ran when it ended; the next one must know how long it lived, and why it ended."""
    facts = {fact["kind"]: fact for fact in lives[name].facts}

    assert {"usage", "ended"} == facts.keys()
    assert facts["ended"]["details"]["reason"] == ("budget" if name == "budget" else "deadline")


@pytest.mark.slow
def test_the_agent_costs_next_to_nothing(lives):
    """A student's training must not feel that somebody watches: at most 30 MB and half a percent of one core."""
    cost = lives["deadline"].cost

    assert cost["mib"] <= 30
    assert cost["cores"] <= 0.005
