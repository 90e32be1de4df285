"""What is right when a reader meets bad input: a clean error of ours that names the place, or success. One oracle for every room."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpulab.errors import GpulabError

# A reader may take this long for each MB it is given, and a tenth of it for anything.
CPU_S_PER_MB = 1.0
_LEAST_MB = 0.1


class Wrong(Exception):
    """A target's own finding: the reader neither refused the input nor did what it must with it."""


@dataclass(frozen=True)
class Target:
    """
    One reader and what it is fed.

    Attributes:
        room: Where the reader lives, as the imports name it; a finding's place is its last line there.
        read: Reads one input; raises `Wrong` when what comes out cannot be right.
        seeds: Good inputs to begin from; the reader must take each without an error.
        exits: The exit codes it may end with, as docs/exit-codes.md has them; none for a reader that collects problems instead.
        names: One of these expressions must be found in an error's message, so that the user finds the place.
        spoken: Errors of the agent, which is no `GpulabError`'s room; they must name the place, too.
        others: Errors, besides these, that the room promises its caller, who adds the place.
        words: What a mutation may insert, besides what is in the seeds.
        large: Bytes of a large input: the most that is not refused for its length alone.
    """

    name: str
    room: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    exits: tuple[int, ...]
    names: tuple[str, ...]
    spoken: tuple[type[Exception], ...] = ()
    others: tuple[type[Exception], ...] = ()
    words: tuple[bytes, ...] = ()
    large: int = 1_000_000


@dataclass(frozen=True)
class Finding:
    """
    An input on which a reader went wrong.

    Attributes:
        kind: The exception's class, `slow`, or what the target says.
        place: `file:line` of the last frame inside gpulab.
    """

    target: str
    kind: str
    place: str
    text: str

    @property
    def signature(self) -> str:
        """The same for two inputs that show the same fault."""
        return f"{self.kind} at {self.place}"


def judge(target: Target, given: bytes, *, is_timed: bool = False) -> Finding | None:
    """
    Feed one input to a reader.

    Args:
        is_timed: Whether more CPU than `CPU_S_PER_MB` is a finding; only meant for large inputs.

    Returns:
        `None` when all is right.
    """
    began = time.process_time()
    try:
        target.read(given)
    except GpulabError as error:
        wrong = _wrong_exit(error, target) or _wrong_words(error.message, target)
        if wrong:
            return Finding(target.name, wrong, _place(error), f"{type(error).__name__}: {error}")
    except target.spoken as error:
        if wrong := _wrong_words(str(error), target):
            return Finding(target.name, wrong, _place(error), f"{type(error).__name__}: {error}")
    except target.others:
        pass
    except Wrong as error:
        return Finding(target.name, "wrong", target.name, str(error))
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return Finding(target.name, type(error).__name__, _place(error), text)
    took = time.process_time() - began
    if is_timed and took > CPU_S_PER_MB * max(len(given) / 1e6, _LEAST_MB):
        told = f"{took:.2f} s of CPU for {len(given):,} bytes"
        return Finding(target.name, "slow", target.name, told)
    return None


def _wrong_exit(error: GpulabError, target: Target) -> str:
    return "" if error.exit_code in target.exits else f"exit code {error.exit_code}"


def _wrong_words(message: str, target: Target) -> str:
    if not message.strip():
        return "an error without words"
    if not any(re.search(name, message, re.DOTALL) for name in target.names):
        return "an error that names no place"
    return ""


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/gpulab/" in Path(frame.filename).as_posix()]
    if not ours:
        return "outside"
    last = ours[-1]
    return f"{Path(last.filename).as_posix().rpartition('/gpulab/')[2]}:{last.lineno}"
