"""`gpulab cost` end to end: words, numbers, exit codes and what goes to which stream."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from gpulab.cli.main import run

CASES = Path(__file__).parents[1] / "unit" / "cases" / "cost"


@pytest.fixture
def worked(tmp_path) -> Path:
    document = json.loads((CASES / "format-page.json").read_text())["document"]
    path = tmp_path / "timeline.json"
    path.write_text(json.dumps(document))
    return path


def test_json_is_the_formats_answer(worked, capsys):
    """Scripts read stdout: one document, nothing else, in the format's own keys."""
    code = run(["cost", str(worked), "--json"])

    out, err = capsys.readouterr()
    expected = json.loads((CASES / "format-page.json").read_text())["answer"]
    assert (0, expected, "") == (code, json.loads(out), err)


def test_the_other_price_rule_is_a_flag(worked, capsys):
    """AWS's own pages can be read both ways, so both can be asked for."""
    run(["cost", str(worked), "--json", "--price-rule", "per-second"])

    answer = json.loads(capsys.readouterr().out)
    assert ("per-second", "0.7644918160") == (answer["price_rule"], answer["total"])


def test_stdin_is_a_dash(worked, capsys, monkeypatch):
    """A pipe needs no temporary file."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(worked.read_bytes())))

    code = run(["cost", "-", "--json"])

    assert (0, 76) == (code, json.loads(capsys.readouterr().out)["total_cents"])


def test_people_read_dollars_and_the_end_of_the_credit(worked, capsys):
    """The table says what it cost and when the credit was gone, in the first screen."""
    run(["cost", str(worked)])

    out = capsys.readouterr().out
    assert "total                    0.7610251493  $0.76" in out
    assert "billed instance time: 11730 s (3 h 16 min)" in out
    assert "the credit was used up at 2026-10-23T18:19:22Z" in out


def test_explain_shows_every_charge_and_both_rules(worked, capsys):
    """Whoever doubts a sum can add it up by hand, and sees how much the reading of AWS's text matters."""
    run(["cost", str(worked), "--explain"])

    out = capsys.readouterr().out
    assert (
        "2026-10-23T18:10:00Z  i-1       instance     4530  0.2210         3600  0.2780916667"
        in out
    )
    assert "total by hour-start: 0.7610251493 USD\ntotal by per-second: 0.7644918160 USD" in out


def test_a_naive_time_is_refused_by_name(worked, capsys):
    """A time without an offset could be two hours off; the message says where it stands and what to write."""
    worked.write_text(worked.read_text().replace("2026-10-23T19:25:30Z", "2026-10-23T19:25:30"))

    code = run(["cost", str(worked), "--json"])

    out, err = capsys.readouterr()
    assert (2, "") == (code, out)
    assert err.startswith(
        "error: naive_timestamp: $.instances[0].events[1].at is `2026-10-23T19:25:30`, a time without an offset\n"
    )
    assert "hint: End it with Z or an offset such as +02:00, or name `assume_timezone`" in err


def test_a_missing_price_is_named(worked, capsys):
    """A gap in the price history must never read as a cheap week."""
    worked.write_text(worked.read_text().replace("us-east-1d", "us-east-1e", 1))

    code = run(["cost", str(worked)])

    expected = "error: missing_price: i-1 needs the spot price of g4dn.xlarge in us-east-1d at 2026-10-23T16:10:00Z\n"
    assert 2 == code
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_an_unreadable_file_is_one_sentence(name, tmp_path, capsys, monkeypatch):
    """A wrong path is the commonest mistake there is."""
    monkeypatch.chdir(tmp_path)

    code = run(["cost", name])

    assert 2 == code
    assert capsys.readouterr().err.startswith(f"error: could not read {name}: ")


def test_the_documents_example_works_as_it_stands(tmp_path, capsys):
    """The page is where people copy their first timeline from."""
    page = (Path(__file__).parents[2] / "docs" / "money.md").read_text(encoding="utf-8")
    example = tmp_path / "example.json"
    example.write_text(page.split("```json\n")[1].split("```")[0])

    code = run(["cost", str(example), "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert (0, "0.7096916667", "0.3362916667") == (code, answer["instance"], answer["ipv4"])
