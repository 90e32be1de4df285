"""
The commands for a class in students' own accounts: three students who have each applied the course's template, and one who may not have.

The teacher's computer reaches each account through its role; each account has a bucket of its own, from the template.
"""

from __future__ import annotations

from typing import Any

from crash.plays import Play, must
from crash.plays_class import (
    FORGOTTEN_S,
    STOP,
    STUDENTS,
    UP,
    can_keep,
    class_of_own_accounts,
    is_cleared,
    lacking,
    remove_last,
    take_first_back,
    up_and_worked_on,
    while_it_runs,
)
from crash.stage import Stage

#: Part of the class was served.
_IN_PART = 4


def plays() -> tuple[Play, ...]:
    """Every play of a class in students' own accounts, in the order of the report."""
    return (
        _play("fleet up", UP, _enrolled, STUDENTS, can_keep, weight=2, rival=STOP),
        _play("fleet up, work in the buckets", UP, _over, STUDENTS, _has_come_back, rival=STOP),
        _play(
            "fleet up, one lets nobody in",
            UP,
            _enrolled_but_one,
            STUDENTS - 1,
            can_keep,
            code=_IN_PART,
            again_codes=(_IN_PART,),
        ),
        _play(
            "fleet up --prune",
            (*UP, "--prune"),
            _that_somebody_left,
            STUDENTS - 1,
            can_keep,
            # The way into the account of who left stands nowhere else any more.
            is_known_here_only=True,
        ),
        *while_it_runs(_play, _up),
        _play(
            "course close",
            ("course", "close", "--yes"),
            _partly_over,
            0,
            is_cleared,
            is_done_anywhere=True,
            rival=UP,
        ),
    )


def _play(
    name: str,
    words: tuple[str, ...],
    prepare: Any,
    alive: int,
    done: Any,
    *,
    is_done_anywhere: bool = False,
    **more: Any,
) -> Play:
    return Play(
        f"{name} (own accounts)",
        words,
        prepare,
        alive,
        done,
        has_first_files=False,
        counted_by=("fleet", "ls", "w1"),
        rebuilt_by=("ledger", "rebuild", "--course", "course"),
        is_kept_here=not is_done_anywhere,
        has_key=True,
        # The way into every account is made with it.
        needs_key=True,
        **more,
    )


# -- how the stage stands before ------------------------------------------------------------------------------------------------


def _enrolled(stage: Stage, *, besides: str = "") -> None:
    """
    Every student has applied the template in their account.

    Args:
        besides: Who has not.
    """
    class_of_own_accounts(stage)
    must(stage.run("course", "enrol", "templates"))
    for number in range(STUDENTS):
        stage.accounts.append(f"11110000000{number}")
    for path in sorted((stage.home.parent / "templates").glob("*.template.json")):
        if not besides or not path.name.startswith(besides):
            stage.world.apply_template(path.read_text())
    stage.advance(600)


def _enrolled_but_one(stage: Stage) -> None:
    _enrolled(stage, besides=f"s{STUDENTS - 1}.")


def _up(stage: Stage) -> None:
    """Everybody has an instance and has worked on it."""
    _enrolled(stage)
    up_and_worked_on(stage)


def _over(stage: Stage) -> None:
    """Every instance has ended by its own timer, its work is in the account's bucket, and EC2 has forgotten it."""
    _up(stage)
    stage.advance(5 * 3600 + FORGOTTEN_S)


def _partly_over(stage: Stage) -> None:
    """AWS has taken one instance back an hour ago and has forgotten it; the others run."""
    _up(stage)
    take_first_back(stage)


def _that_somebody_left(stage: Stage) -> None:
    """The last of the roster has left it, while their instance runs in their account and has work."""
    _up(stage)
    remove_last(stage)


# -- what must be true after --------------------------------------------------------------------------------------------------


def _has_come_back(stage: Stage) -> list[str]:
    return can_keep(stage) + lacking(stage)
