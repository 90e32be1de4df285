"""
What a report costs: CPU seconds on a term's ledger, and on a CUR in Parquet against DuckDB's own scan of the same file.

    python scripts/bench/report.py [--students 350] [--lines 100000,1000000,10000000]
    python scripts/bench/report.py --lines ''     # the ledger alone

Prints CPU seconds (user and system) and the largest resident size. Files are made in a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from gpulab.store.ledger import Ledger

HERE = Path(__file__).parent
_TIMES = 5
_TURNS = 9
# Resources that live for days, a line an hour: 24 lines a resource and day, spread over a term and 300 accounts.
_ROWS = """
    SELECT TIMESTAMP '2026-09-01' + INTERVAL (u % 91) DAY + INTERVAL (n % 24) HOUR AS line_item_usage_start_date,
           CASE u % 3 WHEN 0 THEN 'i-0' || (u // 91) WHEN 1 THEN 'vol-0' || (u // 91) END AS line_item_resource_id,
           '111122223' || lpad((u // 91 % 300)::VARCHAR, 3, '0') AS line_item_usage_account_id,
           CASE WHEN u % 50 = 0 THEN 'Credit' WHEN u % 97 = 0 THEN 'Tax' ELSE 'Usage' END AS line_item_line_item_type,
           CASE u % 3 WHEN 0 THEN 'SpotUsage:g4dn.xlarge' WHEN 1 THEN 'EBS:VolumeUsage.gp3'
               ELSE 'PublicIPv4:InUseAddress' END AS line_item_usage_type,
           'USD' AS line_item_currency_code,
           (n % 9973) / 10000.0::DOUBLE AS line_item_unblended_cost,
           (n % 9973) / 4000.0::DOUBLE AS pricing_public_on_demand_cost
    FROM (SELECT n, n // 24 AS u FROM range({lines}) t(n))
"""
# The least that answers the same question: the same columns, the same groups, plain sums.
_BARE = """
    SELECT line_item_usage_start_date::DATE, line_item_resource_id, line_item_line_item_type, line_item_usage_type,
           sum(line_item_unblended_cost), count(*)
    FROM read_parquet(?) GROUP BY ALL
"""


def main() -> None:
    """Measure each in a process of its own, so that memory is its own too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=350)
    parser.add_argument("--lines", default="100000,1000000,10000000")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        _measure(*given.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        _ledger(Path(folder), given.students)
        for lines in filter(None, given.lines.split(",")):
            _statement(Path(folder), int(lines))


def _ledger(folder: Path, students: int) -> None:
    sys.path.insert(0, str(HERE))
    from term import term

    path = folder / "ledger.sqlite"
    facts = Ledger(path).append(term(students=students))
    spent = sorted(_whole_command(path) for _ in range(_TIMES))
    seconds, mib = spent[_TIMES // 2]
    print(
        f"gpulab report on {facts} facts: {seconds:.2f} s CPU (median of {_TIMES},"
        f" {spent[0][0]:.2f} to {spent[-1][0]:.2f}), {mib:.0f} MiB"
    )


def _whole_command(path: Path) -> tuple[float, float]:
    """Run the command as people do, its start and its end included; CPU seconds and MiB."""
    asked = ["--ledger", str(path), "--until", "2026-12-01", "--timezone", "Europe/Copenhagen"]
    command = [sys.executable, "-m", "gpulab", "report", *asked, "--csv"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _statement(folder: Path, lines: int) -> None:
    import duckdb

    path = folder / f"cur-{lines}.parquet"
    duckdb.sql(f"COPY ({_ROWS.format(lines=lines)}) TO '{path}' (FORMAT parquet)")
    # In turn, so that a busy moment of the computer falls on both.
    rounds = [
        [_in_own_process(what, path) for what in ("bare", "statement")] for _ in range(_TURNS)
    ]
    bare, ours = (median(one["cpu_s"] for one in runs) for runs in zip(*rounds, strict=True))
    ratios = sorted(second["cpu_s"] / first["cpu_s"] for first, second in rounds)
    print(
        f"CUR of {lines} lines: {ours:.2f} s CPU, {max(r[1]['mib'] for r in rounds):.0f} MiB; DuckDB's bare scan {bare:.2f} s;"
        f" ratio {median(ratios):.2f} (median of {_TURNS}, {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    path.unlink()


def _in_own_process(what: str, path: Path) -> dict[str, float]:
    command: Sequence[str] = [sys.executable, __file__, "--measure", what, str(path)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def _measure(what: str, path: str) -> None:
    if what == "statement":
        import gc

        from gpulab.store.statements import read_statement

        gc.disable()  # as the command does
        read_statement(Path(path))
    else:
        import duckdb

        duckdb.connect().execute(_BARE, [path]).fetchall()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps({"cpu_s": seconds, "mib": used.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
