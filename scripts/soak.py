"""
Load and soak: months of use in minutes, and what came of them. Exits 1 when a promise was broken.

    python scripts/soak.py term [--students 300] [--weeks 13] [--seed 1]   a class, a term, bad weather, in simulated time
                                [--share 10] [--processes 2]
    python scripts/soak.py tunnel [--faults 5000] [--minutes 60]           tunnels through drops, freezes and sleeps; needs sshd
                                  [--tunnels 4]
    python scripts/soak.py watch [--days 30]                               the agent's watcher through days of simulated time
    python scripts/soak.py page                                            docs/soak.md, made of the last run of each

`term` runs gpulab's own code against the simulated AWS: `up`, `ls`, `extend`, `stop`, `ledger rebuild`, `sweep`, with a folder and an
account of its own for each student, and a process with a simulated AWS for each share of the students. What is cut short, or by
`--minutes`, goes on when it is run again at the same commit. Figures go to `build/soak/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soaking import shares

CHECKOUT = Path(__file__).resolve().parent.parent
FIGURES = CHECKOUT / "build" / "soak"


def main(arguments: Sequence[str]) -> int:
    """Run one soak, or make the page."""
    options = _options(arguments)
    runs: dict[str, Callable[[argparse.Namespace], int]] = {
        "term": _term,
        "tunnel": _tunnel,
        "watch": _watch,
        "page": _page,
    }
    return runs[options.what](options)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["term", "tunnel", "watch", "page"])
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--weeks", type=int, default=13)
    parser.add_argument("--swept-everywhere", type=int, default=1)
    parser.add_argument("--share", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--faults", type=int, default=5000)
    parser.add_argument("--tunnels", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    return parser.parse_args(arguments)


def _term(options: argparse.Namespace) -> int:
    from soaking import shares, term

    size = term.Size(options.students, options.weeks, options.swept_everywhere)
    began, code = time.monotonic(), 1
    ends = shares.play(
        size,
        seed=options.seed,
        each=options.share,
        processes=options.processes,
        minutes=options.minutes,
        kept=options.figures / f"term-{_commit()}-{options.weeks}-{options.seed}",
        say=_say,
    )
    # Written after each share, so that a term that is cut short has figures too.
    for students, part in ends:
        about = {"students": students, "weeks": options.weeks, "wall_s": time.monotonic() - began}
        code = _term_ended(about, part, options)
    return code


def _term_ended(about: dict[str, Any], part: shares.Part, options: argparse.Namespace) -> int:
    from soaking import figures

    found, tally = part
    broken = figures.violations(found, tally)
    lost = {why: len(files) for why, files in figures.lost_by_cause(tally).items()}
    said = {
        **about,
        "share": options.share,
        "processes": options.processes,
        "figures": _plain(found),
        "tally": {**_plain(tally), "lost": lost},
        "to_jupyter": _shares(found.to_jupyter_s),
        "wish_to_jupyter": _shares(found.wish_to_jupyter_s),
        "noticed_late": _shares(found.noticed_late_s),
        "violations": broken,
    }
    for long in ("to_jupyter_s", "wish_to_jupyter_s", "noticed_late_s"):
        said["figures"].pop(long)
    return _ended("term", said, broken, options)


def _tunnel(options: argparse.Namespace) -> int:
    from soaking import tunnel

    found = tunnel.soak(
        options.faults,
        tunnels=options.tunnels,
        seed=options.seed,
        minutes=options.minutes,
        say=_say,
    )
    broken = found.violations()
    said = {
        **_plain(found),
        "back": _shares(found.back_s),
        "violations": broken,
    }
    said.pop("back_s")
    return _ended("tunnel", said, broken, options)


def _watch(options: argparse.Namespace) -> int:
    from soaking import watcher

    with tempfile.TemporaryDirectory(prefix="gpulab-soak-") as folder:
        found = watcher.soak(options.days, folder=Path(folder), say=_say)
    broken = found.violations()
    return _ended("watch", {**_plain(found), "violations": broken}, broken, options)


def _page(options: argparse.Namespace) -> int:
    from soaking import page

    said = {
        name: json.loads((options.figures / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("term", "tunnel", "watch")
    }
    (CHECKOUT / "docs" / "soak.md").write_text(page.written(said), encoding="utf-8")
    return 0


def _ended(
    name: str, said: dict[str, Any], broken: Sequence[str], options: argparse.Namespace
) -> int:
    options.figures.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.now(UTC).date().isoformat(), "commit": _commit(), "host": _host()}
    text = json.dumps({**about, **said}, indent=1)
    (options.figures / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(broken)} promises broken; figures in {options.figures / name}.json")
    for text in broken[:20]:
        print(f"  {text}")
    return 1 if broken else 0


def _shares(values: Sequence[float]) -> dict[str, float]:
    from soaking.figures import percentile

    found = {f"p{share}": round(percentile(values, share), 2) for share in (50, 95, 99)}
    return {"count": len(values), **found, "max": round(max(values, default=0.0), 2)}


def _plain(value: Any) -> Any:
    """What JSON can say; not by `dataclasses.asdict`, which takes a Counter's items for things to count."""
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {
            " ".join(map(str, k)) if isinstance(k, tuple) else str(k): _plain(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def _commit() -> str:
    asked = ["git", "-C", str(CHECKOUT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _host() -> str:
    return f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
