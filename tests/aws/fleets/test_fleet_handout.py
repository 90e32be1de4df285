"""The handout: each student gets a way into their own instance and nobody else's; no private key is printed."""

from __future__ import annotations

import csv
import io
import stat
import subprocess
from dataclasses import replace
from datetime import timedelta

import pytest

from gpulab.errors import StoreError, Unreachable
from gpulab.fleet.ticket import read_ticket
from gpulab.fleets import acting
from gpulab.fleets.handout import hand_out, handed_before
from gpulab.fleets.members import Member, members
from gpulab.launch.running import ticket
from gpulab.model.course import Notebooks
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed
from gpulab.view.handout import Handed, handout_html, merge_csv

OWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d2G6s0cGCXq9vPvYcU8k7C1Hc3m5u1rZ4sBqYw1aX a@b"


class Door:
    """Instances that note which lines were let in."""

    def __init__(self):
        self.lines, self.dead, self.status = {}, set(), b""

    def connect(self, target):
        door = self

        class Host:
            def run(self, command, **_):
                if target.instance_id in door.dead:
                    raise Unreachable("no answer")
                if command[0] == "gpulab-agent":
                    return Completed(0, door.status, "")
                if command[0] == "sudo":
                    return Completed(1, b"", "no such repository\n")
                door.lines.setdefault(target.instance_id, []).append(command[-2])
                return Completed(0, b"", "")

        return Host()


@pytest.fixture
def given_out(make_class, tmp_path):
    """Hand out to three students, the last of whom has sent a key of their own."""
    klass = make_class(3)
    klass.people = (*klass.people[:2], replace(klass.people[2], public_key=OWN_KEY))
    run, door = klass.up(), Door()
    accounts = klass.accounts(connect=door.connect)
    known = accounts.account(run.outcomes[0].account).context.folder.known_hosts
    for n, outcome in enumerate(run.outcomes):
        hostkeys.pin(known, outcome.instance.id, [hostkeys.HostKey(bytes([n]) * 32)])
    folder = tmp_path / "tickets"

    def hand(*, with_notebooks=False):
        handed = {}
        found = members(accounts, klass.lab, klass.wish().everyone, with_extras=False)
        outcomes = list(
            hand_out(
                accounts,
                klass.lab,
                found,
                folder,
                with_notebooks=with_notebooks,
                take=lambda m, t, f: handed.update({m.label: Handed(m, t, f)}),
            )
        )
        return outcomes, [handed[k] for k in sorted(handed)]

    return klass, door, folder, hand


def test_each_key_opens_one_instance_until_the_lab_ends(given_out):
    """A ticket passed on opens that one instance, for that afternoon."""
    _, door, folder, hand = given_out

    _, handed = hand()

    tickets = [read_ticket((folder / h.file).read_bytes(), file=h.file) for h in handed]
    assert 3 == len({t.instance_id for t in tickets})
    assert len({t.private_key for t in tickets[:2]}) == 2
    assert [["expiry-time"]] * 3 == [
        [line.split("=")[0] for line in lines] for lines in door.lines.values()
    ]
    assert tickets[0].ends_at.strftime('"%Y%m%d%H%MZ"') in door.lines[tickets[0].instance_id][0]


def test_a_student_with_a_key_of_their_own_gets_no_secret(given_out):
    """Their private key never left their laptop; the ticket is harmless then."""
    _, door, _, hand = given_out

    _, handed = hand()

    assert "" == handed[2].ticket.private_key
    assert OWN_KEY in door.lines[handed[2].ticket.instance_id][0]


def test_handing_out_again_keeps_the_keys(given_out):
    """Half the class has opened theirs already."""
    _, _, _, hand = given_out

    first, second = hand()[1], hand()[1]

    assert [h.ticket for h in first] == [h.ticket for h in second]


def test_one_instance_that_does_not_answer_stops_nobody(given_out):
    """The others are waiting in the auditorium."""
    _, door, folder, hand = given_out
    _, handed = hand()
    door.dead.add(handed[0].ticket.instance_id)
    (folder / handed[0].file).unlink()

    outcomes, again = hand()

    assert ["s000001", "s000002"] == [h.member.label for h in again]
    assert ["no answer"] == [o.trouble.message for o in outcomes if o.trouble]


def test_who_was_served_before_stays_on_the_page(given_out):
    """`--failed` serves three of two hundred: the page to print and the mail merge are everybody's all the same."""
    klass, _, folder, hand = given_out
    _, handed = hand()
    everyone = [Member(seat.account, seat, None) for seat in klass.wish().everyone]
    (folder / handed[1].file).write_text("{")
    now, ends_at = klass.sandbox.now(), handed[0].ticket.ends_at

    found = list(handed_before(everyone, folder, now=now))

    kept = [(h.member.label, h.ticket, h.file) for h in (handed[0], handed[2])]
    assert kept == [(member.label, ticket, file) for member, ticket, file in found]
    assert [] == list(handed_before(everyone, folder, now=ends_at))


def test_an_extension_lets_the_tickets_keys_in_for_longer(given_out, tmp_path):
    """The lecture runs late: whoever closes the lid at 17:05 must get in again at 17:15."""
    klass, door, _, hand = given_out
    hand()
    lines = {key: said[0] for key, said in door.lines.items()}
    until = klass.lab.ends_at + timedelta(hours=1)

    class Host:
        def __init__(self, target):
            self.home = tmp_path / target.instance_id
            (self.home / ".ssh").mkdir(parents=True, exist_ok=True)
            (self.home / ".ssh" / "authorized_keys").write_text(
                f"{OWN_KEY} teacher\n{lines[target.instance_id]}\n"
            )

        def run(self, command, **_):
            if command[0] == "sh":
                subprocess.run(command, check=True, env={"HOME": str(self.home)})
            return Completed(0, b"", "")

    accounts = klass.accounts(connect=Host)
    found = members(accounts, klass.lab, klass.wish().everyone, with_extras=False)
    outcomes = list(acting.extend(accounts, found, new_end=lambda _: until))

    begins = f'expiry-time="{until:%Y%m%d%H%M}Z" ssh-ed25519 '
    kept = [
        (tmp_path / m.instance.id / ".ssh" / "authorized_keys").read_text().splitlines()
        for m in found
    ]
    assert [None] * 3 == [outcome.trouble for outcome in outcomes]
    assert [(f"{OWN_KEY} teacher", True)] * 3 == [
        (first, second.startswith(begins)) for first, second in kept
    ]


def test_an_open_ticket_asks_the_instance_when_it_ends(given_out):
    """The ticket names the end of before; the student sits in the lecture that runs late."""
    klass, door, _, hand = given_out
    handed = hand()[1][0]
    student = klass.accounts(connect=door.connect).account(handed.member.account).context
    reached = ticket.target_of(student, handed.ticket)
    now, later = klass.sandbox.now(), klass.sandbox.now() + timedelta(hours=2)
    door.status = (
        b'{"version": 1, "at": "%s", "phases": [], "deadline": "%s", "idle_minutes": 60}'
        % (
            now.isoformat().encode(),
            later.isoformat().encode(),
        )
    )

    answered = ticket.end_now(student, reached, handed.ticket.ends_at)
    door.dead.add(handed.ticket.instance_id)

    assert later == answered
    assert now == ticket.end_now(student, reached, now)


def test_notebooks_that_do_not_come_leave_the_ticket_and_say_what_to_do(given_out):
    """A repository that moved is no reason to keep two hundred students out."""
    klass, _, folder, hand = given_out
    klass.lab = replace(klass.lab, notebooks=Notebooks("https://gone.example/x"))

    outcomes, handed = hand(with_notebooks=True)

    assert 3 == len(handed) == len(list(folder.glob("*.ticket")))
    assert {
        (
            "the ticket is written, the notebooks did not come: no such repository",
            "Run it again once their repository answers, or with `--no-notebooks`",
        )
    } == {(o.trouble.message, o.trouble.hint) for o in outcomes}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    """A full or read-only disk is the outside, not a mistake of ours with a report to send."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="could not write"):
        list(hand_out(None, None, (), tmp_path / "file" / "out", with_notebooks=False, take=None))


def test_tickets_are_private_and_kept_out_of_git(given_out):
    """They are keys, and the folder often lies in the course's repository."""
    _, _, folder, hand = given_out
    hand()

    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(f.stat().st_mode) for f in folder.glob("*.ticket")}
    assert "*\n" == (folder / ".gitignore").read_text()


def test_the_pages_carry_no_key_and_no_markup_from_the_roster(given_out):
    """They are printed and lie on a table; a student may be called <script>."""
    _, _, _, hand = given_out
    _, handed = hand()
    seat = handed[0].member.seat
    bad = replace(seat.students[0], name="<script>alert(1)</script>")
    handed[0] = replace(
        handed[0], member=replace(handed[0].member, seat=replace(seat, students=(bad,)))
    )

    page = handout_html(handed, title="Course: lab")

    assert "PRIVATE KEY" not in page
    assert "<script>" not in page
    assert page.count("<section>") == 3
    assert f"SHA256:{'x'}"[:7] in page


def test_the_merge_table_has_a_row_for_each_address(given_out):
    """What the mail program needs, and no cell that a spreadsheet would run."""
    _, _, _, hand = given_out
    _, handed = hand()

    rows = list(csv.DictReader(io.StringIO(merge_csv(handed, lab="w1"))))

    assert [f"s{n}@student.example" for n in range(3)] == [r["email"] for r in rows]
    assert ["s000000.ticket", "s000001.ticket", "s000002.ticket"] == [r["ticket"] for r in rows]
