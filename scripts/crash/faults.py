"""What goes wrong, where it may, and what a command must say then. Pure tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from crash.seams import Broken
from gpulab import errors

_TABLE = Path(__file__).resolve().parents[2] / "tests" / "unit" / "cases" / "aws_errors.csv"

KILLS = ("kill before", "kill after")
#: Another command at once, where a play has one that may come between.
OTHER = "another at once"
_EVERYWHERE = (*KILLS, "interrupt")
ON_AWS = (
    *_EVERYWHERE,
    "request lost",
    "reply lost",
    "always lost",
    "refused",
    "failed after",
    "throttled",
    "always throttled",
    "expired",
    "asleep",
    "two at once",
    OTHER,
)
ON_SSH = (*_EVERYWHERE, "reply lost", "always lost", "refused", "asleep", "two at once", OTHER)
ON_FILES = (*_EVERYWHERE, "disk full")
#: A full disk still does these.
_LETTING_GO = ("unlink", "remove", "rmdir", "chmod")
#: Files whose order against the rest decides over double launches.
_CRITICAL = ("journal", "ledger", "config.toml")
RECOVERIES = ("again", "other", "sweep", "empty", "laptop")
#: Ways back that begin without the state folder.
ELSEWHERE = ("empty", "laptop")


def error_table() -> dict[str, tuple[type[errors.GpulabError], str]]:
    """AWS's codes: the class each becomes, and what is said of it."""
    with _TABLE.open(encoding="utf-8") as file:
        return {r["code"]: (getattr(errors, r["class"]), r["says"]) for r in csv.DictReader(file)}


def breaks(boundaries: Iterable[str], *, has_rival: bool = False) -> Iterator[Broken]:
    """
    Every way to break a command that crosses these boundaries, in their order.

    Args:
        has_rival: Whether there is another command that may come between.
    """
    codes = sorted(error_table())
    for name in dict.fromkeys(boundaries):
        for kind in _kinds(name):
            if has_rival or kind != OTHER:
                yield Broken(kind, name)
        if name.startswith("aws "):
            said = (code for code in codes if not _is_of_ec2(code) or " ec2:" in name)
            yield from (Broken("error", name, code) for code in said)
    for minutes in ("20", "-20"):
        yield Broken("clock", "", minutes)


def _is_of_ec2(code: str) -> bool:
    """Whether a code names a thing of EC2's, which no other service can miss: elsewhere "not found" is said of what the call asks for."""
    return code.startswith("Invalid") and "." in code


def recoveries_of(broken: Broken, number: int) -> tuple[str, ...]:
    """The ways to recover that are tried after a break: all after a kill outside the caches, else the same command and one other in turn."""
    is_cache = "/cache/" in broken.at
    if broken.kind in KILLS and not is_cache:
        return RECOVERIES
    if is_cache:
        return (RECOVERIES[number % 2],)
    return ("again", RECOVERIES[1 + number % 4])


def _kinds(name: str) -> tuple[str, ...]:
    match name.split()[0]:
        case "aws":
            return ON_AWS
        case "ssh":
            return ON_SSH
        case "ledger" | "notes":
            return ON_FILES
        case "program" | "control":
            return _EVERYWHERE
    if name.split()[1] in _LETTING_GO:
        return _EVERYWHERE
    if any(part in name for part in _CRITICAL):
        return (*ON_FILES, "two at once", OTHER)
    return ON_FILES
