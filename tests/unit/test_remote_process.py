"""What ssh's failures mean: which may be retried, and which must never be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpulab.errors import HostKeyMismatch, LoginRefused, Unreachable
from gpulab.remote.hostkeys import HostKey
from gpulab.remote.process import Ended, last_line, ssh_failure
from gpulab.remote.target import SshTarget

TARGET = SshTarget(
    "i-0123456789abcdef0", "198.51.100.7", "ubuntu", Path("/k/id"), Path("/k/known_hosts")
)
PINNED = HostKey(bytes(32))
# What OpenSSH 9.2 writes, with its warning frame left out.
CHANGED = """The fingerprint for the ED25519 key sent by the remote host is
SHA256:GQNVlru1czwMXYS03zodAVNASyhI/2MaRRyMAZkQP7U.
Host key for i-0123456789abcdef0 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("complaint", "kind", "message"),
    [
        (
            "ssh: connect to host 198.51.100.7 port 22: Connection timed out\n",
            Unreachable,
            "no answer from i-0123456789abcdef0 at 198.51.100.7"
            " (ssh: connect to host 198.51.100.7 port 22: Connection timed out)",
        ),
        (
            "kex_exchange_identification: Connection closed by remote host\n",
            Unreachable,
            "no answer from i-0123456789abcdef0 at 198.51.100.7"
            " (kex_exchange_identification: Connection closed by remote host)",
        ),
        (
            "ubuntu@198.51.100.7: Permission denied (publickey).\n",
            LoginRefused,
            "i-0123456789abcdef0 does not accept the key id for ubuntu",
        ),
        (
            CHANGED,
            HostKeyMismatch,
            "the machine at i-0123456789abcdef0's address is not i-0123456789abcdef0:"
            f" pinned is {PINNED.fingerprint},"
            " it shows SHA256:GQNVlru1czwMXYS03zodAVNASyhI/2MaRRyMAZkQP7U",
        ),
    ],
)
def test_each_complaint_of_ssh_has_its_class(complaint, kind, message):
    """The class decides: stop at once, or ask AWS and try again."""
    failure = ssh_failure(TARGET, Ended(255, "", complaint), pinned=[PINNED])

    assert (kind, message) == (type(failure), failure.message)


def test_an_unpinned_machine_is_said_to_be_unpinned():
    """Right after a launch the console may not have shown the key; that is no attack."""
    ended = Ended(255, "", "No ED25519 host key is known\nHost key verification failed.\n")

    failure = ssh_failure(TARGET, ended)

    assert "no host key is pinned for i-0123456789abcdef0" == failure.message


@pytest.mark.parametrize(
    "ended",
    [
        Ended(0, "", ""),
        Ended(1, "Host key verification failed.", ""),
        Ended(255, "Host key verification failed.", ""),
        Ended(255, "Permission denied", ""),
    ],
)
def test_a_command_cannot_imitate_ssh(ended):
    """A program on the instance may exit 255 and print what it likes; only ssh's own log counts."""
    assert ssh_failure(TARGET, ended) is None


def test_a_connection_closed_by_the_other_side_is_noticed():
    """Ssh writes this one complaint to stderr; an instance that ends itself looks like this."""
    ended = Ended(255, "Connection to 198.51.100.7 closed by remote host.\r\n", "")

    failure = ssh_failure(TARGET, ended)

    assert Unreachable is type(failure)


def test_escape_sequences_of_the_instance_are_not_shown():
    """Stderr of an instance could set the terminal's title or fake a prompt."""
    assert "]0;ownedbad" == last_line("\x1b]0;owned\x07bad\n\n \n")
