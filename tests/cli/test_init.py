"""`gpulab init` with the block of a class page: pasted into a terminal, or piped; a student's first minute."""

from __future__ import annotations

import os
import sys

import pytest

from gpulab.cli.main import run
from gpulab.sandbox import Sandbox
from gpulab.store.home import Home

posix = pytest.mark.skipif(
    sys.platform == "win32", reason="not on Windows: it has no such terminal"
)


@pytest.fixture
def sandbox():
    """A ready account."""
    with Sandbox() as opened:
        yield opened


@pytest.fixture
def block(sandbox):
    """What a class page shows of that account."""
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    return f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"


@posix
def test_a_block_that_is_pasted_into_a_terminal_ends_with_ctrl_d_and_the_question_is_asked(
    block, monkeypatch, capsys
):
    """A terminal that waits without a word looks as if it hung; who has pasted must be able to answer the next question."""
    ours, theirs = os.openpty()
    os.write(ours, f"{block}\x04y\n".encode())
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)

        code = run(["init", "--paste"])

    os.close(ours)
    shown = capsys.readouterr()
    profile = Home.of(os.environ).config().profile("default")
    assert 0 == code
    assert shown.err.startswith("Paste the block, then Enter and Ctrl-D\nAccount ")
    assert "two narrow roles in this account?" in shown.err
    assert ("gpulab", True) == (profile.aws_profile, profile.keep_bucket.startswith("gpulab-"))


def test_the_example_with_a_pipe_asks_nobody(block, monkeypatch, capsys):
    """`pbpaste | gpulab init --paste --yes` stands in the help; where nobody can answer, nobody is told to paste."""
    reader, writer = os.pipe()
    os.write(writer, block.encode())
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdin", pipe)

        code = run(["init", "--paste", "--yes"])

    shown = capsys.readouterr()
    assert 0 == code
    assert shown.err.startswith("Account ")
    assert "kept work    s3://gpulab-" in shown.out
