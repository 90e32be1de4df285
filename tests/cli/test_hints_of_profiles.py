"""Who works with a profile that is not the default one is told commands that work for it, and not for another account."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator

import pytest

from gpulab.cli.main import run
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock
from gpulab.store.config import change_profile
from gpulab.store.home import Home

KEYS = "[default]\naws_access_key_id=ASIAIOSFODNN7EXAMPLE\n"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A ready account, and a second profile beside the default one."""
    with Sandbox(clock=RunningClock()) as opened:
        home = Home.of(os.environ)
        for name in ("default", "course"):
            change_profile(home.config_file, name, {"regions": ["us-east-1"]})
        yield opened


def told(capsys: pytest.CaptureFixture[str], *command: str) -> set[str]:
    """Type a command that fails; return the commands for renewed credentials that its hint names."""
    assert run([*command]) in (1, 2, 5)
    said = capsys.readouterr()
    return set(re.findall(r"`(gpulab[^`]* init[^`]*)`", said.out + said.err))


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ([], "gpulab init --paste"),
        (["--profile", "default"], "gpulab init --paste"),
        (["--profile", "course"], "gpulab --profile course init --paste"),
    ],
)
def test_expired_credentials_are_renewed_for_the_profile_in_use(sandbox, capsys, typed, named):
    """Fresh keys pasted into another profile help nobody, and that profile now leads to the wrong account."""
    sandbox.expire_credentials()

    ways = [
        told(capsys, *typed, "ls"),
        told(capsys, *typed, "doctor"),
        told(capsys, *typed, "init", "--yes"),
    ]

    assert [{named}] * 3 == ways


def test_a_profile_of_the_environment_is_named_too(sandbox, capsys, monkeypatch):
    """The next terminal does not have it."""
    monkeypatch.setenv("GPULAB_PROFILE", "course")
    sandbox.expire_credentials()

    assert {"gpulab --profile course init --paste"} == told(capsys, "ls")


def test_the_profile_that_the_configuration_makes_the_default_needs_no_naming(sandbox, capsys):
    """`default_profile` says which one is meant; then the one that is called `default` is not."""
    file = Home.of(os.environ).config_file
    file.write_text('default_profile = "course"\n' + file.read_text())
    sandbox.expire_credentials()

    ways = [told(capsys, "ls"), told(capsys, "--profile", "default", "ls")]

    assert [{"gpulab init --paste"}, {"gpulab --profile default init --paste"}] == ways


@pytest.mark.parametrize(("profile", "option"), [("default", ""), ("course", "--profile course ")])
def test_without_credentials_both_ways_are_for_the_profile(
    sandbox, capsys, monkeypatch, profile, option
):
    """A new computer, and a configuration that came with the home folder."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    found = told(capsys, "--profile", profile, "ls")

    assert {f"gpulab {option}init", f"gpulab {option}init --paste"} == found


def test_a_block_that_was_cut_is_pasted_again_for_the_same_new_profile(
    sandbox, capsys, monkeypatch
):
    """The profile is not there yet; without its name the second attempt would overwrite the default one's credentials."""
    found = []
    for typed in (["--profile", "term2"], []):
        monkeypatch.setattr("sys.stdin", io.StringIO(KEYS))
        found.append(told(capsys, *typed, "init", "--paste"))

    assert [{"gpulab --profile term2 init --paste"}, {"gpulab init --paste"}] == found


def test_what_comes_after_init_is_for_the_same_profile(sandbox, capsys):
    """Whoever types the next commands as they stand checks and launches in the account that was set up."""
    codes = [run([*typed, "init", "--no-resources"]) for typed in (["--profile", "course"], [])]

    said = capsys.readouterr().err
    assert [0, 0] == codes
    assert "Next: `gpulab --profile course doctor`, then `gpulab --profile course up`;" in said
    assert "Next: `gpulab doctor`, then `gpulab up`;" in said


def test_the_guards_of_an_account_are_armed_with_the_courses_profile(
    sandbox, capsys, monkeypatch, tmp_path
):
    """The teacher's default profile may be their own account, where a budget for the class guards nothing."""
    folder = tmp_path / "dl"
    run(["course", "new", str(folder), "--shared"])
    monkeypatch.setenv("GPULAB_COURSE", str(folder))
    (folder / "roster.csv").write_text("id,name,email\ns0,N0,s0@x.example")
    plan = (folder / "course.toml").read_text()
    hints = []
    for profile in ("default", "course"):
        (folder / "course.toml").write_text(
            re.sub("(?m)^profile = .*$", f'profile = "{profile}"', plan)
        )
        capsys.readouterr()
        run(["course", "check", "--accounts", "--json"])
        hints += re.findall(r"`gpulab[^`]* arm [^`]*`", capsys.readouterr().out)

    arm = "guard arm --budget USD --email ADDRESS"
    assert [f"`gpulab {arm}`", f"`gpulab --profile course {arm}`"] == hints
