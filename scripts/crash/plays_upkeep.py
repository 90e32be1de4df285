"""Commands that look after an account, a ledger or a page as plays: what they write must be whole, whenever they were broken."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from crash.plays import NOBODY, Play, baked, exported, has_image, initialised, must, up
from crash.stage import CONFIG, Stage

_ARM = ("guard", "arm", "--budget", "60", "--email", "ann@example.org", "--yes")
_ACCOUNT = "123456789012"


def plays() -> tuple[Play, ...]:
    """Every one, in the order of the report."""
    return (
        Play("guard disarm", ("guard", "disarm", "--yes"), _armed, 0, _is_disarmed),
        Play(
            "image test",
            ("image", "test", "tf2-small", "--yes"),
            baked,
            0,
            has_image,
            has_first_files=False,
        ),
        # Of a computer that is lost, while what it launched runs.
        Play(
            "ledger rebuild",
            ("ledger", "rebuild"),
            _laptop_lost,
            1,
            counted_by=("ledger", "rebuild"),
        ),
        Play("ledger export", ("ledger", "export", "out.jsonl"), exported, 0, _is_exported),
        Play("report", ("report", "--html", "report.html"), exported, 0, _is_page),
        Play(
            "course new",
            ("course", "new", "mine"),
            initialised,
            0,
            _is_course,
            again_codes=(0, *NOBODY),  # a course that is there is never written again
        ),
    )


def _armed(stage: Stage) -> None:
    initialised(stage)
    must(stage.run(*_ARM))


def _is_disarmed(stage: Stage) -> list[str]:
    found = stage.client("budgets").describe_budgets(AccountId=_ACCOUNT).get("Budgets", [])
    roles = [row["RoleName"] for row in stage.client("iam").list_roles()["Roles"]]
    left = [row["BudgetName"] for row in found] + [name for name in roles if "budget" in name]
    return [f"{name} is left" for name in left]


def _laptop_lost(stage: Stage) -> None:
    up(stage)
    stage.new_computer("new-laptop", CONFIG)
    initialised(stage)


def _is_exported(stage: Stage) -> list[str]:
    """The file must have every fact of the ledger here; a rebuilt one may have learned more since."""
    lines = _text(stage.home.parent / "out.jsonl").splitlines()
    try:
        facts = [json.loads(line) for line in lines]
    except ValueError as error:
        return [f"the export is not whole: {error}"]
    here = must(stage.run("ledger", "export")).out.splitlines()
    lacking = len(set(here) - set(lines))
    return [f"{lacking} facts of {len(here)} are not in the export of {len(facts)}"] * bool(lacking)


def _is_page(stage: Stage) -> list[str]:
    text = _text(stage.home.parent / "report.html").rstrip()
    return [] if text.endswith("</html>") else [f"the page ends with {text[-40:]!r}"]


def _is_course(stage: Stage) -> list[str]:
    """Files that are there are never changed: half a file would stay half for ever."""
    folder = stage.home.parent / "mine"
    names = ("course.toml", "roster.csv", ".gitignore")
    problems = [f"{name} is missing or empty" for name in names if not _text(folder / name)]
    if not problems and "course" not in tomllib.loads(_text(folder / "course.toml")):
        problems.append("course.toml is not whole")
    return problems


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
