"""
Break every command at every boundary it crosses, recover it in five ways, and look whether money, work or words suffered.

    python scripts/crash_matrix.py                      every case: hours
    python scripts/crash_matrix.py --cases 2000         so many, the same ones each time, of every kind
    python scripts/crash_matrix.py --minutes 60         as many as that gives
    python scripts/crash_matrix.py --only up --only rm  some commands; `--list` names them
    python scripts/crash_matrix.py --results FILE       keep each result: a run that is repeated goes on, and plays again what failed
    python scripts/crash_matrix.py --no-plays --results FILE --report docs/reliability.md      the page of all that was kept

A case: the simulated AWS as it stands before the command, the command in a process of its own, one break at one AWS call, ssh call, file
or ledger statement (found by recording a good run), a way back, and the invariants of `crash/judging.py`. The same breaks are played against
two launchers of other styles (`crash/baselines.py`). Exits 1 when an invariant did not hold. Linux or macOS: it forks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crash import (
    baselines,
    casting,
    journals,
    plays_class,
    plays_own_accounts,
    plays_sandbox,
    plays_upkeep,
)
from crash.keeping import Results
from crash.plays import Play, plays
from crash.reporting import Tally, page, summary
from crash.seams import Broken
from crash.stage import Stage
from gpulab.sandbox.witnesses import keep_in

_CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Play, print, write the report; 1 when something did not hold."""
    asked = _asked()
    every = [
        *plays(),
        *plays_upkeep.plays(),
        *plays_class.plays(),
        *plays_own_accounts.plays(),
        *plays_sandbox.plays(),
    ]
    chosen = [p for p in every if not asked.only or p.name in asked.only]
    chosen = [] if asked.only_baselines or not asked.plays else chosen
    if asked.list:
        print("\n".join(p.name for p in chosen))
        return 0
    keep_in(os.environ)
    results, began = Results(asked.results, _commit()), time.monotonic()
    casting.rehearse()
    left = sum(play.weight for play in chosen)
    for play, share in zip(chosen, _shares(asked.cases, chosen), strict=True):
        until = None
        if asked.minutes:
            now = time.monotonic()
            until = now + (began + asked.minutes * 60 - now) * play.weight / left
        left -= play.weight
        _play(play, share, results, until, jobs=asked.jobs, is_quiet=asked.json)
    if asked.baselines:
        for name, counts in baselines.play(asked.only_baselines, jobs=asked.jobs).items():
            results.add("baselines", launcher=name, counts=counts)
    results.add("run", seconds=time.monotonic() - began)
    tally = Tally.of(results)
    if asked.report:
        words = sys.argv[1:]
        asked.report.write_text(page(tally, today=datetime.now(UTC).date(), words=words))
    print(json.dumps(tally.as_json()) if asked.json else summary(tally))
    return int(bool(tally.violations))


def _play(
    play: Play,
    share: int | None,
    results: Results,
    until: float | None,
    *,
    jobs: int,
    is_quiet: bool,
) -> None:
    stage = casting.make_stage(play)
    try:
        boundaries, calls = casting.record(stage, play)
        cases = casting.cases_of(play, boundaries)
        chosen = casting.sample(cases, len(cases) if share is None else share)
        if play.torn_at:
            torn = _torn(stage, play, results, is_quick=share is not None and share < 200)
            chosen = [*torn, *chosen]
        crossed = len(set(boundaries))
        results.add("play", name=play.name, boundaries=crossed, calls=calls, possible=len(cases))
        left = results.left(dict.fromkeys([*results.failed(play.name), *chosen]))
        for result in casting.play_all(stage, play, left, jobs=jobs, until=until):
            results.add_result(result)
            for violation in result.violations if not is_quiet else ():
                print(f"{violation.kind} | {result.case.name} | {violation.text}", flush=True)
    finally:
        stage.close()
    if not is_quiet:
        print(f"{play.name}: {Tally.of(results).line(play.name)}", flush=True)


def _torn(stage: Stage, play: Play, results: Results, *, is_quick: bool) -> list[casting.Case]:
    """Cases of journals cut off; a quick run cuts at every 97th byte and plays three of them."""
    said = casting.act(stage, lambda own: _torn_in(own, play, step=97 if is_quick else 1))
    results.add("journals", name=play.name, cuts=said["cuts"])
    cases = [casting.Case(play.name, Broken(*words), how) for words, how in said["found"]]
    return cases[:3] if is_quick else cases


def _torn_in(stage: Stage, play: Play, *, step: int) -> dict[str, Any]:
    stage.run(*play.words)
    found, cuts = journals.breaks(stage, play.torn_at, step=step)
    return {"cuts": cuts, "found": [((b.kind, b.at, b.detail), how) for b, how in found]}


def _shares(cases: int | None, chosen: Sequence[Play]) -> list[int | None]:
    """Share the cases out: a launch can cost most, so it gets most."""
    if cases is None:
        return [None] * len(chosen)
    weights = [play.weight for play in chosen]
    return [max(1, cases * weight // sum(weights)) for weight in weights]


def _commit() -> str:
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip()


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--cases", type=int, help="how many; every one when not given")
    parser.add_argument("--minutes", type=float, help="stop after so many; every kind comes early")
    parser.add_argument("--only", action="append", default=[], help="a command; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--list", action="store_true", help="name the commands")
    parser.add_argument("--json", action="store_true", help="print figures as JSON, nothing else")
    parser.add_argument("--no-baselines", dest="baselines", action="store_false")
    parser.add_argument(
        "--no-plays", dest="plays", action="store_false", help="none of the commands"
    )
    parser.add_argument("--only-baselines", metavar="CALL", help="only those, broken at this call")
    parser.add_argument(
        "--results", type=Path, help="keep each result here, and go on where an earlier run ended"
    )
    parser.add_argument("--report", type=Path, help="write the page here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
