"""
Feeds gpulab's readers bad input, guided by the branches it takes (atheris: libFuzzer for Python, in an environment of its own); Linux only.

    python3 scripts/fuzz.py --list
    python3 scripts/fuzz.py                          # every target, 10,000 inputs each
    python3 scripts/fuzz.py roster ticket --runs 200000
    python3 scripts/fuzz.py tar --large              # inputs of a megabyte: CPU per MB

A finding is an input on which a reader neither succeeds nor fails with a clean error (`tests/fuzzing/oracle.py`). Each kind is kept once, under
build/fuzz/findings; once mended, it belongs into tests/corpus/TARGET, which the gate reads again. Exit code 5 when there are findings.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
from environment import CHECKOUT

_CORPUS = CHECKOUT / "tests" / "corpus"
_OUTPUT = CHECKOUT / "build" / "fuzz"
_FILES = "GPULAB_FUZZ_FILES"  # tests/fuzzing/files.py reads it
_LONGEST = 16_384
_SCRIPTS = 50
_TELLS_EVERY_S = 10.0


@dataclass(frozen=True)
class Told:
    """What one target's run came to."""

    target: str
    executions: int
    seconds: float
    findings: Sequence[Sequence[str]]

    @property
    def line(self) -> str:
        """One line for people."""
        rate = self.executions / self.seconds if self.seconds else 0
        return f"{self.target:16} {self.executions:>9,} inputs {rate:>8,.0f}/s {len(self.findings):>3} findings"


def main(arguments: Sequence[str]) -> int:
    """Run the chosen targets, each in a process of its own; 5 when there are findings."""
    options = _options(arguments)
    if options.child:
        return _child(options)
    python = _python()
    rooms = dict(line.split() for line in _call(python, "--child", "--list").stdout.splitlines())
    known = list(rooms)
    if options.list:
        print("\n".join(known))
        return 0
    unknown = sorted(set(options.targets) - set(known))
    if unknown:
        print(f"error: there is no target {', '.join(unknown)}\n", file=sys.stderr)
        print("hint: `python3 scripts/fuzz.py --list`", file=sys.stderr)
        return 2
    with _readers_files():
        told = [_run(python, name, rooms[name], options) for name in options.targets or known]
    executions, seconds = sum(t.executions for t in told), sum(t.seconds for t in told)
    print(Told("all", executions, seconds, [f for t in told for f in t.findings]).line)
    return 5 if any(t.findings for t in told) else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Feed gpulab's readers bad input.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which (default: all)")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs each (default: 10,000)")
    parser.add_argument("--large", action="store_true", help="large inputs, timed, instead")
    parser.add_argument("--list", action="store_true", help="name the targets and end")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--room", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _python() -> Path:
    """Make the environment with atheris, unless this Python has it already."""
    if all(importlib.util.find_spec(name) for name in ("atheris", "moto", "duckdb")):
        return Path(sys.executable)
    return environment.prepare(CHECKOUT / ".cache" / "fuzz", "fuzz", editable=True).python


@contextmanager
def _readers_files() -> Iterator[None]:
    """
    Lend the readers' files a folder in memory, which goes when the run ends or is ended.

    libFuzzer ends its process without asking Python, so no target can clear up behind itself.
    """
    memory = Path("/dev/shm")  # noqa: S108 - `mkdtemp` makes the folder, which is ours alone
    is_usable = memory.is_dir() and os.access(memory, os.W_OK)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    made = tempfile.mkdtemp(prefix=f"gpulab-fuzz-{os.getpid()}-", dir=memory if is_usable else None)
    os.environ[_FILES] = made
    try:
        yield
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _call(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(Path(__file__).resolve()), *arguments]
    paths = [str(CHECKOUT / "src"), str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    with (_OUTPUT / "log.txt").open("a") as log:  # libFuzzer's own words
        return subprocess.run(
            command, env=surroundings, check=False, text=True, stdout=subprocess.PIPE, stderr=log
        )


def _run(python: Path, name: str, room: str, options: argparse.Namespace) -> Told:
    large = ["--large"] if options.large else []
    ended = _call(python, "--child", "--room", room, name, "--runs", str(options.runs), *large)
    rows = ended.stdout.splitlines()[-1:]
    try:
        told = Told(**json.loads(rows[0]))
    except (IndexError, ValueError, TypeError):
        told = Told(name, 0, 0.0, [[f"the process ended with {ended.returncode}", ""]])
    print(told.line, flush=True)
    for signature, place in told.findings:
        print(f"{'':16} {signature}{'; ' if place else ''}{place}", flush=True)
    return told


# In the process of one target.


def _child(options: argparse.Namespace) -> int:
    if options.list:
        from tests.fuzzing.targets import ROOMS, targets_of

        print("\n".join(f"{name} {room}" for room in ROOMS for name in targets_of(room)))
        return 0
    (name,) = options.targets
    if options.large:
        _feed_large(options.room, name)
        return 0
    import atheris

    # The standard library's readers too: their branches lead to what ours do not expect.
    with atheris.instrument_imports(include=["gpulab", "tomllib", "tarfile", "csv", "json"]):
        from tests.fuzzing.targets import targets_of

        target = targets_of(options.room)[name]
    teller = _Teller(target, options.runs)
    folder = _OUTPUT / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*target.seeds, *_scripts(target))):
        (folder / f"seed-{number}").write_bytes(seed)
    kept = _CORPUS / name
    words = _dictionary(target)
    settings = [
        f"-runs={options.runs}",
        f"-max_len={_LONGEST}",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]
    settings.append(f"-artifact_prefix={_OUTPUT}/")
    more = ["-verbosity=0", "-reload=0", *([f"-dict={words}"] if target.words else [])]
    corpora = [str(folder), *([str(kept)] if kept.is_dir() else [])]
    atheris.Setup([sys.argv[0], *settings, *more, *corpora], teller.one)
    atheris.Fuzz()  # ends the process
    return 1


class _Teller:
    """Counts executions, keeps one input of each kind of finding, and says so at the end."""

    def __init__(self, target: Any, runs: int) -> None:
        self._target = target
        self._runs = runs
        self._executions = 0
        self._began = self._told = time.monotonic()
        self._found: dict[str, str] = {}

    def one(self, given: bytes) -> None:
        from tests.fuzzing.oracle import judge

        finding = judge(self._target, given)
        self._executions += 1
        if finding is not None and finding.signature not in self._found:
            self._found[finding.signature] = _keep(finding, given)
        # libFuzzer ends the process by itself: the last line that came is what counts.
        if self._executions == self._runs or time.monotonic() > self._told + _TELLS_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        took = self._told - self._began
        _tell(Told(self._target.name, self._executions, took, list(map(list, self._found.items()))))


def _feed_large(room: str, name: str) -> None:
    from tests.fuzzing.large import large_inputs
    from tests.fuzzing.oracle import judge
    from tests.fuzzing.targets import targets_of

    target = targets_of(room)[name]
    began, count, found = time.monotonic(), 0, {}
    for given in large_inputs(target):
        finding = judge(target, given, is_timed=True)
        count += 1
        if finding is not None:
            found[f"{finding.signature} ({finding.text[:60]!r})"] = _keep(finding, given)
    _tell(Told(name, count, time.monotonic() - began, list(map(list, found.items()))))


def _keep(finding: Any, given: bytes) -> str:
    folder = _OUTPUT / "findings" / finding.target
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / hashlib.sha256(given).hexdigest()[:16]
    file.write_bytes(given)
    file.with_suffix(".txt").write_text(f"{finding.signature}\n{finding.text}", "utf-8", "replace")
    return str(file.relative_to(CHECKOUT))


def _scripts(target: Any) -> Iterator[bytes]:
    """Edits to begin from, where the target takes them; always the same."""
    from tests.fuzzing.edits import MARK

    chance = random.Random(1)
    if any(seed.startswith(MARK) for seed in target.seeds):
        for _ in range(_SCRIPTS):
            yield MARK + chance.randbytes(chance.randrange(4, 40))


def _dictionary(target: Any) -> Path:
    path = _OUTPUT / "words" / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words if word)
    path.write_text("".join(f'"{row}"\n' for row in rows))
    return path


def _tell(told: Told) -> None:
    print(json.dumps(told.__dict__), flush=True)


if __name__ == "__main__":
    environment.require_python()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
