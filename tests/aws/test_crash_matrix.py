"""
A sample of the crash matrix (`scripts/crash_matrix.py`): real commands killed, cut off and starved at the boundaries they cross, then recovered.

The whole of it takes hours and writes `docs/reliability.md`; this much, the same each time, takes about a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which is not on Windows"),
]

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "crash_matrix.py"
_FEWEST_KINDS = 10  # of the breaks; which ones a sample holds moves with the boundaries
_COMMANDS = ("up", "stop", "rm", "fleet up", "fleet stop (own accounts)")


def run(*words: str) -> dict[str, Any]:
    """Run the matrix in a process of its own, since it forks and takes possession of botocore."""
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), "--json", *words],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def test_money_and_work_survive_a_sample_of_all_breaks_and_ways_back():
    """Whatever dies at whichever moment: one instance or none, every dollar known, no work lost, no secret told."""
    only = [word for name in _COMMANDS for word in ("--only", name)]

    found = run("--cases", "46", "--no-baselines", *only)

    assert [] == found["found"]
    assert set(_COMMANDS) == set(found["cases"])
    assert {"kill before", "kill after"} <= set(found["kinds"])
    assert len(found["kinds"]) >= _FEWEST_KINDS
    assert {"again", "other", "sweep", "empty", "laptop"} == set(found["recoveries"])


_INSIDE = """
from crash import casting, seams
from crash.seams import Broken
cases = [casting.Case("p", Broken("kill before", f"aws x #{n}"), how) for n in range(4) for how in "abcde"]
few = casting.sample(cases, 20)
names = {seams._TEMPORARY.sub("*", f"work/.gpulab-copy-{pid}-a1b2c3d4/data/a.csv") for pid in (7, 123456)}
print(json.dumps([len(set(few)), len({c.broken for c in few[:4]}), sorted(names)]))
"""


def test_a_small_play_is_played_whole_and_its_places_keep_their_names():
    """A command with few breaks would stop at one way back of each; a place named after a process would be met in that process only."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json, sys\nsys.path.insert(0, {str(_SCRIPT.parent)!r})\n{_INSIDE}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [20, 4, ["work/.gpulab-copy-*/data/a.csv"]] == json.loads(done.stdout), done.stderr


def test_the_same_breaks_show_what_other_launchers_lose():
    """A harness that finds nothing anywhere would prove nothing: a lost answer must make the others launch twice."""
    found = run("--only-baselines", "RunInstances")

    doubles = {
        name: kinds["two or more after running again"] for name, kinds in found["baselines"].items()
    }
    assert doubles["naive"] > 0
    assert doubles["tags and failover"] > 0
    assert found["baselines"]["naive"]["untagged after running again"] > 0
