"""course.toml and roster.csv: what they mean, and every problem with its line."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.course.plan import read_course
from gpulab.course.roster import owner_id, read_roster

EXAMPLE = Path(__file__).parents[2] / "courses" / "02456-2017"
HEAD = '[course]\nid = "c"\nname = "C"\nfirst_day = 2026-09-07\nlast_day = 2026-12-07\n'
LAB = '[[labs]]\nid = "w1"\ndate = 2026-09-07\nstarts = "13:00"\nends = "17:00"\n'
SECRET = b"k" * 32
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d2G6s0cGCXq9vPvYcU8k7C1Hc3m5u1rZ4sBqYw1aX a@b"


def roster(text, **kw):
    raw = text if isinstance(text, bytes) else text.encode()
    return read_roster(raw, file="roster.csv", secret=SECRET, **kw)


def test_the_example_course_is_the_plan_of_2017():
    """The documentation and the tests use it; six Monday labs 13-17, then projects."""
    course, problems = read_course((EXAMPLE / "course.toml").read_bytes(), file="course.toml")

    assert () == problems
    assert ["week1", "week2", "week3", "week4", "week5", "week6", "project"] == [
        lab.id for lab in course.labs
    ]
    assert {Decimal(4)} == {lab.hours for lab in course.labs[:6]}
    assert {0} == {lab.starts_at.weekday() for lab in course.labs}
    assert 9 == len(course.hand_ins)


def test_clock_times_are_the_courses_local_times():
    """13:00 in Copenhagen is 11:00 UTC in September and 12:00 UTC in November."""
    text = HEAD.replace("first_day", 'timezone = "Europe/Copenhagen"\nfirst_day') + LAB
    later = LAB.replace("w1", "w2").replace("2026-09-07", "2026-11-23")

    course, _ = read_course((text + later).encode(), file="c")

    assert [datetime(2026, 9, 7, 11, tzinfo=UTC), datetime(2026, 11, 23, 12, tzinfo=UTC)] == [
        lab.starts_at for lab in course.labs
    ]


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        (
            HEAD + LAB + 'envronment = "tf2"\n',
            11,
            "unknown key `labs[w1].envronment`",
            "Did you mean `environment`?",
        ),
        (HEAD + LAB.replace('"13:00"', '"25:00"'), 9, "`labs[w1].starts` must be a clock time", ""),
        (
            HEAD + LAB.replace("2026-09-07", '"2026-09-07"', 1),
            8,
            "must be a day without quotes",
            "",
        ),
        (
            HEAD + LAB.replace('"17:00"', '"12:00"'),
            7,
            "`labs[w1]` ends before it starts",
            "`until`",
        ),
        (HEAD + LAB + LAB, 7, "two of `labs` have the id `w1`", ""),
        (HEAD, 0, "there is no lab", "[[labs]]"),
        (LAB, 0, "`course` has no `id`", ""),
        (HEAD.replace('"C"', "3") + LAB, 3, "`course.name` must be a text", ""),
        (
            HEAD + 'timezone = "Mars/Olympus"\n' + LAB,
            6,
            "`Mars/Olympus` is no time zone",
            "Europe/Copenhagen",
        ),
        (HEAD + "budget_usd = 1.5\n" + LAB, 6, "must be dollars in quotes", ""),
        (
            HEAD + LAB + '[acounts]\nkind = "own"\n',
            11,
            "unknown key `acounts`",
            "Did you mean `accounts`?",
        ),
        (HEAD + "x = \n", 6, "not TOML", ""),
        (
            HEAD + LAB + '[accounts]\ncidr = "campus"\n',
            12,
            "`accounts.cidr` must be an address range such as 130.225.0.0/16",
            "",
        ),
        (
            HEAD + LAB + '[accounts]\ncidr = "0.0.0.0/0"\n',
            12,
            "`accounts.cidr` would open ssh to the whole internet",
            "",
        ),
        (
            HEAD + LAB + '[labs.notebooks]\nrepository = "file:///etc"\n',
            12,
            "must be an https address",
            "",
        ),
        (
            HEAD + LAB + '[[hand_ins]]\nid = "h"\ndue = 2026-09-14\nlabs = ["w9"]\n',
            14,
            "names the lab `w9`",
            "",
        ),
    ],
)
def test_each_problem_of_a_course_has_its_line_and_its_hint(text, line, said, hint):
    """A TA mends the file from this list alone."""
    course, problems = read_course(text.encode(), file="course.toml")

    found = [p for p in problems if said in p.text]
    assert course is None
    assert 1 <= len(found), problems
    assert line in (found[0].line, 0)
    assert hint in found[0].hint


def test_all_problems_are_told_at_once():
    """Nobody wants to run a check six times."""
    text = (
        HEAD.replace('"c"', '"C C"')
        + LAB.replace('"13:00"', "13").replace('"17:00"', '"x"')
        + "foo = 1\n"
    )

    _, problems = read_course(text.encode(), file="course.toml")

    assert 4 == len(problems)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_roster_is_read_as_spreadsheets_write_it(separator, end, mark):
    """Danish Excel writes semicolons, CRLF and a byte order mark."""
    lines = ["id,name,e-mail,group", "s1,Ærø Øst,s1@x.dk,g1"]
    text = mark + end.join(line.replace(",", separator) for line in lines) + end

    found = roster(text)

    assert () == found.problems
    assert ("s1", "Ærø Øst", "s1@x.dk", "g1") == (
        found.students[0].id,
        found.students[0].name,
        found.students[0].email,
        found.students[0].group,
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("s1,A,not-mail,,", "is not an e-mail address"),
        (",A,a@x.dk,,", "`id` is empty"),
        ("=1,A,a@x.dk,,", "begins like a spreadsheet formula"),
        ("s1,=cmd|' /C calc'!A0,a@x.dk,,", "begins like a spreadsheet formula"),
        ("s1,A\u202eB,a@x.dk,,", "characters that cannot be seen"),
        ("s1,A\x1b[2J,a@x.dk,,", "characters that cannot be seen"),
        ("../s1,A,a@x.dk,,", "cannot be an id"),
        ("s1,A,a@x.dk,123,", "is not an AWS account"),
        ("s1,A,a@x.dk,,ssh-ed25519 AAAA", "is not an OpenSSH public key"),
        ("s1,A,a@x.dk,,-----BEGIN OPENSSH PRIVATE KEY-----", "begins like a spreadsheet formula"),
        (f"s1,{'A' * 3000},a@x.dk,,", "has 3,000 characters"),
    ],
)
def test_each_bad_row_of_a_roster_is_named_by_its_line(row, said):
    """One bad row must not stop the other 299 students."""
    text = (
        f"id,name,email,account,ssh_public_key\ns0,Good,s0@x.dk,,{KEY}\n{row}\ns9,Too,s9@x.dk,,\n"
    )

    found = roster(text)

    assert ["s0", "s9"] == [s.id for s in found.students]
    assert [3] == sorted({p.line for p in found.problems})
    assert said in " ".join(p.text for p in found.problems)


def test_the_same_student_twice_is_named_with_both_lines():
    """Twins in the list would get two instances."""
    found = roster("id,name,email\ns1,A,a@x.dk\nS1,B,A@x.dk\n")

    assert ["`id` S1 is the same as in line 2", "`email` A@x.dk is the same as in line 2"] == [
        p.text for p in found.problems
    ]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfei\x00", "not UTF-8"),
        (b"id,name\n", "no column `email`"),
        (b"id,name,email,emial\n", "unknown column `emial`"),
        (b"id,name,email,email\n", "two columns are called `email`"),
        (b'id,name,email\n"s1,A\n', "not CSV from here on"),
        (b"id,name,email\ns\x00,A,a@x.dk\n", "holds a NUL character"),
        (b"x" * 10_000_001, "is no roster"),
    ],
)
def test_a_file_that_is_no_roster_says_why(raw, said):
    """A wrong file must not become an empty class."""
    found = roster(raw)

    assert () == found.students
    assert said in " ".join(p.text for p in found.problems)


def test_the_opaque_id_hides_the_person_and_stays_the_same():
    """Tags are visible to the whole course account; the id must be stable and need the course's key."""
    mine, again, other_course = (
        owner_id("A@x.dk", secret=SECRET),
        owner_id(" a@x.dk ", secret=SECRET),
        owner_id("a@x.dk", secret=b"z"),
    )

    assert mine == again
    assert mine != other_course
    assert 11 == len(mine)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_roster_reader_fail(raw):
    """Whatever is dropped on it ends in rows or problems."""
    found = roster(b"id,name,email\n" + raw)

    assert all(p.line >= 0 and p.text for p in found.problems)
    assert all(s.id and s.email for s in found.students)


@given(st.text(max_size=300))
def test_no_text_makes_the_course_reader_fail(text):
    """A half-typed course ends in problems."""
    course, problems = read_course((HEAD + LAB + text).encode("utf-8", "replace"), file="c")

    assert (course is None) == bool(problems)
