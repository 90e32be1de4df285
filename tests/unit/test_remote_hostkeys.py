"""Host keys: what counts as one on a console, and that a pinned one cannot be replaced by another."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import HostKeyMismatch, WrongUsage
from gpulab.remote.hostkeys import HostKey, forget, parse_console, parse_public_key, pin, pinned

A = HostKey(bytes(range(32)))
B = HostKey(bytes(32))
ID = "i-0123456789abcdef0"
BLOCK = "-----BEGIN SSH HOST KEY KEYS-----\n{}\n-----END SSH HOST KEY KEYS-----\n"


def a_line(key: HostKey, comment: str = " root@ip-10-0-0-1") -> str:
    return f"ssh-ed25519 {key.base64}{comment}"


@pytest.mark.parametrize(
    "console",
    [
        BLOCK.format("ecdsa-sha2-nistp256 AAAA root@x\n" + a_line(A)),
        BLOCK.format(a_line(A, "")),
        "[   12.345678] cloud-init[812]: " + BLOCK.format(a_line(A)),
        f"login: \ngpulab-hostkey {a_line(A)}\r\n[  ok  ] Started\n",
        f"gpulab-hostkey {a_line(A)}\n" + BLOCK.format(a_line(A)),
        f"[    9.1] cloud-init[700]: gpulab-hostkey {a_line(A)}\n",
    ],
)
def test_the_key_is_found_in_either_form(console):
    """cloud-init prints its block last; our early line comes minutes sooner."""
    assert (A,) == parse_console(console)


@pytest.mark.parametrize(
    "console",
    [
        "",
        a_line(A),
        f"echo gpulab-hostkey {a_line(A)}",
        f"gpulab-hostkey {a_line(A)[:60]}",
        f"gpulab-hostkey ssh-rsa {A.base64}",
        f"gpulab-hostkey ssh-ed25519 {A.base64[:-4]}!!!!",
        "-----BEGIN SSH HOST KEY KEYS-----\n" + a_line(A),
        BLOCK.format("# " + a_line(A)),
        "-----END SSH HOST KEY KEYS-----\n" + a_line(A),
        "-----BEGIN SSH HOST KEY FINGERPRINTS-----\n"
        + a_line(A)
        + "\n-----END SSH HOST KEY FINGERPRINTS-----",
    ],
)
def test_anything_else_is_no_key(console):
    """A console holds text of many programs; only the two forms are vouched for."""
    assert () == parse_console(console)


def test_two_different_keys_are_refused():
    """If the console names two keys, nobody can say which is the machine's."""
    console = f"gpulab-hostkey {a_line(A)}\n" + BLOCK.format(a_line(B))

    with pytest.raises(HostKeyMismatch) as error:
        parse_console(console)

    assert A.fingerprint in error.value.message
    assert B.fingerprint in error.value.message


@given(st.text())
def test_no_console_text_breaks_the_parser(text):
    """Console output is bytes from a machine; it must never end gpulab with a traceback."""
    assert () == parse_console(text)


@given(st.binary(max_size=80))
def test_only_an_ed25519_key_of_32_bytes_is_one(blob):
    """A key of another type or length would be pinned and never match."""
    key = parse_public_key(base64.b64encode(blob).decode())

    assert key is None


def test_the_fingerprint_is_openssh_s(tmp_path):
    """Students compare it with what ssh-keygen and the AWS console show."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (package openssh-client)")
    file = tmp_path / "key.pub"
    file.write_text(a_line(A) + "\n")

    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", file], capture_output=True, text=True, check=True
    )

    assert A.fingerprint == shown.stdout.split()[1]


def test_a_pinned_key_is_read_back_and_forgotten(tmp_path):
    """An address is used again by AWS; an ended instance's key must not stay behind."""
    file = tmp_path / "new" / "known_hosts"
    pin(file, ID, [A])
    pin(file, "i-0123456789abcdef1", [B])

    forget(file, ID)

    assert () == pinned(file, ID)
    assert (B,) == pinned(file, "i-0123456789abcdef1")


def test_the_file_is_private_and_pinning_twice_changes_nothing(tmp_path):
    """Others on the computer must not add keys; `up` typed again must not either."""
    file = tmp_path / "known_hosts"

    pin(file, ID, [A])
    pin(file, ID, [A])

    assert f"{ID} ssh-ed25519 {A.base64}\n" == file.read_text()
    if os.name != "nt":
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert ["known_hosts", "known_hosts.lock"] == sorted(p.name for p in tmp_path.iterdir())


def test_another_key_for_a_pinned_instance_is_refused_with_both(tmp_path):
    """This is the moment of an attack: the user needs both fingerprints to judge it."""
    file = tmp_path / "known_hosts"
    pin(file, ID, [A])

    with pytest.raises(HostKeyMismatch) as error:
        pin(file, ID, [B])

    assert (
        f"the machine at {ID}'s address is not {ID}: pinned is {A.fingerprint}, it shows {B.fingerprint}"
        == error.value.message
    )
    assert (A,) == pinned(file, ID)


@pytest.mark.parametrize("alias", ["", "-x", "a b", "a,b", "*", "|1|x"])
def test_an_alias_that_matches_more_than_one_instance_is_refused(tmp_path, alias):
    """known-hosts patterns such as `*` would vouch for every machine."""
    with pytest.raises(WrongUsage):
        pin(tmp_path / "known_hosts", alias, [A])


def test_many_pins_at_once_lose_none(tmp_path):
    """A fleet pins thirty instances at the same time in one file."""
    file = tmp_path / "known_hosts"
    aliases = [f"i-{n:017x}" for n in range(30)]

    threads = [threading.Thread(target=pin, args=(file, alias, [A])) for alias in aliases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(aliases) == sorted(line.split()[0] for line in file.read_text().splitlines())
