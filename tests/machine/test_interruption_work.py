"""Every way an instance is taken away, on machines that boot: a spot notice, a hard cut without one, an end from somebody else's hand."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

MANY = """
import os, random
source = random.Random(7)
for n in range(1000):
    folder = f"/home/ubuntu/work/many/{n % 20}"
    os.makedirs(folder, exist_ok=True)
    open(f"{folder}/{n}.bin", "wb").write(source.randbytes(25_000))
"""
EDITS = """
import time
while True:
    open("/home/ubuntu/work/edits.txt", "a").write(f"{time.time():.1f}\\n")
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def trio(student):
    """Three instances at once: for the notice, for the cut, for the end from outside."""
    names = ("spot", "cut", "ended")
    with ThreadPoolExecutor(3) as at_once:
        return dict(
            zip(names, at_once.map(lambda n: student.up(n, "--no-open"), names), strict=True)
        )


def hashes(machine) -> dict[str, str]:
    """Path to hash of all work, but for the agent's own notes."""
    lines = [json.loads(line) for line in machine.run("gpulab-agent manifest").splitlines()]
    return {e["path"]: e["sha256"] for e in lines if not e["path"].startswith(".gpulab/")}


@pytest.mark.slow
def test_an_interruption_loses_no_file(student, trio):
    """The worst case: nothing was saved before the notice, and AWS then cuts the power with work in progress."""
    machine = trio["spot"]
    machine.run("python3 -", given=MANY.encode())
    before = hashes(machine)

    student.gpulab("sandbox", "interrupt", "spot", "--in", "20s")
    student.wait_until_ended(machine)
    kept = student.kept("spot")
    reason = student.seen(machine)["StateReason"]["Code"]
    again = student.up("spot", "--no-open")
    after = hashes(again)
    student.gpulab("stop", "spot", "--yes")

    assert 1000 == len(before)
    assert before == after
    assert before == {path: kept[path]["sha256"] for path in before}
    assert ("Server.SpotInstanceTermination", False) == (
        reason,
        "System Power Off" in student.console(machine),
    )
    assert again.id != machine.id


@pytest.mark.slow
def test_a_hard_cut_costs_less_than_a_minute_of_edits(student, trio):
    """A host that dies gives no notice; what the last save had is all there is."""
    machine = trio["cut"]
    machine.run(f"nohup python3 -c '{EDITS}' >/dev/null 2>&1 & sleep 70")

    cut_at = time.time()
    student.pull_the_plug(machine)
    student.wait_until_ended(machine)
    edits = [float(line) for line in student.kept_file("cut", "edits.txt").split()]

    assert cut_at - edits[-1] <= 60
    assert [] == [gap for a, b in itertools.pairwise(edits) if (gap := b - a) > 10]


@pytest.mark.slow
def test_an_end_from_somebody_elses_hand_saves_first(student, trio, eventually):
    """A TA who ends an instance in AWS's console must not cost the student the last minute."""
    machine = trio["ended"]
    eventually(lambda: machine.status()["saved_at"] is not None)
    machine.run("echo the last line > work/last.txt")

    student.client("ec2").terminate_instances(InstanceIds=[machine.id])
    student.wait_until_ended(machine)

    assert b"the last line\n" == student.kept_file("ended", "last.txt")
