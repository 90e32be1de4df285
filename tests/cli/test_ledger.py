"""`gpulab ledger` end to end: what one laptop exports another imports, once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gpulab.cli.main import run
from gpulab.model.fact import price
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger

FACT = price(
    "us-east-1a",
    "g4dn.xlarge",
    at=datetime(2026, 10, 23, 12, tzinfo=UTC),
    usd_per_hour=Decimal("0.2158"),
)


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    ledger = Ledger(home.folder(home.config().profile(None).name).ledger)
    ledger.append([FACT])
    return ledger


def test_export_then_import_elsewhere(ledger, tmp_path, monkeypatch, capsys):
    """A student's new laptop continues the old one's books; importing twice is harmless."""
    run(["ledger", "export"])
    lines = tmp_path / "facts.jsonl"
    lines.write_text(capsys.readouterr().out)
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "new"))

    codes = [run(["ledger", "import", str(lines)]) for _ in range(2)]

    assert [0, 0] == codes
    assert "1 fact read, 1 new\n1 fact read, 0 new\n" == capsys.readouterr().err


def test_a_file_can_be_named(ledger, tmp_path, capsys):
    """On Windows redirection changes the encoding; a file name does not."""
    path = tmp_path / "facts.jsonl"

    run(["ledger", "export", str(path)])

    assert f"{FACT.line()}\n" == path.read_text()
    assert ("", f"1 fact written to {path}\n") == capsys.readouterr()


def test_show_lists_facts_for_people_and_scripts(ledger, capsys):
    """Whoever doubts a figure can look at what it was computed from."""
    run(["ledger", "show"])
    table = capsys.readouterr().out
    run(["ledger", "show", "--json"])
    document = json.loads(capsys.readouterr().out)
    run(["ledger", "show", "--csv"])
    csv = capsys.readouterr().out

    assert "2026-10-23T12:00:00Z  price  us-east-1a/g4dn.xlarge/Linux/UNIX  aws" in table
    assert "usd_per_hour=0.2158" == document["facts"][0]["details"]
    assert "at,kind,subject,source,details" == csv.splitlines()[0]


def test_an_empty_ledger_says_so(tmp_path, monkeypatch, capsys):
    """Nothing on stdout for scripts, a word for people."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))

    code = run(["ledger", "show"])

    assert (0, "", "the ledger is empty\n") == (code, *capsys.readouterr())


def test_a_broken_line_imports_nothing(ledger, tmp_path, capsys):
    """Half an import would be worse than none."""
    path = tmp_path / "facts.jsonl"
    path.write_text(FACT.line().replace("12:00", "13:00") + "\n{half")

    code = run(["ledger", "import", str(path)])

    assert 2 == code
    assert capsys.readouterr().err.startswith("error: line 2 is not a fact: ")
    assert (FACT,) == ledger.facts()
