"""`gpulab report` end to end: tables, files, exit codes, and texts that try to be more than texts."""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import json
import re
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.cli.main import run
from gpulab.course.roster import owner_id
from gpulab.model.fact import Fact, Source, ended, launched, price, volume
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.store.courses import course_secret
from gpulab.store.home import Home
from gpulab.store.ledger import Ledger

MONDAY = datetime(2026, 10, 19, 11, 35, tzinfo=UTC)
HOSTILE = (
    '=cmd|"/c calc"!A0',
    "@SUM(1+9)",
    "+1",
    "-2+3",
    "\t=1+1",
    "\x1b[31mred\x07",
    "<script>alert(1)</script>",
    "$\\frac{$",
    "﹦1\u202e",
    "_hidden\ufffe",
)
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None
    or importlib.util.find_spec("xlsxwriter") is None,
    reason="needs the extra `report`",
)


def a_run(
    number: int, *, owner: str, lab: str = "week1", hours: float = 2, course: str = ""
) -> list[Fact]:
    instance, begin = f"i-{number}", MONDAY + timedelta(days=number)
    return [
        launched(
            instance,
            at=begin,
            zone="us-east-1d",
            instance_type="g4dn.xlarge",
            market=Market.SPOT,
            usd_per_hour=Decimal("0.2158"),
            on_demand_usd_per_hour=Decimal("0.526"),
            owner=owner,
            lab=lab,
            course=course,
            gpus=1,
        ),
        price("us-east-1d", "g4dn.xlarge", at=begin, usd_per_hour=Decimal("0.2158")),
        volume(
            f"vol-{number}",
            at=begin,
            type="gp3",
            size_gb=60,
            usd_per_gb_month=Decimal("0.08"),
            instance_id=instance,
            ends_with_instance=True,
        ),
        ended(instance, at=begin + timedelta(hours=hours), by=EndedBy.AWS, source=Source.AWS),
    ]


def a_file(tmp_path: Path, facts: list[Fact], name: str = "facts.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(f"{fact.line()}\n" for fact in facts))
    return str(path)


@pytest.fixture
def facts(tmp_path) -> str:
    return a_file(tmp_path, [*a_run(0, owner="s1"), *a_run(1, owner="s2", hours=4)])


@pytest.fixture
def hostile(tmp_path) -> str:
    runs = [a_run(n, owner=text, lab=text) for n, text in enumerate(HOSTILE)]
    return a_file(tmp_path, [fact for facts in runs for fact in facts])


def report(*arguments: str) -> int:
    return run(["report", "--until", "2026-11-16", *arguments])


def test_a_student_sees_the_own_ledger(tmp_path, monkeypatch, capsys):
    """Without any option: my own runs, week by week."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    folder = Home(tmp_path / "home").folder("default")
    Ledger(folder.ledger).append(a_run(0, owner=""))

    code = report()

    out = capsys.readouterr().out
    assert 0 == code
    assert out.startswith(
        "$0.44 from 2026-10-19 to 2026-11-16 00:00 UTC: instances $0.43, disks $0.01"
    )
    assert (
        "2026-W43     1    2.0        2.0  $0.44  ███████████  $0.62  0.0 %             1\n" in out
    )
    assert "everything adds up" in out


def test_a_students_own_budget_is_in_the_own_report_and_in_no_other(
    facts, tmp_path, monkeypatch, capsys
):
    """Who set a budget for the term is told how long it lasts; it is nobody else's."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "config.toml").write_text('[profiles.default]\nbudget_usd = "2"\n')
    begin = datetime(2026, 11, 14, tzinfo=UTC) - MONDAY
    moved = [replace(fact, at=fact.at + begin) for fact in a_run(0, owner="")]
    Ledger(home.folder("default").ledger).append(moved)

    report()
    own = capsys.readouterr().out
    report("--ledger", facts)
    others = capsys.readouterr().out

    assert (
        "budget $2.00, spent 22 %\nat the pace of the last 7 days, $0.06 a day, it ends on" in own
    )
    assert "budget" not in others


def test_many_ledgers_are_one_report_and_files_name_students(tmp_path, capsys):
    """Own accounts: each student sends an export, and the file's name says whose it is."""
    paths = [
        a_file(tmp_path, a_run(n, owner=""), f"{name}.jsonl")
        for n, name in enumerate(("anna", "bo"))
    ]

    report("--by", "student", "--csv", "--ledger", paths[0], "--ledger", paths[1])

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [("anna", "0.4445032258"), ("bo", "0.4445032258")] == [
        (row["key"], row["usd"]) for row in rows
    ]


def test_json_has_every_table_and_its_keys_stay(facts, capsys):
    """Scripts of a course rely on these names."""
    report("--json", "--ledger", facts)

    document = json.loads(capsys.readouterr().out)
    assert {
        "begin", "end", "price_rule", "timezone", "total", "by_student", "by_group", "by_lab", "by_week", "by_type",
        "by_market", "students", "spent_by_day", "spent_by_week_and_lab", "hours_by_weekday", "interruptions", "budget_usd",
        "pace", "attempts", "statements", "bill", "problems",
    } == document.keys()  # fmt: skip
    assert ["s1", "s2"] == [row["key"] for row in document["by_student"]]
    assert "1.3335096774" == document["total"]["usd"]


def test_check_exits_with_5_and_names_the_first_problem(facts, capsys):
    """A TA's cron job mails only when something is wrong."""
    codes = [
        report("--check", "--ledger", facts),
        report("--check", "--ledger", facts, "--budget", "0.5"),
    ]

    assert [0, 5] == codes
    assert "error: 1 problem, the first: s2: spent 0.89 USD of a budget of 0.50 USD" in (
        capsys.readouterr().err
    )


def test_a_students_row_says_who_it_is_and_where_they_stand(facts, tmp_path, capsys):
    """A teaching assistant writes to people, not to opaque ids; in the table the name is last, so that wide letters move nothing."""
    roster = tmp_path / "roster.csv"
    roster.write_text(
        "id,name,email,group\ns1,李 明,li@dtu.dk,g2\ns2,Bo Dam,bo@dtu.dk,g10\ns3,Cy Eg,cy@dtu.dk,g2\n",
        encoding="utf-8",
    )
    asked = ["--ledger", facts, "--roster", str(roster), "--by", "student", "--budget", "0.80"]

    report(*asked, "--names", "--csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    report(*asked, "--names")
    lines = capsys.readouterr().out.splitlines()

    assert [("s1", "李 明", "g2", "fine"), ("s2", "Bo Dam", "g10", "over")] == [
        (row["key"], row["name"], row["group"], row["standing"]) for row in rows
    ]
    heading = next(line for line in lines if line.startswith("STUDENT"))
    assert heading.endswith("ENDED BY AWS  NAME")
    assert ["s2", "s1"] == [line.split()[0] for line in lines if line.startswith(("s1 ", "s2 "))]
    assert "1 over budget: Bo Dam (s2)" in lines


def test_course_and_roster_give_budget_groups_and_names(facts, tmp_path, capsys):
    """The TA's report: who has not started, by the university's own list."""
    roster = tmp_path / "roster.csv"
    roster.write_text(
        "id,name,email,group\ns1,Anna Å,anna@dtu.dk,G1\ns2,Bo,bo@dtu.dk,G1\ns3,Cy,cy@dtu.dk,G2\n"
    )

    report("--ledger", facts, "--roster", str(roster), "--by", "group", "--names")

    out = capsys.readouterr().out
    assert "GROUP  RUNS" in out
    assert "G1        2    6.0" in out
    assert "1 has not started: Cy (" in out


@needs_extra
def test_a_workbook_holds_numbers_and_no_formula(hostile, tmp_path):
    """A student's id must not run a program on the teacher's computer."""
    path = tmp_path / "report.xlsx"

    report("--ledger", hostile, "--xlsx", str(path))

    with zipfile.ZipFile(path) as book:
        texts = book.read("xl/sharedStrings.xml").decode()
        sheets = [book.read(n).decode() for n in book.namelist() if "worksheets/sheet" in n]
    cells = re.findall(r"<t[^>]*>(.*?)</t>", texts)
    assert not any("<f>" in sheet for sheet in sheets)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ufffe]", texts)
    assert "'=cmd|" in texts


CUR_HEAD = (
    "line_item_usage_start_date,line_item_resource_id,line_item_line_item_type,line_item_usage_type,"
    "line_item_currency_code,line_item_unblended_cost\n"
)
# What happened in the run of student s1, as AWS bills it, with what a hostile account may hold.
CUR_LINES = """\
2026-10-20T11:00:00Z,i-1,Usage,SpotUsage:g4dn.xlarge,USD,0.8600
2026-10-20T11:00:00Z,i-1,Credit,SpotUsage:g4dn.xlarge,USD,-0.8600
2026-10-20T11:00:00Z,,Tax,,USD,0.1000
2026-10-20T11:00:00Z,i-\x1b[31mred\u202e,Usage,SpotUsage:g4dn.xlarge,USD,0.2000
"""
FEED = """\
#Version: 1.0
#Fields: Timestamp UsageType Operation InstanceID MyBidID MyMaxPrice MarketPrice Charge Version
2026-10-20 11:35:00 UTC\tSpotUsage:g4dn.xlarge\tRunInstances:SV050\ti-1\tsir-1\t0.526 USD\t0.2158 USD\t0.4316 USD\t1
"""


def a_cur(folder: Path, name: str = "cur.csv") -> str:
    path = folder / name
    path.write_text(CUR_HEAD + CUR_LINES)
    return str(path)


@needs_extra
def test_a_statement_that_is_read_twice_is_noted_once(facts, tmp_path, monkeypatch, capsys):
    """Every weekly report reads the same files; the ledger says when each was read first, and any later report says so."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    cur = a_cur(tmp_path)

    codes = [report("--ledger", facts, "--statement", cur) for _ in range(2)]
    capsys.readouterr()
    report()
    later = capsys.readouterr().out

    noted = Ledger(Home(tmp_path / "home").folder("default").ledger).facts()
    assert [0, 0] == codes
    assert [("statement", cur, "4", "2026-10-20", "2026-10-20", "1.0600000000")] == [
        (f.kind, *(f.details[k] for k in ("path", "lines", "first_day", "last_day", "usage_usd")))
        for f in noted
    ]
    assert (
        f"{cur}, cur-2.0, 4 lines, 2026-10-20 to 2026-10-20: usage $1.06, credit -$0.86, tax $0.10"
        in later
    )


@needs_extra
def test_a_ledger_that_takes_nothing_keeps_no_report_back(facts, tmp_path, monkeypatch, capsys):
    """A cron job's home may be read-only; the figures are there all the same, and the loss is said."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    ledger = Home(tmp_path / "home").folder("default").ledger
    ledger.write_bytes(b"not a database, and longer than the head of one" * 9)

    code = report("--ledger", facts, "--statement", a_cur(tmp_path))

    said = capsys.readouterr()
    assert 0 == code
    assert "AWS's statements for 2026-10-20 to 2026-10-20: credit -$0.86" in said.out
    assert "that statements were read is not kept" in said.err


@needs_extra
def test_feed_and_bill_together_count_once_in_every_format(facts, tmp_path, capsys):
    """The totals of a teacher who hands in everything are those of the bill alone, and one line says why."""
    feed = tmp_path / "feed"
    feed.write_text(FEED)

    report("--ledger", facts, "--statement", a_cur(tmp_path), "--statement", str(feed))
    text = capsys.readouterr().out
    report("--json", "--ledger", facts, "--statement", a_cur(tmp_path), "--statement", str(feed))
    bill = json.loads(capsys.readouterr().out)["bill"]

    assert 1 == text.count("the spot data feed's 1 instance-day that the statements have too")
    assert {"usage": "1.0600000000", "credit": "-0.8600000000", "tax": "0.1000000000"} == (
        bill["by_category"]
    )
    assert {
        "instance_days": 1,
        "feed_usd": "0.4316000000",
        "statement_usd": "0.8600000000",
        "from_feed": 0,
        "open_days": [],
    } == bill["feed"]


@needs_extra
@pytest.mark.parametrize(
    ("invoice", "usage"), [("", "1.0790000000"), ("1234567890", "0.6474000000")]
)
def test_the_feed_counts_where_the_bills_last_day_still_goes_on(
    facts, tmp_path, capsys, invoice, usage
):
    """A bill delivered at noon has the morning; the feed, hours ahead of it, has the afternoon too. Once there is an invoice, it is whole."""
    hours = ["2026-10-20T11", "2026-10-20T12", "2026-10-21T09"]
    lines = [
        f"{hour}:00:00Z,{hour[:-2]}{int(hour[-2:]) + 1:02}:00:00Z,i-1,Usage,USE2-SpotUsage:g4dn.xlarge,0.2158,USD,{invoice}\n"
        for hour in hours
    ]
    cur = tmp_path / "cur.csv"
    cur.write_text(
        "line_item_usage_start_date,line_item_usage_end_date,line_item_resource_id,line_item_line_item_type,"
        "line_item_usage_type,line_item_unblended_cost,line_item_currency_code,bill_invoice_id\n"
        + "".join(lines)
    )
    feed = tmp_path / "feed"
    one = FEED.splitlines()[-1].replace("0.4316", "0.2158")
    moments = [
        "2026-10-20 11:35:00",
        "2026-10-21 09:35:00",
        "2026-10-21 10:35:00",
        "2026-10-21 11:35:00",
    ]
    rows = [one.replace("2026-10-20 11:35:00", moment) for moment in moments]
    feed.write_text("\n".join([*FEED.splitlines()[:-1], *rows, ""]))
    files = ["--statement", str(cur), "--statement", str(feed)]

    report("--json", "--ledger", facts, *files)
    bill = json.loads(capsys.readouterr().out)["bill"]
    report("--ledger", facts, *files)
    text = capsys.readouterr().out

    said = "but on 2026-10-21, which no statement has whole yet, the feed says more of 1 instance, and counts"
    assert usage == bill["by_category"]["usage"]
    assert (2, not invoice) == (bill["feed"]["instance_days"], said in text)


@needs_extra
def test_a_workbook_has_the_bill_beside_the_ledger_and_no_formula_in_it(
    facts, tmp_path, monkeypatch
):
    """Resources and file names come from outside, and a spreadsheet is where the department checks the bill."""
    path = tmp_path / "report.xlsx"
    monkeypatch.chdir(tmp_path)
    a_cur(tmp_path, "=HYPERLINK(1).csv")

    code = report("--ledger", facts, "--statement", "=HYPERLINK(1).csv", "--xlsx", str(path))

    sheets = read_workbook(path)
    assert 0 == code
    assert ["day", "resource", "ledger usd", "usage usd", "difference usd", "credit usd", "tax usd", "other usd"] == sheets["bill"][0]  # fmt: skip
    rows = {row[1]: row for row in sheets["bill"] if row[0] == "2026-10-20"}
    assert ["0.8632", "0.86", "0.0032", "-0.86", "0"] == rows["i-1"][2:7]
    assert (None, "0.1") == (rows["everything else"][2], rows["everything else"][6])
    assert rows["i-�[31mred�"][3] == "0.2"
    assert "'=HYPERLINK(1).csv" == sheets["statements"][1][1]
    with zipfile.ZipFile(path) as book:
        assert not any(b"<f>" in book.read(n) for n in book.namelist() if "worksheets" in n)


def read_workbook(path: Path) -> dict[str, list[list[str | None]]]:
    """Read a workbook's cells by sheet, as texts; `None` where a cell is empty."""
    with zipfile.ZipFile(path) as book:
        texts = [html.unescape(t) for t in re.findall(r"<t[^>]*>(.*?)</t>", book.read("xl/sharedStrings.xml").decode())]  # fmt: skip
        names = re.findall(r'<sheet name="([^"]+)"', book.read("xl/workbook.xml").decode())
        pages = [book.read(f"xl/worksheets/sheet{n}.xml").decode() for n in range(1, len(names) + 1)]  # fmt: skip
    return {name: _rows(page, texts) for name, page in zip(names, pages, strict=True)}


def _rows(page: str, texts: list[str]) -> list[list[str | None]]:
    found = []
    for row in re.findall(r"<row .*?</row>", page):
        cells = dict.fromkeys("ABCDEFGHIJ")
        for column, kind, value in re.findall(
            r'<c r="([A-J])\d+"[^>]*?( t="s")?><v>(.*?)</v>', row
        ):
            cells[column] = texts[int(value)] if kind else value
        found.append(list(cells.values()))
    return [row[: len([c for c in found[0] if c])] for row in found]


def test_a_csv_holds_no_formula_and_no_control_character(hostile, capsys):
    """The same in the plainest format there is."""
    report("--ledger", hostile, "--by", "student", "--csv")

    out = capsys.readouterr().out
    keys = [row["key"] for row in csv.DictReader(io.StringIO(out))]
    assert len(HOSTILE) == len(keys)
    assert not [key for key in keys if key[:1] in tuple("=+-@\t\r")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", out)


@needs_extra
def test_a_page_is_self_contained_and_strict(facts, tmp_path):
    """It works offline, sends nothing anywhere, and runs nothing but its own script."""
    path = tmp_path / "report.html"

    report("--ledger", facts, "--html", str(path), "--budget", "5")

    page = path.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src &#39;none&#39;; style-src &#39;sha256-")
    assert "unsafe" not in policy
    outside = re.findall(r'(?:src|href|action)="(?!#)([^"]*)"', page)
    assert ([], 0, 1) == (outside, page.count(' style="'), page.count("<script>"))
    assert 5 == page.count("<svg ")
    assert "What is left of the budget" in page


@needs_extra
def test_a_page_escapes_what_comes_from_outside(hostile, tmp_path):
    """A lab's name is a text, in a table as in a plot."""
    path = tmp_path / "report.html"

    code = report("--ledger", hostile, "--html", str(path))

    page = path.read_text()
    assert 0 == code
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page)


@needs_extra
def test_names_are_on_the_page_only_when_asked_for(facts, tmp_path):
    """A page is passed around; personal data must not be on it by accident."""
    roster, path = tmp_path / "roster.csv", tmp_path / "report.html"
    roster.write_text("id,name,email\ns1,Anna Secret,anna@dtu.dk\n")

    pages = []
    for flags in ([], ["--names"]):
        report("--ledger", facts, "--roster", str(roster), "--html", str(path), *flags)
        pages.append("Anna Secret" in path.read_text())

    assert [False, True] == pages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "last week"], "error: `last week` is not a day"),
        (["--timezone", "Mars/Olympus"], "error: `Mars/Olympus` is not the name of a time zone"),
        (["--ledger", "nowhere.jsonl"], "error: could not read nowhere.jsonl: No such file"),
        (["--roster", "nowhere.csv"], "error: could not read nowhere.csv: No such file"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, words, capsys):
    """Exit code 2 and the place, never a traceback."""
    code = run(["report", *arguments])

    assert 2 == code
    assert capsys.readouterr().err.startswith(words)


def test_a_ledger_file_is_read_as_it_is(tmp_path, capsys):
    """Somebody sends the SQLite file itself instead of an export; it is the same book."""
    path = tmp_path / "anna.sqlite"
    Ledger(path).append(a_run(0, owner="s1"))

    code = report("--ledger", str(path), "--json")

    assert (0, "0.4445032258") == (code, json.loads(capsys.readouterr().out)["total"]["usd"])


@pytest.fixture
def klass(tmp_path, monkeypatch) -> Path:
    """A course of two in accounts of their own; a third has left the roster, and the teacher has an instance of no course."""
    monkeypatch.setenv("GPULAB_HOME", str(tmp_path / "home"))
    home, folder = Home(tmp_path / "home"), tmp_path / "dl"
    run(["course", "new", str(folder)])
    rows = [f"s{n},N{n},s{n}@x.example,g1,11112222333{n}" for n in range(2)]
    (folder / "roster.csv").write_text("\n".join(["id,name,email,group,account", *rows]))
    key, mine = course_secret(home, "dl"), home.folder("default")
    for n in range(3):
        owner = owner_id(f"s{n}@x.example", secret=key)
        ledger = Ledger(mine.account(f"11112222333{n}").ledger)
        ledger.append(a_run(n, owner=owner, course="dl"))
    Ledger(mine.ledger).append(a_run(9, owner="teacher"))
    return folder


def test_in_a_courses_folder_the_report_is_about_the_class(klass, monkeypatch, capsys):
    """The README's line: no flag says where the roster, the key and the ledgers of three accounts lie."""
    monkeypatch.chdir(klass)

    code = report("--by", "student", "--names", "--csv")

    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert (0, "") == (code, captured.err)
    assert ["", "N0", "N1"] == sorted(row["name"] for row in rows)
    assert {"0.4445032258"} == {row["usd"] for row in rows}


def test_the_key_is_read_from_its_file_as_the_course_reads_it(klass, tmp_path, capsys):
    """A colleague has the roster, the key and a folder of ledgers, and nothing else."""
    key = tmp_path / "home" / "courses" / "dl" / "secret"
    exports = tmp_path / "exports"
    exports.mkdir()
    owner = owner_id("s1@x.example", secret=bytes.fromhex(key.read_text().strip()))
    a_file(exports, a_run(1, owner=owner))
    asked = ["--roster", str(klass / "roster.csv"), "--ledger", str(exports), "--csv"]

    report(*asked, "--by", "student", "--names", "--key", str(key))

    captured = capsys.readouterr()
    rows = {row["name"]: row["runs"] for row in csv.DictReader(io.StringIO(captured.out))}
    assert "1" == rows["N1"]
    assert "" == captured.err


def test_a_key_that_knows_nobody_is_said(klass, tmp_path, capsys):
    """Another course's key gives every student another id: nobody would have started, and nobody would know why."""
    other = tmp_path / "other"
    other.write_text("ab" * 32)
    other.chmod(0o600)

    report("--course", str(klass), "--key", str(other))

    assert "note: the ledgers know nobody in the roster" in capsys.readouterr().err


def test_a_folder_without_a_ledger_is_one_sentence(tmp_path, capsys):
    """The wrong folder must not read as a class that spent nothing."""
    code = report("--ledger", str(tmp_path))

    assert (2, True) == (code, "holds no ledger" in capsys.readouterr().err)
