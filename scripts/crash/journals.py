"""Journals cut off at any byte, as a disk that lied leaves them: which different stories there are, and where each begins and ends."""

from __future__ import annotations

from pathlib import Path

from crash.faults import RECOVERIES
from crash.seams import Broken
from crash.stage import Stage
from gpulab.store.journal import Journal

KIND = "journal torn"


def breaks(stage: Stage, at: str, *, step: int = 1) -> tuple[list[tuple[Broken, str]], int]:
    """
    Read the journal of the computer in use cut off at every byte.

    Args:
        at: The boundary after which the command is killed.
        step: Only at every so many bytes; 1 for all.

    Returns:
        For each story that reads differently: a break at the first, the middle and the last byte that tell it, each with a recovery; and at
        how many bytes the journal was cut.
    """
    journal = journal_of(stage)
    whole = journal.read_bytes()
    cut, stories = journal.with_name("cut.jsonl"), dict[str, list[int]]()
    for size in range(0, len(whole) + 1, step):
        cut.write_bytes(whole[:size])
        story = Journal(cut).read()
        tokens = (
            sorted(i.token for i in story.open_intents),
            sorted(m.instance_id for m in story.made),
        )
        stories.setdefault(repr((tokens, story.torn_lines)), []).append(size)
    cut.unlink()
    found = []
    for sizes in stories.values():
        for size in dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])):
            how = RECOVERIES[len(found) % len(RECOVERIES)]
            found += [(Broken(KIND, at, str(size)), way) for way in dict.fromkeys(("again", how))]
    return found, len(range(0, len(whole) + 1, step))


def tear(stage: Stage, size: int) -> None:
    """Cut the journal of the computer in use off."""
    path = journal_of(stage)
    path.write_bytes(path.read_bytes()[:size])


def journal_of(stage: Stage) -> Path:
    """The journal of the computer in use."""
    return stage.home / "profiles" / "default" / "journal.jsonl"
