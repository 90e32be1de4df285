"""The handout: each student gets a way into their own instance and nobody else's; no private key is printed."""

from __future__ import annotations

import csv
import io
import stat
from dataclasses import replace

import pytest

from gpulab.errors import Unreachable
from gpulab.fleet.ticket import read_ticket
from gpulab.fleets.handout import hand_out
from gpulab.fleets.members import members
from gpulab.remote import hostkeys
from gpulab.remote.process import Completed
from gpulab.view.handout import Handed, handout_html, merge_csv

OWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d2G6s0cGCXq9vPvYcU8k7C1Hc3m5u1rZ4sBqYw1aX a@b"


class Door:
    """Instances that note which lines were let in."""

    def __init__(self):
        self.lines, self.dead = {}, set()

    def connect(self, target):
        door = self

        class Host:
            def run(self, command, **_):
                if target.instance_id in door.dead:
                    raise Unreachable("no answer")
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

    def hand():
        handed = {}
        found = members(accounts, klass.lab, klass.wish().everyone, with_extras=False)
        outcomes = list(
            hand_out(
                accounts,
                klass.lab,
                found,
                folder,
                with_notebooks=False,
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


def test_tickets_are_private_and_kept_out_of_git(given_out):
    """They are keys, and the folder often lies in the course's repository."""
    _, _, folder, hand = given_out
    hand()

    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(f.stat().st_mode) for f in folder.glob("*.ticket")}
    assert "*\n" == (folder / ".gitignore").read_text()


def test_the_pages_carry_no_key_and_no_markup_from_the_roster(given_out):
    """They are printed and lie on a table; a student may be called <script>."""
    klass, _, _, hand = given_out
    _, handed = hand()
    seat = handed[0].member.seat
    bad = replace(seat.students[0], name="<script>alert(1)</script>")
    handed[0] = replace(
        handed[0], member=replace(handed[0].member, seat=replace(seat, students=(bad,)))
    )

    page = handout_html(handed, title="Course: lab", now=klass.sandbox.now())

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
