"""The tutorial is a run and not a text: its commands exist, all of them are there, and what writes it shows what a terminal shows."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STUDENTS_DAY = """
    init doctor prices up ls show open ssh logs push pull extend stop rm sweep credit report completion
"""
SANDBOX = "start stop status log interrupt capacity price quota throttle fail mend env"


@pytest.fixture
def tutorial(monkeypatch) -> ModuleType:
    """The script, found the way Python finds it when it runs as one."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("tutorial")


@pytest.fixture
def terminal(monkeypatch) -> ModuleType:
    """What the script types into."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("terminal")


def written(tutorial, tmp_path, page: str) -> str:
    """Run a page of plain shell commands."""
    return tutorial.written(
        page, tutorial.Student(tmp_path, dict(os.environ)), tell=lambda text: None
    )


def test_the_tutorial_walks_through_every_command_of_a_students_day(tutorial):
    """A command that nobody sees at work is a command that nobody uses, or that broke unseen."""
    typed = [
        c for block in tutorial.blocks(tutorial.PAGE.read_text("utf-8")) for c in block.commands
    ]
    first = {tuple(command.split()[:2]) for command in typed if command.startswith("gpulab ")}
    sandbox = {c.split()[2] for c in typed if c.startswith("gpulab sandbox ")}

    assert [] == [name for name in STUDENTS_DAY.split() if ("gpulab", name) not in first]
    assert [] == [name for name in SANDBOX.split() if name not in sandbox]


def test_the_tutorial_says_when_and_from_what_it_was_made(tutorial):
    """A reader must be able to tell an old page from a program that changed."""
    page = tutorial.PAGE.read_text(encoding="utf-8")

    made = re.search(
        r"<!-- made -->\nAll of it is one run on (.*), in \d+ min, of commit (\w+)", page
    )
    assert made is not None
    assert re.fullmatch(r"\d{1,2} [A-Z][a-z]+ 20\d\d", made[1])
    assert re.fullmatch(r"[0-9a-f]{7,}", made[2])
    assert "`python3 scripts/tutorial.py`" in page


def test_no_output_of_the_tutorial_was_cut_by_hand(tutorial):
    """What is left out is counted in the page, and left out by the comment above the block, not by somebody's taste."""
    page = tutorial.PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"^```console\n(.*?)^```$", page, re.M | re.S)

    for block, text in zip(tutorial.blocks(page), shown, strict=True):
        assert block.start or " lines before]" not in text
        for output in re.split(r"^\$ .*\n", text, flags=re.M)[1:]:
            is_cut = re.search(r"^\[\.\.\. \d+ more lines\]$", output, re.M) is not None
            assert not is_cut or block.lines == len(output.splitlines()) - 1


def test_a_page_is_filled_with_what_its_commands_show(tutorial, tmp_path):
    """What a command printed last time, and what somebody edited since, is gone; prose and comments stay."""
    page = """\
Some words.

<!-- first until `echo ready` says `ready` -->
<!-- at `name? ` type `Ada` -->
<!-- says `hello Ada` -->
<!-- ends with 3 -->
```console
$ export GREETING=hello
$ read -p 'name? ' name; echo $GREETING $name; exit 3
an older answer
```

```
$ not typed
```
"""

    found = written(tutorial, tmp_path, page)

    filled = "$ read -p 'name? ' name; echo $GREETING $name; exit 3\nname? Ada\nhello Ada\n"
    assert page.replace(page[page.index("$ read") : page.index("```\n\n```\n")], filled) == found


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```console\n$ exit 4\n```\n", "`exit 4` ended with 4 instead of 0"),
        (
            "<!-- says `week4` -->\n```console\n$ echo week5\n```\n",
            "`echo week5` did not say `week4`",
        ),
        ("<!-- hide it -->\n```console\n$ true\n```\n", "nobody knows what to do with `hide it`"),
        ("```console\nno command\n```\n", "a block without a command"),
    ],
)
def test_a_page_that_is_not_true_any_more_is_not_written(tutorial, tmp_path, block, said):
    """A renamed flag must stop the writer, not end up in the page as an error message."""
    with pytest.raises(tutorial.Wrong, match=re.escape(said)):
        written(tutorial, tmp_path, block)


def test_a_long_output_is_cut_with_a_line_that_counts_the_rest(tutorial, tmp_path):
    """The reader must know that there is more; two lines are not worth the line that says so."""
    page = "<!-- show 2 lines -->\n```console\n$ seq 5\n$ seq 3\n```\n"

    text = written(tutorial, tmp_path, page)

    assert "$ seq 5\n1\n2\n[... 3 more lines]\n$ seq 3\n1\n2\n3\n```" in text


def test_what_was_shown_before_is_left_out_with_a_line_that_counts_it(tutorial, tmp_path):
    """A plan that is printed with every start is read once."""
    page = "<!-- show from `3` -->\n```console\n$ seq 4\n$ seq 2 4\n$ seq 2\n```\n"

    text = written(tutorial, tmp_path, page)

    assert "$ seq 4\n[... 2 lines before]\n3\n4\n$ seq 2 4\n2\n3\n4\n$ seq 2\n1\n2\n```" in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("  step ... 1 s\r\x1b[2K  step: done\r\n", "  step: done"),
        ("long line\rlost", "lost line"),
        ("old\r\n\x1b[2J\x1b[Hnew\x1b[K\r\n\x1b[J", "new"),
        ("\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J\x1b[HA\x1b[K\n\x1b[J", "A"),
        ("\x1b[1;31merror:\x1b[0m no\x07", "error: no"),
        ("\x1b]0;title\x07$ x\b \b", "$"),
    ],
)
def test_a_screen_is_what_is_left_of_everything_that_was_drawn(terminal, said, shown):
    """Steps redraw their line, and `gpulab ls -w` the screen; the page shows what a person sees in the end."""
    assert shown == terminal.screen(said)


def test_ctrl_c_reaches_the_command_and_a_silent_one_is_not_waited_for(terminal, tmp_path):
    """`gpulab ls -w` only ends so; and a page whose question never comes must not hang the writer."""
    typed = [terminal.Typed("waiting", terminal.CTRL_C)]
    here = {"folder": tmp_path, "environment": dict(os.environ)}

    ended = terminal.run("echo waiting; sleep 60", typed=typed, **here)
    with pytest.raises(terminal.TookTooLong, match="never showed `name`"):
        terminal.run(
            "echo hello; sleep 60", typed=[terminal.Typed("name", "x")], limit_s=0.5, **here
        )

    assert (130, "waiting\n^C") == (ended.exit_code, ended.shown)
