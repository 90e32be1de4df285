"""
Runs the whole gate: sets up its own environment, then format, lint, types, layers, tests, coverage, wheel and documents.

    python3 scripts/test.py           # everything, as CI does
    python3 scripts/test.py --fast    # the part for every save
    python3 scripts/test.py --list    # the steps
    python3 scripts/test.py --only unit,cli

Standard library only. Python 3.11 or newer and nothing else is needed; as root on Debian or Ubuntu it installs what booting
simulated machines takes, elsewhere it says which tests are skipped. Every step runs even when an earlier one failed.
It takes 8 GB of disk, and begins by saying how much of that is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import disk_space
import environment
import host_packages
from environment import CHECKOUT

ENVIRONMENT = CHECKOUT / ".venv"
# Decisions are measured. Not `aws` and `cli`: before Python 3.12 a tracer and a starting thread collide now and then
# ("Cannot install a trace function while another trace function is being installed"), and the thread never runs.
_MEASURED = ("unit", "docs")
_INSTALLED = CHECKOUT / "build" / "wheel-environment"  # the wheel alone, as a student has it
# In CI a skipped test is a failure, unless its reason begins with one of these: no Linux host can do anything about them.
ALLOWED_SKIPS = (
    "only on Windows",
    "only on macOS",
    "needs a GPU",
    "needs an NVIDIA GPU",
    "needs Python 3.7",  # nobody offers one for download any more
)
_CLOSING = re.compile(
    rb"=+ (?:.*(?:passed|failed|skipped|error|no tests ran|deselected).*) in .+ =+"
)


@dataclass
class Gate:
    """
    One run: where its reports go, and what has been found so far.

    Attributes:
        in_ci: True when `CI` is set; then a skipped test fails the run.
        is_measured: Whether tests record the branches they take, which only the step `coverage` reads.
        shown: Where what the steps print goes.
        closings: The last line of each pytest run, in order.
        skips: Reason -> tests skipped for it.
        counts: What pytest counted, over all its runs.
    """

    output: Path
    in_ci: bool
    workers: str
    is_measured: bool = True
    shown: BinaryIO = field(default_factory=lambda: sys.stdout.buffer)
    closings: list[str] = field(default_factory=list)
    skips: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, command: Sequence[str | Path], extra: dict[str, str] | None = None) -> int:
        """Run a command in the checkout, showing what it prints; returns its exit code."""
        return self.capture(command, extra)[0]

    def capture(
        self, command: Sequence[str | Path], extra: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Run a command in the checkout, showing what it prints; returns its exit code and the last 64 kB."""
        self.say(f"$ {' '.join(_short(part) for part in command)}")
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=CHECKOUT,
            env=environment.surroundings() | (extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        tail = b""
        while chunk := os.read(process.stdout.fileno(), 65536):
            self._show(chunk)
            tail = (tail + chunk)[-65536:]
        return process.wait(), tail

    def say(self, line: str) -> None:
        """Show a line of our own where the step's commands print."""
        sys.stdout.flush()
        self._show(f"{line}\n".encode())

    def _show(self, text: bytes) -> None:
        self.shown.write(text)
        self.shown.flush()

    def tool(self, name: str, *arguments: str | Path) -> bool:
        """Run one of the environment's programs; True when it is content."""
        return self.run([environment.Environment(ENVIRONMENT).program(name), *arguments]) == 0


@dataclass(frozen=True)
class Step:
    """
    One part of the gate.

    Attributes:
        says: What it holds, in words.
        is_fast: Whether `--fast` runs it.
        until: The step before which it must have ended; it runs beside the steps until then. `""` to run alone.
        work: Does it; returns True when all is well.
    """

    name: str
    says: str
    work: Callable[[Gate], bool]
    is_fast: bool = False
    until: str = ""


class Beside:
    """A step that runs beside others; what it prints is kept in a file and shown when its turn has come."""

    def __init__(self, gate: Gate, step: Step) -> None:
        self.step = step
        self._file = gate.output / f"{step.name}.log"
        self._shown = self._file.open("wb")
        self._gate = replace(gate, shown=self._shown)
        self._is_well = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> tuple[Step, bool, float]:
        """Show what it has printed and prints from now on; return how it ended."""
        _announce(self.step)
        with self._file.open("rb") as printed:
            while True:
                has_ended = not self._thread.is_alive()
                sys.stdout.buffer.write(printed.read())
                sys.stdout.buffer.flush()
                if has_ended:
                    break
                self._thread.join(0.5)
        self._shown.close()
        return _told(self.step, is_well=self._is_well, seconds=self._seconds)

    def _work(self) -> None:
        started = time.monotonic()
        self._is_well = _attempt(self._gate, self.step)
        self._seconds = time.monotonic() - started


def main(arguments: Sequence[str]) -> int:
    """Run the chosen steps; 0 when all is well, 1 when something failed, 2 for a step that does not exist."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{step.name:12} {step.says}" for step in STEPS))
        return 0
    steps = _chosen(options)
    gate = Gate(
        output=options.output.resolve(),
        in_ci=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        workers=options.workers,
        is_measured=any(step.name == "coverage" for step in steps),
    )
    shutil.rmtree(gate.output, ignore_errors=True)
    gate.output.mkdir(parents=True)
    _say_what_it_takes(steps)
    if not _has_room([step.name for step in steps], print):
        return 1
    return _run(gate, steps)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--fast", action="store_true", help="only the steps for every save")
    parser.add_argument("--only", default="", help="these steps, with commas (default: all)")
    parser.add_argument("--list", action="store_true", help="list the steps and end")
    parser.add_argument("--workers", default="2", help="test processes side by side (default: 2)")
    parser.add_argument(
        "--output",
        type=Path,
        default=CHECKOUT / "build" / "gate",
        help="folder for reports, emptied first (default: build/gate)",
    )
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Step]:
    if options.only:
        names = options.only.split(",")
        unknown = sorted(set(names) - {step.name for step in STEPS})
        if unknown:
            print(f"error: no step is called {', '.join(unknown)}\n", file=sys.stderr)
            print("hint: `python3 scripts/test.py --list`", file=sys.stderr)
            raise SystemExit(2)
        return [step for step in STEPS if step.name in names or step.name == "environment"]
    return [step for step in STEPS if step.is_fast or not options.fast]


def _say_what_it_takes(steps: list[Step]) -> None:
    print(
        "gpulab's gate: " + ", ".join(step.name for step in steps) + "\n"
        "It takes 15 to 20 minutes on 2 cores, 2 minutes with --fast, and 8 GB of disk, 2 GB with --fast,\n"
        "all inside this checkout (.venv, .cache, build) but for the Debian packages that booting machines takes.",
        flush=True,
    )


def _has_room(steps: Iterable[str], say: Callable[[str], None]) -> bool:
    """Say what is still to be made and what is free; a disk that fills up later fails tests that have nothing to do with it."""
    rooms = disk_space.rooms(disk_space.needs(steps))
    say("\n".join(map(str, rooms)))
    is_enough = all(room.is_enough for room in rooms)
    if not is_enough:
        say("\nhint: Make room, or choose steps with `--only`")
    return is_enough


def _run(gate: Gate, steps: list[Step]) -> int:
    began = time.monotonic()
    results: list[tuple[Step, bool, float]] = []
    beside: list[Beside] = []
    for step in steps:
        for other in [b for b in beside if b.step.until == step.name]:
            results.append(other.end())
            beside.remove(other)
        if step.until:
            print(f"\n── {step.name} begins, beside the steps until `{step.until}`", flush=True)
            beside.append(Beside(gate, step))
            continue
        _announce(step)
        started = time.monotonic()
        is_well = _attempt(gate, step)
        results.append(_told(step, is_well=is_well, seconds=time.monotonic() - started))
        if step.name == "environment" and not is_well:
            break
    results += [other.end() for other in beside]
    skips_are_well = _report_skips(gate)
    _summarise(gate, results, time.monotonic() - began)
    return 0 if skips_are_well and all(is_well for _, is_well, _ in results) else 1


def _announce(step: Step) -> None:
    print(f"\n── {step.name}: {step.says}", flush=True)


def _told(step: Step, *, is_well: bool, seconds: float) -> tuple[Step, bool, float]:
    print(f"── {step.name}: {'ok' if is_well else 'FAILED'}, {seconds:.1f} s", flush=True)
    return step, is_well, seconds


def _attempt(gate: Gate, step: Step) -> bool:
    try:
        return step.work(gate)
    except environment.CannotPrepare as reason:
        print(f"error: {reason}", file=sys.stderr)
    except subprocess.CalledProcessError as failure:
        print(f"error: {_short(failure.cmd[0])} ended with {failure.returncode}", file=sys.stderr)
    return False


def _report_skips(gate: Gate) -> bool:
    """Name every skipped test's reason; False when CI must not accept one of them."""
    if not gate.skips:
        return True
    print("\n── skipped tests")
    refused = False
    for reason, tests in sorted(gate.skips.items()):
        is_refused = gate.in_ci and not reason.startswith(ALLOWED_SKIPS)
        refused = refused or is_refused
        mark = " (FAILED: CI may not skip this)" if is_refused else ""
        print(f"{len(tests):4} x {reason}{mark}, such as {tests[0]}")
    return not refused


def _summarise(gate: Gate, results: list[tuple[Step, bool, float]], whole_s: float) -> None:
    print("\n── summary")
    for step, is_well, seconds in results:
        print(f"{'ok' if is_well else 'FAILED':7} {step.name:12} {seconds:7.1f} s")
    print(f"{'':7} {'all':12} {whole_s:7.1f} s")
    for closing in gate.closings:
        print(closing)
    if gate.counts:
        words = [f"{count} {what}" for what, count in gate.counts.items() if count]
        print("tests: " + ", ".join(words))
    sys.stdout.flush()


# The steps, in order.


def _environment(gate: Gate) -> bool:
    made = environment.prepare(ENVIRONMENT, "dev", editable=True)
    print(
        f"{_short(made.folder)}: {'kept' if made.was_kept else 'made'}, {environment.disk_mb(made.folder)} MB"
    )
    return True


def _packages(gate: Gate) -> bool:
    missing = host_packages.missing()
    for package in missing:
        print(f"missing: {package.name} ({package.reason})")
    if not missing:
        print("every program the tests need is here")
    elif host_packages.can_install():
        names = [package.name for package in missing]
        if host_packages.install(names, lambda command, extra: gate.run(command, extra)) != 0:
            return False
    else:
        print(f"tests that need them are skipped\n\nhint: {host_packages.advice(missing)}")
    if not host_packages.is_root():
        print("tests that boot machines are skipped: they need root on Linux")
    return not (gate.in_ci and host_packages.missing())


def _locks(gate: Gate) -> bool:
    answers = gate.run([sys.executable, "scripts/relock.py", "--check"]) == 0
    return gate.tool("python", "scripts/locks.py", "--age") and answers


def _format(gate: Gate) -> bool:
    return gate.tool("ruff", "format", "--check", ".")


def _lint(gate: Gate) -> bool:
    return gate.tool("ruff", "check", ".")


def _types(gate: Gate) -> bool:
    return gate.tool("mypy")


def _layers(gate: Gate) -> bool:
    return gate.tool("lint-imports")


def _tier(name: str) -> Callable[[Gate], bool]:
    """A step that runs one folder of tests side by side, without those that boot machines."""

    def work(gate: Gate) -> bool:
        if not any((CHECKOUT / "tests" / name).rglob("test_*.py")):
            print(f"tests/{name} has no tests")
            return False
        chosen = [f"tests/{name}", "-m", "not machine and not live"]
        return _pytest(gate, name, [*chosen, "-n", gate.workers, "--dist", "worksteal"])

    return work


def _machine(gate: Gate) -> bool:
    """The tests that boot machines, from any folder, one after the other; before them, what all machines start from."""
    if not _has_room(["machine"], gate.say):
        return False
    can_boot = host_packages.is_root() and not host_packages.missing()
    if can_boot and not gate.tool("gpulab", "sandbox", "build"):
        return False
    return _pytest(gate, "machine", ["tests", "-m", "machine and not live"])


def _pytest(gate: Gate, name: str, arguments: list[str]) -> bool:
    results = gate.output / f"{name}.xml"
    recorded = {
        "COVERAGE_FILE": str(gate.output / "coverage" / f".coverage.{name}"),
        "GPULAB_TEST_OUTPUT": str(gate.output),  # pictures a person may want to see
    }
    (gate.output / "coverage").mkdir(exist_ok=True)
    code, tail = gate.capture(
        [
            *(environment.Environment(ENVIRONMENT).python, "-m", "pytest"),
            *(*arguments, "--color=no", "--durations=5", "--durations-min=5"),
            f"--junitxml={results}",
            *(("--cov", "--cov-report=") if gate.is_measured and name in _MEASURED else ()),
        ],
        recorded,
    )
    closings = _CLOSING.findall(tail)
    gate.closings.append(
        f"{name}: " + (closings[-1].decode(errors="replace") if closings else f"ended with {code}")
    )
    if results.is_file():
        _count(gate, results)
    return code == 0


def _count(gate: Gate, results: Path) -> None:
    for case in ElementTree.parse(results).iter("testcase"):  # noqa: S314 - our own pytest wrote it
        outcome = next((child for child in case if child.tag in _OUTCOMES), None)
        what = _OUTCOMES[outcome.tag] if outcome is not None else "passed"
        if outcome is not None and what == "skipped":
            if outcome.get("type") == "pytest.xfail":
                what = "expected to fail"
            else:
                name = f"{case.get('classname')}.{case.get('name')}"
                gate.skips.setdefault(outcome.get("message") or "no reason", []).append(name)
        gate.counts[what] = gate.counts.get(what, 0) + 1


_OUTCOMES = {"skipped": "skipped", "failure": "failed", "error": "errors"}


def _coverage(gate: Gate) -> bool:
    parts = sorted((gate.output / "coverage").glob(".coverage.*"))
    if not parts:
        print("no tests have run, so there is nothing to report")
        return True
    whole = gate.output / "coverage.sqlite"
    together = gate.tool("coverage", "combine", "-q", "--keep", f"--data-file={whole}", *parts)
    return together and gate.tool("coverage", "report", f"--data-file={whole}")


def _wheel(gate: Gate) -> bool:
    """Build the wheel, install it beside the locked dependencies only, and use it from elsewhere."""
    folder = CHECKOUT / "build" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    builder = environment.Environment(ENVIRONMENT).python
    if gate.run([builder, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]) != 0:
        return False
    (wheel,) = folder.glob("*.whl")
    clean = environment.prepare(_INSTALLED, "run")
    fresh = ("--offline", "--no-deps", "--reinstall", "--compile-bytecode", str(wheel))
    environment.uv(clean, "install", *fresh)
    program = clean.program("gpulab")
    return (
        gate.run([program, "--version"]) == 0
        and gate.run([program, "--help"]) == 0
        and gate.run([clean.python, "-I", CHECKOUT / "scripts" / "try_wheel.py"]) == 0
    )


def _materials(gate: Gate) -> bool:
    """Write the bills of materials; look for known holes in what a student installs, here and on an instance, where the package index has advisories."""
    python = environment.Environment(ENVIRONMENT).python
    bill = gate.run([python, "scripts/materials.py", "sbom", gate.output]) == 0
    # 1 says that nobody could be asked from here; only a known hole stops the gate.
    return gate.run([python, "scripts/audit.py"]) in (0, 1) and bill


def _demo(gate: Gate) -> bool:
    return gate.run([sys.executable, "scripts/demo.py", "--headless"]) == 0


def _figures(gate: Gate) -> bool:
    """
    Size and start of the installed wheel. A start over its target is printed, not failed: others use this computer too,
    and what makes a start slow, an import, is held by `tests/unit/test_house_imports.py`.
    """
    installed = environment.Environment(_INSTALLED).python
    if not installed.exists():
        print("no wheel is installed: run the step `wheel` first")
        return False
    start: list[str | Path] = [installed, "scripts/bench/startup.py", "--rounds", "9"]
    is_small = gate.run([sys.executable, "scripts/bench/size.py"]) == 0
    gate.run(start)
    return is_small


def _reference(gate: Gate) -> bool:
    python = environment.Environment(ENVIRONMENT).python
    return gate.run([python, "scripts/reference.py", "--check"]) == 0


STEPS = (
    Step("environment", "the locked Python packages, in .venv", _environment, is_fast=True),
    Step(
        "locks",
        "the locks answer pyproject.toml, and the environments' are not old",
        _locks,
        is_fast=True,
    ),
    Step("packages", "the programs that tests of machines need", _packages),
    Step("format", "ruff format", _format, is_fast=True),
    Step("lint", "ruff check", _lint, is_fast=True),
    Step("types", "mypy, strict", _types, is_fast=True),
    Step("layers", "import-linter: arrows point down", _layers, is_fast=True),
    # First of the tests: it is the longest, and waits more than it computes.
    Step("machine", "machines behind simulated instances", _machine, until="coverage"),
    Step("unit", "decisions, without any outside world", _tier("unit"), is_fast=True),
    Step("docs", "the documents agree with the program", _tier("docs")),
    Step("reference", "docs/reference.md is what --help prints", _reference),
    Step("aws", "boto3 code against the sandbox", _tier("aws")),
    Step("cli", "commands end to end", _tier("cli")),
    Step("coverage", "branches the tests took", _coverage),
    Step("wheel", "the wheel alone, without development tools", _wheel),
    Step("materials", "the bill of materials is written and has no known holes", _materials),
    Step("demo", "the README's demonstration, without a browser", _demo),
    Step("figures", "what it takes on disk and before it does anything", _figures),
)


def _short(part: str | Path) -> str:
    """A path as seen from the checkout, so that output reads the same on every machine."""
    return str(part).replace(str(CHECKOUT) + os.sep, "")


if __name__ == "__main__":
    environment.require_python()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
