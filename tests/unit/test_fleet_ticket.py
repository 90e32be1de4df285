"""A ticket: what a student is sent. Read strictly, since anybody can write one and send it to a student."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import WrongUsage
from gpulab.fleet.ticket import Ticket, authorized_line, read_ticket, write_ticket

HOST_KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
ENDS = datetime(2026, 9, 7, 15, 10, tzinfo=UTC)
PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
TICKET = Ticket("w1-s1", "i-0123456789abcdef0", "192.0.2.7", "ubuntu", HOST_KEY, PEM, ENDS)


def test_a_ticket_reads_back_as_it_was_written():
    """The teacher's laptop writes it, the student's reads it."""
    read = read_ticket(write_ticket(TICKET).encode(), file="s1.ticket")

    assert TICKET == read


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user", "-oProxyCommand=id"),
        ("name", "../../.ssh/config"),
        ("instance", "i-0/../../x"),
        ("host_key", "AAAA"),
        ("host_key", HOST_KEY + "\nevil ssh-ed25519 AAAA"),
        ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nx"),
        ("ends_at", "soon"),
        ("address", None),
        ("address", "-oProxyCommand=id"),
    ],
)
def test_what_could_become_an_option_a_path_or_a_second_key_is_refused(key, value):
    """A forged ticket must not run anything on a student's laptop, nor write outside its folder."""
    raw = json.dumps({**json.loads(write_ticket(TICKET)), key: value}).encode()

    with pytest.raises(WrongUsage, match=rf"s1\.ticket is no ticket: `{key}` is"):
        read_ticket(raw, file="s1.ticket")


def test_a_ticket_of_a_newer_gpulab_says_so():
    """The student's gpulab is from last year."""
    raw = write_ticket(TICKET).replace('"gpulab_ticket": 1', '"gpulab_ticket": 2').encode()

    with pytest.raises(WrongUsage) as caught:
        read_ticket(raw, file="t")

    assert "Update gpulab" == caught.value.hint


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_nothing_else_is_ever_taken_for_a_ticket(raw):
    """Students open what is in their downloads folder."""
    with pytest.raises(WrongUsage):
        read_ticket(raw, file="t")


def test_the_key_ends_with_the_lab_on_the_instance_itself():
    """Not only the laptop says no: sshd refuses the key from then on, in UTC whatever its zone."""
    line = authorized_line("ssh-ed25519 AAAA student", ends_at=ENDS)

    assert 'expiry-time="202609071510Z" ssh-ed25519 AAAA student' == line
