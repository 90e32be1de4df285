"""The chores for lab environments: what counts as old, and what an audit may call safe."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gpulab.bootstrap import load_environment

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MADE = date(2026, 11, 23)
HOLE = {"id": "PYSEC-2024-1", "fix_versions": ["3.1.6"]}


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """Loads a script as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.syspath_prepend(SCRIPTS)  # scripts import each other by their names
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(
    ("today", "is_experimental", "said", "is_too_old"),
    [
        (date(2027, 2, 21), False, "tf2 cpu: 90 days old", False),
        (
            date(2027, 2, 22),
            False,
            "tf2 cpu: 91 days old; in 30 days the gate fails: `python scripts/locks.py`",
            False,
        ),
        (
            date(2027, 3, 23),
            False,
            "tf2 cpu: 120 days old; in 1 days the gate fails: `python scripts/locks.py`",
            False,
        ),
        (
            date(2027, 3, 24),
            False,
            "tf2 cpu: 121 days old, over 120: renew it with `python scripts/locks.py`",
            True,
        ),
        (date(2031, 3, 24), True, "tf2 cpu: 1582 days old", False),
    ],
)
def test_a_lock_is_warned_about_for_a_month_and_then_refused(
    script, today, is_experimental, said, is_too_old
):
    """Nobody renews what fails on the morning of a release; a month's notice is printed by every run of the gate."""
    told = script("locks").judged("tf2 cpu", MADE, today, is_experimental=is_experimental)

    assert (said, is_too_old) == told


def test_a_lock_without_a_date_is_too_old(script):
    """What does not say how old it is may be as old as it likes."""
    assert script("locks").judged("bio cpu", None, MADE, is_experimental=False)[1]


def test_a_vulnerable_package_is_named_with_its_cure(script):
    """The next step is to know which version to wish for."""
    audit = script("audit")

    found = audit.read(
        [{"name": "jinja2", "version": "3.1.2", "vulns": [HOLE]}], held={"jinja2==3.1.2"}
    )

    assert ("jinja2 3.1.2: PYSEC-2024-1, without it: 3.1.6",) == found.vulnerable
    assert "1 known vulnerability in 1 package" == audit.verdict(found)


def test_a_hole_that_only_an_experimental_environment_has_is_told_and_forgiven(script):
    """TensorFlow of 2019 has holes that nobody will close; they must not stop the gate, nor be kept from a reader."""
    audit = script("audit")
    packages = [{"name": "jinja2", "version": v, "vulns": [HOLE]} for v in ("3.1.2", "2.11.3")]

    found = audit.read(packages, held={"jinja2==3.1.2"})

    assert ("jinja2 3.1.2: PYSEC-2024-1, without it: 3.1.6",) == found.vulnerable
    assert ("jinja2 2.11.3: PYSEC-2024-1, without it: 3.1.6",) == found.forgiven
    assert "2 known vulnerabilities in 2 packages" == audit.verdict(found)


@pytest.mark.parametrize(
    ("name", "version", "code"), [("numpy", None, 5), ("keras", "2.2.5", 0), ("numpy", "0.0.1", 0)]
)
def test_the_audit_fails_for_what_is_locked_and_not_experimental(
    script, tmp_path, monkeypatch, capsys, name, version, code
):
    """The gate believes its exit code; an audit that never says 5 would pass for years."""
    version = version or next(p for p in load_environment("tf2").cpu.pins if p.name == name).version
    said = {"dependencies": [{"name": name, "version": version, "vulns": [HOLE]}]}
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(said), encoding="utf-8")
    # Plays `pip-audit ... -o FILE -r FILE`, where the gate's script has it installed from its lock.
    tool = tmp_path / "bin" / "pip-audit"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {answer} "$2"\nexit 1\n')
    tool.chmod(0o755)
    locks = []
    monkeypatch.setattr(
        script("environment"),
        "prepare",
        lambda folder, lock: locks.append(lock) or SimpleNamespace(program=tool.with_name),
    )
    monkeypatch.setattr(sys, "argv", ["audit.py", "tf1-legacy", "tf2"])

    assert code == script("audit").main()
    assert {"audit"} == set(locks)
    assert f"{name} {version}: PYSEC-2024-1, without it: 3.1.6" in capsys.readouterr().out


def test_what_audits_the_locks_is_locked_itself():
    """A tool that is fetched by its name alone, or whose helpers are, could say of every package that it is safe."""
    lock = (SCRIPTS / "locks" / "audit.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==\S+.*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", lock, re.M)

    assert len(re.findall(r"^[\w.-]+==", lock, re.M)) == len(pins)
    assert {"pip-audit", "pip-api", "cyclonedx-python-lib", "requests"} <= {n for n, _ in pins}


def test_two_versions_of_a_package_are_asked_about_in_two_turns(script):
    """pip-audit refuses a package that is named twice, and the shipped environments have fifty in two versions."""
    audit = script("audit")
    pins = ["numpy==1.18.5", "absl-py==2.5.1", "numpy==2.4.6", "numpy==2.5.0", "absl-py==2.1.0"]

    assert [
        ["absl-py==2.1.0", "numpy==1.18.5"],
        ["absl-py==2.5.1", "numpy==2.4.6"],
        ["numpy==2.5.0"],
    ] == audit.turns(pins)


def test_an_index_without_advisories_is_not_taken_for_good_news(script):
    """pip-audit says "no known vulnerabilities found" and exits with 0 when it could ask about nothing."""
    audit = script("audit")

    found = audit.read([{"name": "jinja2", "skip_reason": "not found on PyPI"}], held=())

    assert ("jinja2",) == found.unknown
    assert "not audited: the package index used here has no advisories (1 packages asked for)" == (
        audit.verdict(found)
    )
