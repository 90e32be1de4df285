"""docs/soak.md, written from the figures of the last runs; no figure in it is typed by hand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

Said = Mapping[str, Any]


def written(said: Mapping[str, Said]) -> str:
    """Write the page from the figures of `term`, `tunnel` and `watch`."""
    parts = [_HEAD, _term(said["term"]), _tunnel(said["tunnel"]), _watch(said["watch"])]
    return "\n".join(parts)


def _term(said: Said) -> str:
    figures, tally = said["figures"], said["tally"]
    rows = [
        ("launches that EC2 took", tally["booted"], ""),
        ("of them without a bucket, because S3 refused at the launch", tally["without_bucket"], ""),
        ("spot interruptions with a notice", tally["interrupted"], ""),
        ("launched twice", len(tally["doubled"]), "0"),
        ("running a day after the last lab, before any sweep", figures["running_at_end"], "0"),
        ("billed by anything after `gpulab sweep`", len(figures["orphans"]), "0"),
        ("files wrong after a restore", len(figures["wrong_after_restore"]), "0"),
        ("files wrong in the bucket at the end", len(figures["wrong_at_end"]), "0"),
        ("files lost although a notice came in time", tally["lost"].get("broken promise", 0), "0"),
        (
            "instances that the bill names and no ledger does",
            len(figures["unknown_resources"]),
            "0",
        ),
        ("dollars that no ledger accounts for", f"{float(figures['unknown_usd']):.2f}", "0"),
        (
            "instances estimated more than a cent off, but for those named below",
            len(figures["apart"]),
            "0",
        ),
        ("billed, USD", f"{float(figures['billed_usd']):.2f}", ""),
        ("estimated by the ledgers, USD", f"{float(figures['estimated_usd']):.2f}", ""),
        ("commands nobody foresaw the end of (tracebacks)", len(figures["tracebacks"]), "0"),
        ("sessions given up after ten tries", figures["gave_up"], ""),
    ]
    lost = [
        (f"files lost: {why}", n, "") for why, n in tally["lost"].items() if "promise" not in why
    ]
    return "\n".join(
        [
            "## A term",
            "",
            f"{said['students']} students, {said['weeks']} weeks, {_seen(said)}; {figures['calls']:,} calls to AWS, {said['processes']} processes at once,"
            f" {said['wall_s'] / 60:.0f} min of real time.",
            "",
            *_table(("what", "seen", "promised"), [*rows, *lost]),
            "",
            *_table(
                ("simulated seconds", "p50", "p95", "p99", "most"),
                [
                    _times("a launch, from `gpulab up` to JupyterLab", said["to_jupyter"]),
                    _times("a session's wish, with every failure between", said["wish_to_jupyter"]),
                    _times(
                        "of a launch, gpulab's own: JupyterLab answers until `up` says so",
                        said["noticed_late"],
                    ),
                ],
            ),
            "",
            "Most of a launch is the machine's own start, which the simulator makes up; the last row is what can be learned here.",
            "",
            "Commands that failed, of " + _counts(figures["commands"]) + ":",
            "",
            *_table(("command and cause", "times"), sorted(figures["failures"].items(), key=_most)),
            "",
            "Outages, of minutes each: "
            + _counts(figures["outages"])
            + ". How instances ended: "
            + _counts(tally["ends"])
            + ".",
            "",
            "Every process, which is the simulated AWS with all it remembers and gpulab of"
            f" {said['share']} students, at the end of each week (what grows with the launches is what AWS remembers of them):",
            "",
            *_table(
                (
                    "week",
                    "processes",
                    "launches so far",
                    "MB, median",
                    "MB, most",
                    "threads",
                    "open files",
                ),
                _weeks(figures["samples"]),
            ),
            "",
            *_end_unknown([Decimal(usd) for usd in figures["end_unknown"]]),
            *_named("Promises that were broken", said["violations"]),
        ]
    )


def _weeks(samples: list[Said]) -> list[tuple[Any, ...]]:
    """Put what all processes held at one moment of simulated time into one row."""
    weeks: dict[str, list[Said]] = {}
    for sample in samples:
        weeks.setdefault(sample["at"][:10], []).append(sample)
    return [
        (
            number,
            len(found),
            sum(s["launches"] for s in found),
            round(statistics.median(s["memory_mb"] for s in found)),
            max(s["memory_mb"] for s in found),
            max(s["threads"] for s in found),
            max(s["files"] for s in found),
        )
        for number, (_, found) in enumerate(sorted(weeks.items()), start=1)
    ]


def _end_unknown(too_high: list[Decimal]) -> list[str]:
    if not too_high:
        return []
    return [
        f"{len(too_high)} instances are estimated too high, by {sum(too_high):.2f} USD together and {max(too_high):.2f} at most: they were cut off while nobody looked, and"
        " EC2 had forgotten them and their spot requests by the next command. The ledger says of each what it is counted to: a while after its agent's last word, or its planned end.",
        "",
    ]


def _tunnel(said: Said) -> str:
    samples = said["samples"]
    rows = [
        (s["faults"], f"{s['memory_mb']} MB", s["threads"], s["files"], s["children"])
        for s in (samples[0], samples[len(samples) // 2], samples[-1])
    ]
    return "\n".join(
        [
            "## A tunnel",
            "",
            f"{sum(said['faults'].values()):,} faults ({_counts(said['faults'])}) of {_tunnels(said['tunnels'])}, {_seen(said)},"
            f" in {said['seconds'] / 60:.0f} min:"
            f" {said['requests']:,} requests, {len(said['failures'])} lost."
            f" Back after {said['back']['p50']} s in the middle, {said['back']['p95']} s at p95, at the soak's pace."
            + (_STRUCK_AGAIN.format(said["struck_again"]) if said.get("struck_again") else ""),
            "",
            *_table(("after faults", "memory", "threads", "files", "child processes"), rows),
            "",
            *_named("Promises that were broken", said["violations"]),
        ]
    )


def _tunnels(number: int) -> str:
    return "one tunnel" if number == 1 else f"{number} tunnels at once in one process"


def _watch(said: Said) -> str:
    return "\n".join(
        [
            "## The agent's watcher",
            "",
            f"{said['steps']:,} looks, {said['days']:g} simulated days with a file changed every five minutes, {_seen(said)}:"
            f" {said['memory_kb'][0] / 1024:.1f} MB at the beginning, {said['memory_kb'][-1] / 1024:.1f} MB at the end,"
            f" {said['files'][-1]} open files, {said['threads'][-1]} thread, {said['log_bytes']} bytes of log.",
            "",
            *_named("Promises that were broken", said["violations"]),
        ]
    )


def _seen(said: Said) -> str:
    return f"on {said['date']} at commit {said['commit']} ({said['host']}, shared with other work)"


def _times(what: str, shares: Said) -> tuple[Any, ...]:
    return (what, shares["p50"], shares["p95"], shares["p99"], shares["max"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items(), key=_most))


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return (-item[1], item[0])


def _named(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", "", *(f"- {line}" for line in lines), ""] if lines else []


def _table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]


_STRUCK_AGAIN = (
    " {} faults hit nothing, because the link was just being made anew, and were repeated."
)

_HEAD = """\
# Load and soak

What months of use come to, played in minutes. `python scripts/soak.py` runs it and writes this page (`page`); its smallest version runs with every change
(`tests/aws/test_soak.py`). It exits with 1 when a promise is broken: something launched twice, left running, lost, unknown to the ledger or estimated wrong, or a traceback.

**A term** is a class before the simulated AWS ([sandbox.md](sandbox.md)), each student with a laptop's folder and an account of the own, in simulated time, driven
through gpulab's own `up`, `ls`, `extend`, `stop`, `ledger rebuild` and `sweep`. Six labs begin on Monday within a quarter of an hour, then everybody works on a
project at any time. Three students in ten have keys that expire after four hours. Each zone has a rate of interruptions of its own, 0 to 20 % an hour, drawn every week; three in a hundred come
without a notice. Zones are full for up to an hour, and three times a week AWS has an outage of 2 to 9 min, once of them at the peak. One session in four ends by itself because
nobody stops it; now and then a laptop's lid is closed in the middle of a command. Files are real, and are kept and brought back by the agent's own code; booting, JupyterLab and ssh are
played. Students share nothing but the weather, so they are played in shares, each with a process and a simulated AWS of its own. A student whose `gpulab init` could not make the bucket in an outage
runs it again, and a launch that cannot write to the bucket is repeated when S3 is well again. Classes by `gpulab fleet` are not in it.

**A tunnel** is the real one before a real sshd of its own, with two clients asking through it all the time while ssh and sshd are killed and frozen, the network swallows everything, and the
clock jumps by ten minutes as after a sleep. The process is looked at while all of its tunnels are up. Their pace is a tenth of the usual one, so that a loss is noticed after one second.

**The watcher** is the agent's daemon, stepped through days.
"""
