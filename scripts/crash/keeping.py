"""Results on disk, a line each, so that a run can be continued, its failed cases repeated, and the page written from all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crash.casting import Case, Result
from crash.judging import Violation
from crash.seams import Broken


class Results:
    """
    The results of runs, in the order they came.

    Args:
        path: Their file; `None` keeps them in memory only.
        commit: What is played now.
    """

    def __init__(self, path: Path | None, commit: str) -> None:
        self._path, self._commit = path, commit
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, kind: str, **words: Any) -> None:
        """Keep a line; it is on the disk when this returns."""
        row = {"kind": kind, "commit": self._commit, **words}
        self._rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def add_result(self, result: Result) -> None:
        """Keep what came of a case."""
        self.add("case", **asdict(result))

    def rows(self, kind: str) -> Iterator[dict[str, Any]]:
        """Read the lines of a kind."""
        return (row for row in self._rows if row["kind"] == kind)

    def latest(self) -> list[tuple[str, Result]]:
        """The commit and the last result of each case."""
        found = {_key(row["case"]): (row["commit"], _result(row)) for row in self.rows("case")}
        return list(found.values())

    def mended(self) -> list[tuple[str, Result]]:
        """The commit and the result of cases that failed and hold by now, once each."""
        good = {one.case for _, one in self.latest() if not one.violations}
        failed = {
            _key(row["case"]): (row["commit"], _result(row))
            for row in self.rows("case")
            if row["violations"]
        }
        return [(commit, one) for commit, one in failed.values() if one.case in good]

    def failed(self, play: str) -> list[Case]:
        """Name the cases of a play that failed when they were played last."""
        return [one.case for _, one in self.latest() if one.violations and one.case.play == play]

    def left(self, cases: Iterable[Case]) -> list[Case]:
        """Leave out the cases that were played and held."""
        good = {one.case for _, one in self.latest() if not one.violations}
        return [case for case in cases if case not in good]


def _key(case: dict[str, Any]) -> str:
    return json.dumps(case, sort_keys=True)


def _result(row: dict[str, Any]) -> Result:
    said = row["case"]
    case = Case(said["play"], Broken(**said["broken"]), said["recovery"])
    violations = [Violation(**v) for v in row["violations"]]
    return Result(case, row["broke"], violations, row["recovery_s"], row["calls"])
