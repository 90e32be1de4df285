"""`gpulab env`: what a TA sees of the environments, and the exit code a script sees."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from gpulab.bootstrap import load_environment
from gpulab.cli.main import run
from gpulab.store.config import change_profile
from gpulab.store.home import Home


@pytest.fixture
def own(tmp_path):
    """A profile with a folder of environments of its own, one in it."""
    folder = tmp_path / "environments" / "bio"
    folder.mkdir(parents=True)
    (folder / "environment.toml").write_text('title = "Biology"\nbase = "tf2-small"\n')
    (folder / "requirements.txt").write_text("numpy\nlifelines\n")
    pins = load_environment("tf2-small").cpu.requirements()
    (folder / "cpu.lock").write_text(f"# locked-on: {datetime.now(UTC).date()}\n{pins}")
    change_profile(
        Home.of(os.environ).config_file, "default", {"environment_folders": [str(folder.parent)]}
    )
    return folder


def test_the_list_has_the_shipped_ones_and_the_courses_own(own, capsys):
    """Names are what `--env` takes, so all of them must be there."""
    code = run(["env", "ls", "--json"])

    rows = json.loads(capsys.readouterr().out)["environments"]
    assert 0 == code
    assert ["bio", "tf1-legacy", "tf2", "tf2-small"] == [row["name"] for row in rows]
    assert [
        "name",
        "title",
        "python",
        "packages",
        "download_mib",
        "installed_gib",
        "locked_on",
        "age_days",
        "base",
        "is_experimental",
    ] == list(rows[0])


def test_one_that_is_not_right_does_not_cost_the_list_of_the_others(own, capsys):
    """The folder that a TA is working on lies beside those the class uses today."""
    (own / "cpu.lock").unlink()

    code = run(["env", "ls", "--json"])

    listed = json.loads(capsys.readouterr().out)
    assert 0 == code
    assert ["tf1-legacy", "tf2", "tf2-small"] == [row["name"] for row in listed["environments"]]
    assert {"bio": f"{own / 'cpu.lock'} is missing"} == listed["unread"]


def test_the_list_for_people_says_what_is_experimental(capsys):
    """TensorFlow 1 without a GPU must not look like any other."""
    run(["env", "ls"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NAME")
    assert ["tf1-legacy"] == [line.split()[0] for line in lines if line.endswith("experimental")]


def test_show_names_every_pin_and_what_is_unverified(capsys):
    """Whoever asks "which numpy is it" reads one page."""
    code = run(["env", "show", "tf1-legacy"])

    said = capsys.readouterr().out
    assert 0 == code
    assert "  gym 0.9.4\n" in said
    assert "Experimental: It needs an image with Python 3.7" in said


def test_show_tells_jupyterlab_and_its_extensions_too(capsys):
    """What a student clicks on is in the server, not in the kernel; "is git in it" is asked before the course."""
    run(["env", "show", "tf2", "--json"])

    locks = {lock["variant"]: lock for lock in json.loads(capsys.readouterr().out)["locks"]}
    assert ["with a GPU", "without a GPU", "JupyterLab beside it"] == list(locks)
    assert {"jupyterlab", "jupyterlab-git"} <= set(locks["JupyterLab beside it"]["pins"])
    assert all(lock["installed_gib"] and lock["download_mib"] for lock in locks.values())


def test_check_finds_what_is_not_locked_and_exits_with_5(own, capsys):
    """CI of a course's repository runs it."""
    code = run(["env", "check", "bio"])

    captured = capsys.readouterr()
    assert 5 == code
    assert (
        "bio cpu.lock: lifelines is asked for and not in it\n  `gpulab env lock bio` makes the lock again\n"
        == captured.out
    )
    assert "error: problems in bio: 1" in captured.err


def test_a_folder_is_checked_and_shown_before_any_profile_names_it(own, capsys, monkeypatch):
    """`env lock` takes a folder, and whoever has just locked one types the same word behind `env check`."""
    change_profile(Home.of(os.environ).config_file, "default", {"environment_folders": None})
    monkeypatch.chdir(own.parent.parent)

    codes = [run(["env", "check", "environments/bio"]), run(["env", "show", str(own)])]

    said = capsys.readouterr()
    assert [5, 0] == codes
    assert "title      Biology" in said.out
    assert "error: problems in bio: " in said.err


def test_check_of_the_shipped_ones_finds_nothing(capsys):
    """What we ship is what everybody uses."""
    code = run(["env", "check", "tf2", "tf2-small", "tf1-legacy"])

    assert (0, "No problem in tf2, tf2-small, tf1-legacy\n") == (code, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env", "lock", "tf2"], "tf2 comes with gpulab and is locked already"),
        (["env", "lock", "nope"], "there is no environment 'nope'"),
        (["env", "lock", "."], "is no environment"),
        (["env", "show", "tf3"], "there is no environment 'tf3'"),
    ],
)
def test_a_wrong_place_is_answered_before_anything_is_asked(
    words, said, tmp_path, monkeypatch, capsys
):
    """A lock takes half a minute; a typing mistake should not."""
    monkeypatch.chdir(tmp_path)

    code = run(words)

    captured = capsys.readouterr()
    assert (2, "") == (code, captured.out)
    assert said in captured.err


def test_a_folder_that_cannot_be_locked_stays_as_it_was(tmp_path, capsys):
    """Half an environment would be in the way of the next try, and of the list."""
    folder = tmp_path / "bio"
    folder.mkdir()
    (folder / "requirements.txt").write_text("these are four words\n")

    code = run(["env", "lock", str(folder), "--base", "tf2-small"])

    assert 2 == code
    assert "no set of packages fulfils all wishes" in capsys.readouterr().err
    assert ["requirements.txt"] == [path.name for path in folder.iterdir()]
