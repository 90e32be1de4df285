"""The gate's own decisions: what it counts, what it refuses to skip, and what it says to a wrong call."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """`scripts/test.py` as a module, found the way Python finds it when it runs as a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("the_gate", SCRIPTS / "test.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "the_gate", module)
    spec.loader.exec_module(module)
    return module


def a_gate(script, tmp_path, *, in_ci=True):
    """A gate with nothing run yet."""
    return script.Gate(output=tmp_path, in_ci=in_ci, workers="2")


@pytest.mark.parametrize(
    ("reason", "in_ci", "is_well"),
    [
        ("needs root", True, False),
        ("needs mmdebstrap", True, False),
        ("needs root", False, True),
        ("only on Windows: named pipes", True, True),
        ("needs a GPU", True, True),
    ],
)
def test_ci_accepts_no_skip_it_could_have_prevented(
    script, tmp_path, capsys, reason, in_ci, is_well
):
    """A test that is skipped for a missing package looks green for months."""
    gate = a_gate(script, tmp_path, in_ci=in_ci)
    gate.skips = {reason: ["tests.machine.test_boot.test_a"]}

    accepted = script._report_skips(gate)

    assert is_well is accepted
    assert f"1 x {reason}" in capsys.readouterr().out


def test_the_gate_counts_what_pytest_wrote(script, tmp_path):
    """The last line of a run is what a reviewer reads, so it must add up."""
    results = tmp_path / "unit.xml"
    results.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="a" name="one"/><testcase classname="a" name="two"><failure/></testcase>'
        '<testcase classname="b" name="three"><skipped type="pytest.skip" message="needs root"/></testcase>'
        '<testcase classname="b" name="four"><skipped type="pytest.xfail" message="moto"/></testcase>'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    gate = a_gate(script, tmp_path)

    script._count(gate, results)

    assert {"passed": 1, "failed": 1, "skipped": 1, "expected to fail": 1} == gate.counts
    assert {"needs root": ["b.three"]} == gate.skips


def test_a_step_that_does_not_exist_is_wrong_usage(script, capsys):
    """A typing error must not look like a green gate."""
    with pytest.raises(SystemExit) as ended:
        script.main(["--only", "lnit"])

    assert 2 == ended.value.code
    assert "no step is called lnit" in capsys.readouterr().err


def test_the_fast_gate_is_what_every_save_needs(script):
    """Minutes on every save would mean that nobody runs it."""
    fast = [step.name for step in script.STEPS if step.is_fast]

    assert ["environment", "locks", "format", "lint", "types", "layers", "unit"] == fast


@pytest.mark.parametrize(
    ("line", "is_closing"),
    [
        ("============ 283 passed in 8.46s ============", True),
        ("==== 1 failed, 283 passed, 2 skipped in 61.02s (0:01:01) ====", True),
        ("=========== no tests ran in 0.01s ===========", True),
        ("=========== slowest 5 durations ===========", False),
        ("=========== FAILURES ===========", False),
    ],
)
def test_the_closing_line_of_pytest_is_recognised(script, line, is_closing):
    """It is repeated at the very end, where people look."""
    found = script._CLOSING.findall(f"...\n{line}\n".encode())

    assert ([line.encode()] if is_closing else []) == found


def test_a_step_beside_others_is_shown_in_its_turn_and_counts(script, tmp_path, capfdbinary):
    """Two steps that print into each other cannot be read, and one nobody waits for could fail unseen."""
    has_begun = threading.Event()

    def slow(gate):
        has_begun.set()
        return gate.run([sys.executable, "-c", "print('slow: ends'); raise SystemExit(3)"]) == 0

    def quick(gate):
        return has_begun.wait(10) and gate.run([sys.executable, "-c", "print('quick: ends')"]) == 0

    steps = [
        script.Step("slow", "waits", slow, until="last"),
        script.Step("quick", "computes", quick),
        script.Step("last", "sums up", lambda gate: True),
    ]

    code = script._run(script.Gate(output=tmp_path, in_ci=False, workers="1"), steps)

    printed = capfdbinary.readouterr().out
    places = [
        printed.index(words)
        for words in (b"quick: ends", b"slow: ends", b"slow: FAILED", b"last: sums")
    ]
    assert (1, sorted(places)) == (code, places)


def test_what_an_earlier_run_left_is_not_asked_of_the_disk_again(script, tmp_path):
    """A second run on a small disk must not be refused for packages that lie there already."""
    space = script.disk_space
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "packages").write_bytes(bytes(3_000_000))
    wanted = [
        space.Need(tmp_path / "cache", 0.005, 0.001),
        space.Need(tmp_path / "not" / "yet", 0.004, 0.004),
    ]

    (room,) = space.rooms(wanted, free_bytes=lambda folder: 6_000_000)

    assert (0.006, 0.006, True) == (round(room.needed_gb, 6), room.free_gb, room.is_enough)


def test_a_disk_that_is_too_small_ends_the_gate_at_once_in_one_sentence(
    script, tmp_path, monkeypatch, capsys
):
    """A full disk once failed three tests with `ModuleNotFoundError`, twenty minutes after the start."""
    wanted = [script.disk_space.Need(tmp_path, 10.0**6, 1.0)]
    monkeypatch.setattr(script.disk_space, "needs", lambda steps: wanted)

    code = script.main(["--only", "unit", "--output", str(tmp_path / "output")])

    said = capsys.readouterr().out
    assert 1 == code
    assert "1000000.0 GB of disk are needed on /" in said
    assert " GB are free: too little\n" in said
    assert "── environment" not in said


def test_the_machine_step_alone_asks_for_what_machines_take(script):
    """The line is only worth printing where it names the folders that grow."""
    machine = {need.folder.name: need.gb for need in script.disk_space.needs(["machine"])}
    unit = {need.folder.name for need in script.disk_space.needs(["unit"])}

    assert machine["sandbox"] > 3
    assert "sandbox" not in unit
