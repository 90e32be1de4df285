"""Lab environments: what is shipped, what a course adds, and what is said when a folder is not right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gpulab.bootstrap import environment_names, load_environment
from gpulab.errors import WrongUsage

PIN = f"# python: >=3.12,<3.13\nnumpy==2.4.6 --hash=sha256:{'a' * 64}\n"


def a_folder(tmp_path, name="bio", *, description='title = "Biology"\npython = "3.12"\n', lock=PIN):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "environment.toml").write_text(description)
    (folder / "cpu.lock").write_text(lock)
    return tmp_path


def test_tensorflow_is_where_it_is_promised_and_nowhere_else():
    """tf2-small must be up in seconds, so half a gigabyte of TensorFlow must not slip into it."""
    tensorflow = {
        (name, has_gpu): [
            pin.name
            for pin in load_environment(name).kernel(has_gpu=has_gpu).pins
            if pin.name.startswith("tensorflow")
        ]
        for name in ("tf2", "tf2-small")
        for has_gpu in (True, False)
    }

    assert {
        ("tf2", True): ["tensorflow"],
        ("tf2", False): ["tensorflow-cpu"],
        ("tf2-small", True): [],
        ("tf2-small", False): [],
    } == tensorflow


@pytest.mark.parametrize("name", environment_names())
def test_every_shipped_environment_says_what_it_costs_to_start(name):
    """`env ls` shows the download; without it a student on a small link finds out by waiting."""
    environment = load_environment(name)

    assert [] == [
        lock
        for lock in (environment.server, environment.cpu, environment.gpu)
        if not lock.download_mib
    ]
    assert environment.uv.startswith("uv==")
    assert "\n" not in environment.uv


@pytest.mark.parametrize("name", environment_names())
def test_no_shipped_lock_is_older_than_120_days(name):
    """Old pins collect known holes: `python scripts/locks.py` renews them and prints the difference."""
    oldest = datetime.now(UTC).date() - timedelta(days=120)
    environment = load_environment(name)

    old = [
        lock.locked_on
        for lock in (environment.server, environment.core_server, environment.cpu, environment.gpu)
        if not lock.locked_on or lock.locked_on < oldest
    ]

    assert [] == old or environment.experimental != ""


def test_tensorflow_1_for_a_gpu_is_the_same_but_for_tensorflow_itself():
    """What was run on a CPU says something about the other one only as long as nothing else differs."""
    environment = load_environment("tf1-legacy")
    cpu, gpu = (
        {(p.name, p.version) for p in environment.kernel(has_gpu=g).pins} for g in (False, True)
    )

    assert {("tensorflow", "1.15.5")} == cpu - gpu
    assert {("tensorflow-gpu", "1.15.5")} == gpu - cpu


def test_a_course_brings_its_own(tmp_path):
    """A course's folder beside its roster is enough; nothing has to be installed."""
    folder = a_folder(tmp_path)

    environment = load_environment("bio", [folder])

    assert ("Biology", ">=3.12,<3.13") == (environment.title, environment.cpu.python)
    assert environment.cpu == environment.kernel(has_gpu=True)
    assert "bio" in environment_names([folder])


def test_a_course_may_replace_a_shipped_one(tmp_path):
    """A course that pins its own tf2 must get it, not ours."""
    assert "Biology" == load_environment("tf2", [a_folder(tmp_path, "tf2")]).title


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"description": "title = "}, "environment.toml is not TOML"),
        ({"description": "x = 1\n"}, "environment.toml has no title"),
        ({"lock": "numpy==2\n"}, "cpu.lock has a line that is not an exact, hashed pin"),
    ],
)
def test_a_folder_that_is_not_right_is_named(tmp_path, changes, said):
    """A TA fixes a file by its name and reason, not by a traceback."""
    folder = a_folder(tmp_path, **changes)

    with pytest.raises(WrongUsage, match=said):
        load_environment("bio", [folder])


def test_an_unknown_name_is_answered_with_the_known_ones():
    """A typing mistake should cost one line."""
    with pytest.raises(WrongUsage, match="there is no environment 'tf3'") as refused:
        load_environment("tf3")

    assert "Did you mean `tf2`? There are tf1-legacy, tf2, tf2-small" == refused.value.hint


def test_a_name_that_is_near_none_is_answered_without_a_guess():
    """A guess at `tf2` would be no help to whoever asked for PyTorch."""
    with pytest.raises(WrongUsage) as refused:
        load_environment("pytorch")

    assert refused.value.hint.startswith("There are ")
