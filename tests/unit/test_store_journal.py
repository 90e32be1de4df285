"""The journal: what makes a killed launch findable instead of doubled."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import Refused, StoreError
from gpulab.store import locks
from gpulab.store.journal import Intent, Journal, Made

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
INTENT = Intent(
    launch_id="l1",
    attempt=1,
    token="l1-1",
    name="week4",
    region="us-east-1",
    parameters={"InstanceType": "g4dn.xlarge", "Placement": {"AvailabilityZone": "us-east-1a"}},
    user_data=b"#cloud-config\n\x00\xff\n",
    at=NOW,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "profile" / "journal.jsonl"


def test_an_intent_without_a_result_is_open_and_complete(path):
    """The next command asks AWS with the same token and the same bytes."""
    Journal(path).intend(INTENT)

    assert (INTENT,) == Journal(path).read().open_intents


def test_a_result_closes_its_intent_and_names_the_instance(path):
    """A launch that is known needs no question to AWS."""
    journal = Journal(path)
    journal.intend(INTENT)
    journal.conclude(INTENT, "launched", instance_id="i-0abc", at=NOW)

    story = journal.read()

    made = (Made("l1", "week4", "us-east-1", "i-0abc", NOW),)
    assert ((), made) == (story.open_intents, story.made)


@pytest.mark.parametrize(
    ("role", "prefix", "read"),
    [
        ({"Name": "r"}, "c/ROLE:{instance}/", "c/ROLE:{instance}/"),
        ({"Name": "r"}, None, None),
        (None, "", ""),
        (None, None, ""),
    ],
)
def test_where_an_instance_was_born_to_keep_its_work_is_known(path, role, prefix, read):
    """The role may be made anew under another id; and without a role it keeps nothing, whoever did not write it down."""
    named = {"IamInstanceProfile": role} if role else {}
    intent = replace(INTENT, parameters={**INTENT.parameters, **named}, keep_prefix=prefix)
    Journal(path).intend(intent)
    Journal(path).conclude(intent, "launched", instance_id="i-0abc", at=NOW)

    assert [read] == [made.keep_prefix for made in Journal(path).read().made]


def test_a_refused_attempt_leaves_the_next_one_open(path):
    """Each attempt is its own question: the second place may have been asked when the laptop died."""
    journal, second = Journal(path), replace(INTENT, attempt=2, token="l1-2")
    journal.intend(INTENT)
    journal.conclude(INTENT, "InsufficientInstanceCapacity", at=NOW)
    journal.intend(second)

    assert (second,) == journal.read().open_intents


def test_the_journal_is_readable_by_its_owner_only(path):
    """It says where a student's instances are."""
    Journal(path).intend(INTENT)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@given(cut=st.integers(min_value=1, max_value=400))
def test_a_torn_last_line_is_skipped_and_the_next_record_is_whole(tmp_path_factory, cut):
    """A kill or a full disk tears the line that was being written; the call it announced was never made."""
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    journal, second = Journal(path), replace(INTENT, attempt=2, token="l1-2")
    journal.intend(INTENT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: min(cut, len(whole) - 2)])

    journal.intend(second)
    story = journal.read()

    assert ((INTENT, second), (2,)) == (story.open_intents, story.torn_lines)


@pytest.mark.parametrize(
    "line",
    [b"[]", b"null", b"{}", b'{"kind": "intent"}', b"\xff\xfe", b'{"kind": "result", "token": []}'],
)
def test_a_line_of_nonsense_is_reported_not_fatal(path, line):
    """Somebody edited the file; the launches in it still count."""
    journal = Journal(path)
    journal.intend(INTENT)
    path.write_bytes(line + b"\n" + path.read_bytes())

    story = journal.read()

    assert ((INTENT,), (1,)) == (story.open_intents, story.torn_lines)


def test_no_journal_is_an_empty_one(path):
    """The first command on a new computer."""
    assert () == Journal(path).read().open_intents


def test_two_writers_do_not_mix_their_lines(path):
    """A fleet launches from many threads and two terminals write at once."""

    def write(worker: int) -> None:
        for attempt in range(20):
            Journal(path).intend(
                replace(INTENT, token=f"{worker}-{attempt}", user_data=b"x" * 9000)
            )

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (80, ()) == (len(Journal(path).read().open_intents), Journal(path).read().torn_lines)


def test_what_was_read_is_not_read_again(path, monkeypatch):
    """A class asks for each seat, and a term's journal is tens of megabytes of user data."""
    journal, read = Journal(path), []
    for number in range(3):
        one = replace(INTENT, token=f"t-{number}", user_data=b"x" * 9000)
        journal.intend(one)
        journal.conclude(one, "launched", instance_id=f"i-{number}", at=NOW)
    journal.intend(replace(INTENT, token="open", user_data=bytes(range(256))))
    first = journal.read()
    loads = json.loads
    monkeypatch.setattr("gpulab.store.journal.json.loads", lambda t: read.append(t) or loads(t))
    again = journal.read()
    journal.conclude(INTENT, "launched", instance_id="i-0", at=NOW)

    last = journal.read()

    assert (first, 1) == (again, len(read))
    assert [bytes(range(256))] == [i.user_data for i in last.open_intents]
    assert ["i-0", "i-1", "i-2"] == [m.instance_id for m in last.made]


def test_another_computers_writing_is_read_on(path):
    """Two terminals have one journal: what the other one wrote since counts."""
    mine, other = Journal(path), Journal(path)
    other.intend(INTENT)
    before = mine.read().open_intents
    other.conclude(INTENT, "launched", instance_id="i-0abc", at=NOW)

    after = mine.read()

    assert ((INTENT,), (), ["i-0abc"]) == (
        before,
        after.open_intents,
        [m.instance_id for m in after.made],
    )


def test_a_journal_that_was_replaced_is_read_anew(path):
    """Whoever brings back yesterday's folder from a backup must not be told today's launches."""
    journal = Journal(path)
    journal.intend(INTENT)
    journal.intend(replace(INTENT, token="second"))
    old = path.read_bytes().replace(INTENT.token.encode(), b"from-the-backup")
    before = [i.token for i in journal.read().open_intents]
    path.write_bytes(old.partition(b"\n")[0] + b"\n")

    after = [i.token for i in journal.read().open_intents]
    path.unlink()

    assert ([INTENT.token, "second"], ["from-the-backup"]) == (before, after)
    assert () == journal.read().open_intents


def test_user_data_that_is_damaged_is_reported_with_its_line(path):
    """It cannot be asked for again byte for byte, so it is no launch that somebody may repeat."""
    Journal(path).intend(replace(INTENT, user_data=b"a whole script"))
    line = path.read_bytes()
    damaged = line.replace(base64.b64encode(b"a whole script"), b"*" * 20)
    path.write_bytes(b"nonsense\n" + damaged)

    story = Journal(path).read()

    assert ((), (1, 2)) == (story.open_intents, story.torn_lines)


def test_a_lock_that_the_system_gives_up_on_is_asked_for_again(path, monkeypatch):
    """Windows stops waiting after ten seconds; a line written without the lock may be torn by another's."""
    answers = [False, False, True]
    monkeypatch.setattr(locks, "_try", lambda handle, *, is_patient: answers.pop(0))

    Journal(path).intend(INTENT)

    assert ([], (INTENT,)) == (answers, Journal(path).read().open_intents)


def test_the_same_name_is_launched_once_at_a_time(path):
    """Two terminals, one name: the second one is told, instead of paying twice."""
    journal = Journal(path)

    with journal.launching("week4"):
        with pytest.raises(Refused, match="another gpulab is launching week4 right now"):
            with Journal(path).launching("week4"):
                pass
        with Journal(path).launching("week5"):
            busy = journal.is_launching("week4"), journal.is_launching("week6")
    assert (True, False) == busy
    assert not journal.is_launching("week4")


def test_a_journal_that_cannot_be_written_stops_the_launch(path):
    """Without the record a lost answer would become a second instance."""
    path.parent.mkdir()
    path.mkdir()

    with pytest.raises(StoreError) as failure:
        Journal(path).intend(INTENT)

    assert "Nothing was launched." in failure.value.hint


@pytest.mark.skipif(os.name == "nt", reason="Windows has no O_NOFOLLOW")
def test_a_link_in_place_of_the_journal_is_not_followed(path, tmp_path):
    """A link must not make gpulab write into another file."""
    path.parent.mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"mine\n")
    path.symlink_to(other)

    with pytest.raises(StoreError):
        Journal(path).intend(INTENT)

    assert b"mine\n" == other.read_bytes()
