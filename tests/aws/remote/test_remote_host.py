"""Commands on an instance, against a real sshd, by the system's ssh and by paramiko."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from gpulab.errors import CommandFailed, HostKeyMismatch, LoginRefused, Unreachable
from gpulab.remote import hostkeys
from gpulab.remote.host import Host
from gpulab.remote.keys import make_key_pair
from gpulab.remote.openssh import OpenSsh
from gpulab.remote.paramiko_host import Paramiko

_PROXY = """
import os, socket, sys, threading
end = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while chunk := os.read(0, 65536):
        end.sendall(chunk)
threading.Thread(target=up, daemon=True).start()
while chunk := end.recv(65536):
    os.write(1, chunk)
"""


@pytest.fixture(params=["ssh", "paramiko"])
def starter(request):
    """Both ways to the instance behave the same."""
    return OpenSsh("ssh") if request.param == "ssh" else Paramiko()


def test_words_arrive_as_they_are(sshd, starter):
    """A file name with a space or a dollar sign must not become two words or a variable."""
    words = ["a b", "$HOME", "it's", '"', "%h", "*", ";id", "-n", "\n"]

    ran = Host(sshd.target(), starter=starter).run(["printf", "[%s]", *words])

    assert "".join(f"[{word}]" for word in words) == ran.text


def test_input_reaches_the_command_whole(sshd, starter):
    """Work is pushed this way; a lost byte is a broken notebook."""
    given = bytes(range(256)) * 4000

    ran = Host(sshd.target(), starter=starter).run(["cat"], given=given)

    assert given == ran.stdout


def test_a_failed_command_says_its_status_and_last_words(sshd, starter):
    """`status 2` alone sends the student to the log; the last line often is the answer."""
    host = Host(sshd.target(), starter=starter)

    with pytest.raises(CommandFailed) as error:
        host.run(["sh", "-c", "echo first >&2; echo no space left >&2; exit 2"])
    ran = host.run(["sh", "-c", "exit 2"], check=False)

    assert "`sh` failed on the instance with status 2: no space left" == error.value.message
    assert 2 == ran.exit_code


@pytest.mark.parametrize("script", ["echo Permission denied >&2; exit 255", "kill -9 $$"])
def test_a_command_that_exits_like_ssh_is_a_failed_command(sshd, starter, script):
    """255 is also what ssh says when it fails itself; retrying would run the command twice."""
    with pytest.raises(CommandFailed):
        Host(sshd.target(), starter=starter).run(["sh", "-c", script])


def test_a_command_without_end_is_ended(sshd, starter):
    """A hanging `nvidia-smi` must not hang gpulab."""
    with pytest.raises(CommandFailed) as error:
        Host(sshd.target(), starter=starter).run(["sleep", "60"], timeout_s=0.5)

    assert "`sleep` did not end on the instance within 0.5 s" == error.value.message


def test_endless_output_is_cut_off(sshd, starter):
    """A hostile instance could fill the laptop's memory."""
    with pytest.raises(CommandFailed) as error:
        Host(sshd.target(), starter=starter).run(["yes"], max_bytes=10_000)

    assert "`yes` on the instance printed more than 10000 bytes" == error.value.message


def test_lines_come_one_by_one_and_the_failure_after_them(sshd, starter):
    """`logs --follow` shows what there is before it says that the instance is gone."""
    lines = Host(sshd.target(), starter=starter).stream(["sh", "-c", "echo one; echo two; exit 3"])

    first, second = next(lines), next(lines)
    with pytest.raises(CommandFailed):
        next(lines)

    assert ("one", "two") == (first, second)


def test_a_stream_nobody_reads_any_more_ends_its_command(sshd):
    """Ctrl-C in `logs --follow` must leave no process behind on the instance."""
    lines = Host(sshd.target()).stream(["sh", "-c", "echo $$; exec sleep 600"])

    next(lines)
    lines.close()

    with pytest.raises(StopIteration):
        next(lines)


def test_another_machines_key_is_refused_with_both_fingerprints(sshd, starter, tmp_path):
    """This is what pinning is for."""
    other = hostkeys.parse_public_key(make_key_pair(tmp_path / "other").split()[1])
    hostkeys.pin(tmp_path / "known_hosts", sshd.target().instance_id, [other])

    with pytest.raises(HostKeyMismatch) as error:
        Host(sshd.target(known_hosts=tmp_path / "known_hosts"), starter=starter).run(["true"])

    assert (
        "the machine at i-0123456789abcdef0's address is not i-0123456789abcdef0:"
        f" pinned is {other.fingerprint}, it shows {sshd.host_key.fingerprint}"
        == error.value.message
    )


def test_an_unpinned_machine_is_never_trusted(sshd, starter):
    """There is no trust on first use, not even once."""
    with pytest.raises(HostKeyMismatch):
        Host(sshd.target(instance_id="i-0123456789abcdef1"), starter=starter).run(["true"])


def test_a_foreign_key_is_refused(sshd, starter, tmp_path):
    """Retrying a refused login gets the address banned; it must stop."""
    make_key_pair(tmp_path / "foreign")

    with pytest.raises(LoginRefused) as error:
        Host(sshd.target(key_file=tmp_path / "foreign"), starter=starter).run(["true"])

    assert error.value.message.startswith("i-0123456789abcdef0 does not accept the key foreign for")
    # On the computer after the lost one this is the only way to end it at once.
    assert "`gpulab stop NAME --no-save`; what it kept in a bucket stays" in error.value.hint


def test_nobody_listening_is_unreachable(sshd, starter):
    """The caller asks AWS for the state before it tries again."""
    sshd.stop()

    with pytest.raises(Unreachable) as error:
        Host(sshd.target(), starter=starter).run(["true"])

    assert "Connection refused" in error.value.message


def test_a_lost_connection_is_unreachable_not_a_failed_command(sshd, starter):
    """A spot instance that ends in the middle of a command looks like this."""
    lines = Host(sshd.target(), starter=starter).stream(["sh", "-c", "echo here; exec sleep 600"])

    next(lines)
    sshd.kill_sessions()

    with pytest.raises(Unreachable):
        next(lines)


def test_an_instance_without_an_address_is_reached_by_its_proxy_command(sshd, starter, tmp_path):
    """Session Manager, Instance Connect Endpoint and the sandbox come in by this door."""
    program = tmp_path / "it's a proxy $HOME.py"
    program.write_text(_PROXY)
    proxy = (sys.executable, str(program), "%h", "%p", "100%")

    ran = Host(sshd.target(proxy_command=proxy), starter=starter).run(["echo", "through"])

    assert "through\n" == ran.text


def test_a_shell_without_a_terminal_ends_with_its_input(sshd):
    """With a terminal over there, a login from a script waited for ever."""
    argv = Host(sshd.target()).shell_argv(tty=False)

    done = subprocess.run(argv, input=b"echo $((6 * 7))\n", capture_output=True, timeout=60)

    assert (0, b"42\n") == (done.returncode, done.stdout.replace(b"\r", b""))


def test_the_shell_command_is_ssh_with_a_terminal(sshd):
    """`gpulab ssh` hands this list to the system as it is."""
    argv = Host(sshd.target()).shell_argv()

    assert shutil.which("ssh") == argv[0]
    assert "-tt" in argv
