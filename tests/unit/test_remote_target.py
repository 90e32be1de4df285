"""What ssh is told: nothing that came from outside may become an option, a token or a shell word."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import WrongUsage
from gpulab.remote.target import (
    PortForward,
    SshTarget,
    accepts_cipher_order,
    proxy_argv,
    ssh_argv,
    ssh_environment,
)


def a_target(**changes: object) -> SshTarget:
    values: dict[str, object] = {
        "instance_id": "i-0123456789abcdef0",
        "address": "198.51.100.7",
        "user": "ubuntu",
        "key_file": Path("/home/ada/.gpulab/keys/id"),
        "known_hosts": Path("/home/ada/.gpulab/known_hosts"),
    }
    return SshTarget(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("user", "-oProxyCommand=id", "user name"),
        ("user", "Ubuntu", "user name"),
        ("user", "a;id", "user name"),
        ("address", "-oProxyCommand=id", "address"),
        ("address", "example.org", "address"),
        ("address", "fe80::1%eth0", "address"),
        ("address", "", "address"),
        ("instance_id", "i-0123;id", "instance id"),
        ("instance_id", "-i", "instance id"),
        ("port", 0, "port"),
        ("port", 65536, "port"),
        ("key_file", Path("relative/key"), "key file"),
        ("key_file", Path("/keys/${HOME}"), "key file"),
        ("known_hosts", Path('/a"b'), "known-hosts file"),
        ("known_hosts", Path("/a\nHost *"), "known-hosts file"),
        ("proxy_command", ("-x",), "proxy command"),
        ("proxy_command", ("", "a"), "proxy command"),
        ("proxy_command", ("nc", "a\nb"), "proxy command"),
    ],
)
def test_a_hostile_value_never_reaches_ssh(field, value, words):
    """State files and tags can be tampered with; `-oProxyCommand=` in an address runs a program."""
    with pytest.raises(WrongUsage) as error:
        a_target(**{field: value})

    assert f"{str(value)!r} is not a usable {words}" == error.value.message


@pytest.mark.parametrize(
    "listen", [Path("relative.sock"), Path("/run/a:b.sock"), 0, 65536, Path('/run/"x')]
)
def test_a_forward_that_ssh_would_read_otherwise_is_refused(listen):
    """A colon in a socket path would change where ssh forwards to."""
    with pytest.raises(WrongUsage):
        PortForward(listen, 8888)


def test_the_argument_list_is_the_documented_one():
    """Each option closes a hole or makes a failure visible; losing one must be a decision."""
    argv = ssh_argv(a_target(), command=["echo", "a b"], forwards=[PortForward(40123, 8888)])

    options = [argv[i + 1] for i, word in enumerate(argv) if word == "-o"]
    assert ["ssh", "-F", "none", "-T"] == argv[:4]
    assert ["-L", "127.0.0.1:40123:127.0.0.1:8888", "-p", "22", "-l", "ubuntu"] == argv[-9:-3]
    assert ["--", "198.51.100.7", "echo 'a b'"] == argv[-3:]
    assert {
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        'IdentityFile="/home/ada/.gpulab/keys/id"',
        'UserKnownHostsFile="/home/ada/.gpulab/known_hosts"',
        "GlobalKnownHostsFile=none",
        "StrictHostKeyChecking=yes",
        "HostKeyAlias=i-0123456789abcdef0",
        "HostKeyAlgorithms=ssh-ed25519",
        "UpdateHostKeys=no",
        "ExitOnForwardFailure=yes",
        "ForwardAgent=no",
        "PermitLocalCommand=no",
        "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    } <= set(options)


def test_a_person_gets_a_terminal_and_no_command():
    """`gpulab ssh` opens the login shell, under the same rules."""
    argv = ssh_argv(a_target(), tty=True)

    assert "-tt" == argv[3]
    assert ["--", "198.51.100.7"] == argv[-2:]


def test_percent_signs_in_paths_are_no_tokens():
    """Ssh expands `%h` in file names; a folder may be called `100%home`."""
    argv = ssh_argv(a_target(key_file=Path("/keys/100%home/id")))

    assert 'IdentityFile="/keys/100%%home/id"' in argv


def test_the_proxy_command_is_quoted_for_the_shell():
    """Words of a proxy command reach the program as they are, whatever they hold."""
    target = a_target(proxy_command=("nc", "%h", "%p", "it's $HOME 100%"))

    option = next(word for word in ssh_argv(target, platform="linux") if "Proxy" in word)

    assert ["nc", "198.51.100.7", "22", "it's $HOME 100%"] == proxy_argv(target)
    assert "100%%" in option
    assert proxy_argv(target) == shlex.split(
        option.removeprefix("ProxyCommand=").replace("%%", "%")
    )


def test_on_windows_the_proxy_command_is_quoted_for_createprocess():
    """Windows' ssh starts the program without a shell; single quotes would be part of the words."""
    target = a_target(proxy_command=("C:\\Program Files\\py.exe", "%h"))

    option = next(word for word in ssh_argv(target, platform="win32") if "Proxy" in word)

    assert 'ProxyCommand="C:\\Program Files\\py.exe" 198.51.100.7' == option


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0"), min_size=1), min_size=1))
def test_any_command_arrives_word_for_word(words):
    """The instance's shell must see the words we meant, or a file name runs a program."""
    argv = ssh_argv(a_target(), command=words)

    assert words == shlex.split(argv[-1])


def test_an_old_ssh_gets_no_cipher_order():
    """Windows 10 once shipped OpenSSH 7.7, which refuses `^` and would not connect at all."""
    asked: list[list[str]] = []

    def refuse(argv):
        asked.append(list(argv))
        return 255

    accepted = accepts_cipher_order("/old/ssh", run=refuse)
    argv = ssh_argv(a_target(), cipher_order=accepted)

    assert ["/old/ssh", "-G", "-F", "none"] == asked[0][:4]
    assert not [word for word in argv if word.startswith("Ciphers")]


def test_ssh_runs_proxy_commands_with_a_plain_shell():
    """Csh and fish quote differently, and `$SHELL` is what ssh would use."""
    environment = ssh_environment({"SHELL": "/usr/bin/fish", "HOME": "/home/ada"})

    assert {"SHELL": "/bin/sh", "HOME": "/home/ada", "LC_ALL": "C"} == environment


def test_this_computers_ssh_takes_every_option(tmp_path):
    """An option that ssh does not know makes it stop before it connects."""
    argv = ssh_argv(a_target(proxy_command=("nc", "%h", "%p")), forwards=[PortForward(40123, 8888)])

    try:
        shown = subprocess.run(
            [argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs ssh (package openssh-client)")

    assert (0, "") == (shown.returncode, shown.stderr)
    assert "hostkeyalias i-0123456789abcdef0" in shown.stdout.splitlines()
    assert "proxycommand nc 198.51.100.7 22" in shown.stdout.splitlines()
