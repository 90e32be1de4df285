"""The user's key: made once, private from its first moment, never overwritten."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpulab.errors import StoreError
from gpulab.remote.keys import make_key_pair, public_key


def test_a_new_key_is_private_and_stays(tmp_path):
    """A second `up` must not lock the user out of the first instance."""
    file = tmp_path / "keys" / "course"

    first = make_key_pair(file, comment="gpulab-cs101")
    second = make_key_pair(file, comment="gpulab-cs101")

    assert first == second
    assert ["ssh-ed25519", "gpulab-cs101"] == [first.split()[0], first.split()[2]]
    if os.name != "nt":
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)


def test_commands_at_once_share_one_key(tmp_path):
    """Five `up` in a fresh home start together; one that saw a half-written key would fail for no reason."""
    for round_ in range(20):
        file = tmp_path / str(round_) / "key"
        with ThreadPoolExecutor(5) as at_once:
            lines = list(at_once.map(lambda _, file=file: make_key_pair(file), range(5)))

        assert 1 == len(set(lines))
        assert [file] == list(file.parent.iterdir())


def test_what_is_not_a_key_is_said_and_kept(tmp_path):
    """Somebody's file must not be taken for a key, nor be overwritten by one."""
    file = tmp_path / "notes.txt"
    file.write_text("my notes")

    with pytest.raises(StoreError) as error:
        make_key_pair(file)

    assert f"{file} is not a private ssh key without a passphrase" == error.value.message
    assert "my notes" == file.read_text()


def test_a_missing_key_is_said(tmp_path):
    """A deleted key file is a common accident; it must read as one."""
    with pytest.raises(StoreError) as error:
        public_key(tmp_path / "gone")

    assert f"could not read the ssh key {tmp_path / 'gone'} (No such file or directory)" == str(
        error.value
    )


def test_on_windows_only_the_user_may_read_it(tmp_path):
    """Windows' ssh refuses a key that others may read, and a new file inherits their rights."""
    commands: list[list[str]] = []

    def icacls(argv):
        commands.append(list(argv))
        return 0

    file = tmp_path / "key"
    environ = {"USERDOMAIN": "LAB", "USERNAME": "ada"}
    make_key_pair(file, platform="win32", environ=environ, run=icacls)

    (command,) = commands
    assert ["/inheritance:r", "/grant:r", "LAB\\ada:F"] == command[2:]
    # The draft is restricted before the key is in it; it becomes the key as it is, rights included.
    assert file.parent == Path(command[1]).parent
    assert [file] == list(tmp_path.iterdir())


def test_a_key_that_cannot_be_protected_is_not_made(tmp_path):
    """A key that others can read is worse than none."""
    file = tmp_path / "key"

    with pytest.raises(StoreError):
        make_key_pair(file, platform="win32", environ={"USERNAME": "ada"}, run=lambda argv: 5)

    assert not file.exists()
