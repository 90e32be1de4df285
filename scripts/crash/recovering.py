"""The ways back after a break, as a person would take them."""

from __future__ import annotations

import shutil
from dataclasses import replace

from crash.faults import ELSEWHERE
from crash.plays import Play
from crash.stage import Ran, Stage


def recover(stage: Stage, play: Play, how: str) -> list[Ran]:
    """
    Do what a person does next; the last command of the play's words must bring what was wanted.

    Args:
        how: One of `faults.RECOVERIES`.
    """
    renew_credentials(stage)
    match how:
        case "again":
            stage.advance(2)
            return [stage.run(*play.words)]
        case "other":
            stage.advance(30)
            return [stage.run("ls"), stage.run(*play.words)]
        case "sweep":
            return _swept(stage)
        case "empty":
            return _with_empty_folder(stage, play)
        case _:
            key = stage.home / "courses"
            stage.take_along(("mine", "course", "facts.jsonl"), "other-laptop")
            if play.has_key and key.is_dir():
                shutil.copytree(key, stage.home / "courses")
            stage.advance(60)
            return [stage.run("init", "--yes"), stage.run(*play.words)]


def _with_empty_folder(stage: Stage, play: Play) -> list[Ran]:
    """Begin anew; a course's key is brought back from a copy once a class that runs is not known without it."""
    saved, key = stage.home.parent / "saved", stage.home / "courses"
    if play.has_key and key.is_dir():
        shutil.copytree(key, saved)
    shutil.rmtree(stage.home)
    stage.advance(60)
    stage.new_folder()
    if play.needs_key and saved.is_dir():
        shutil.copytree(saved, key)
    rans = [stage.run("init", "--yes"), stage.run(*play.words)]
    if saved.is_dir() and rans[-1].code != 0:
        shutil.rmtree(key, ignore_errors=True)
        shutil.copytree(saved, key)
        rans.append(stage.run(*play.words))
    return rans


def account(stage: Stage, play: Play, how: str) -> list[Ran]:
    """Bring the ledger up to date: one's own computer by looking at the credit, a new one from the account."""
    stage.advance(700)
    words = play.rebuilt_by if how in ELSEWHERE else play.counted_by
    return [stage.run(*words)] if words else []


def _swept(stage: Stage) -> list[Ran]:
    """Sweep once the grace is over, and once more when everybody's time is over: then nothing may be left."""
    stage.advance(900)
    first = stage.run("sweep", "--apply", "--yes")
    stage.advance(13 * 3600)
    return [first, stage.run("sweep", "--apply", "--yes")]


def renew_credentials(stage: Stage) -> None:
    """Let every key be good again, as after a new login."""
    keys = stage.world.credentials.keys
    for name, key in list(keys.items()):
        keys[name] = replace(key, expires_at=None)
