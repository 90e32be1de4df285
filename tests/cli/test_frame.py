"""The frame of the command line: errors, exit codes, streams, completion."""

import os
import subprocess
import sys

import pytest

from gpulab.cli.context import SANDBOX
from gpulab.cli.main import COMMANDS, run
from gpulab.sandbox import Sandbox
from gpulab.sandbox.control import PROFILE
from gpulab.store.config import change_profile
from gpulab.store.home import Home
from gpulab.store.names import remember_names


def test_an_unknown_command_names_the_nearest(capsys):
    """`gpulab sotp` on a Monday afternoon must not cost a minute."""
    code = run(["sotp"])

    captured = capsys.readouterr()
    assert (2, "") == (code, captured.out)
    assert (
        "error: there is no command `sotp`\n\nhint: Did you mean `gpulab stop`?\n" == captured.err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--nope"], "no such option"),
        (["up", "--hours", "soon"], "`soon` is not a duration"),
        (["up", "--hours", "-1"], "`-1` is not a duration"),
        (["up", "--max-price", "free"], "`free` is not an amount"),
        (["up", "--max-price", "0"], "above 0"),
        (["up", "Bad Name"], "cannot be a name"),
        (["up", "--gpu", ""], "gpulab knows no GPU ``"),
        (["up", "--env", ""], "there is no environment ''"),
        (["up", "../x"], "cannot be a name"),
        (["up", "--gpu", "T4", "--type", "g4dn.xlarge"], "exclude each other"),
        (["up", "--until", "25:99"], "is not a time"),
        (["up", "--until", "2020-01-01T00:00"], "lies in the past"),
        (["extend"], "name one of `--hours`, `--by`, `--until` and `--idle`"),
        (["--profile", "nope", "ls"], "there is no profile `nope`"),
        (["--profile", "sandbox", "ls"], "there is no profile `sandbox`"),
        (["push", "x", "/nowhere/at/all"], "does not exist"),
        (["completion", "tcsh"], "is not one of"),
        (["completion"], "missing argument 'SHELL'. Choose from: bash, zsh, fish"),
        (["rm"], "missing argument"),
        (["up", "--disk", "big"], "invalid value for '--disk': 'big' is not a whole number"),
        (["stop", "week4", "--all"], "`week4` and `--all` exclude each other"),
        (["ls", "--json", "--csv"], "`--json` and `--csv` exclude each other"),
        (["prices", "--csv", "--json"], "`--json` and `--csv` exclude each other"),
        (["init", "--paste", "--aws-profile", "me"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line_naming_it_and_exit_2(words, said, capsys):
    """A script tells a typing mistake from an outage by the exit code."""
    code = run(words)

    captured = capsys.readouterr()
    assert 2 == code
    assert captured.err.startswith("error: ")
    assert said in captured.err.lower() or said in captured.err
    assert "\n" not in captured.err.partition("\n\nhint: ")[0].rstrip("\n")
    assert "Traceback" not in captured.err
    assert "" == captured.out


def test_whoever_names_the_sandbox_before_it_runs_is_told_how_to_start_it(capsys):
    """`GPULAB_PROFILE=sandbox` is the README's second line, and some begin with it."""
    run(["--profile", "sandbox", "up"])

    assert "hint: `gpulab sandbox start` makes it" in capsys.readouterr().err
    assert SANDBOX == PROFILE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--region", "us-east-11"], "AWS has no region `us-east-11`"),
        (["--aws-profile", "curse"], "the AWS configuration has no profile `curse`"),
        (["--budget", "1e9"], "`profiles.default.budget_usd` must be a number from 0 to 1,000,000"),
        (["--course", "a\x07"], "`profiles.default.course` holds characters that cannot be seen"),
    ],
)
def test_what_was_set_up_survives_a_slip_in_the_next_init(
    words, said, monkeypatch, tmp_path, capsys
):
    """A profile that leads nowhere, or a file that cannot be read, would stop every command that comes after."""
    (tmp_path / "aws").write_text("[profile course]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    config = Home.of(os.environ).config_file
    change_profile(config, "default", {"aws_profile": "course", "budget_usd": "60"})
    before = config.read_bytes()

    code = run(["init", "--no-resources", *words])

    said_of_it = capsys.readouterr().err
    assert 2 == code
    assert said in said_of_it
    assert before == config.read_bytes()


def test_an_aws_profile_replaces_credentials_that_were_pasted(monkeypatch, tmp_path):
    """Whoever got an account of their own after the class's must not be told that their profile does not exist."""
    home = Home.of(os.environ)
    own = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(own))
    pasted = home.folder("default").root / "aws" / "credentials"
    change_profile(
        home.config_file, "default", {"aws_profile": "gpulab", "aws_credentials_file": str(pasted)}
    )

    with Sandbox():
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        keys = [f"{name.lower()} = {os.environ[name]}" for name in names]
        own.write_text("\n".join(["[mine]", *keys]))
        code = run(["init", "--no-resources", "--aws-profile", "mine"])

    profile = home.config().profile(None)
    assert (0, "mine", None) == (code, profile.aws_profile, profile.aws_credentials_file)


def test_a_broken_configuration_names_file_and_key(capsys):
    """The file is edited by hand."""
    home = Home.of(os.environ)
    change_profile(home.config_file, "default", {"gpu": "T4"})
    home.config_file.write_text(home.config_file.read_text() + "\nregoins = 3\n")

    code = run(["ls"])

    assert 2 == code
    assert f"{home.config_file}: unknown key `profiles.default.regoins`" in capsys.readouterr().err


def test_an_unexpected_failure_leaves_a_report_and_no_traceback(capsys, monkeypatch):
    """A student must never read our stack; a maintainer must be able to."""

    def explode(_self):
        raise RuntimeError("boom")

    monkeypatch.setattr("gpulab.store.home.Home.config", explode)
    code = run(["ls"])

    error = capsys.readouterr().err
    reports = list(Home.of(os.environ).errors.iterdir())
    assert 1 == code
    assert "Traceback" not in error
    assert str(reports[0]) in error
    assert "RuntimeError: boom" in reports[0].read_text()
    assert 0o600 == reports[0].stat().st_mode & 0o777


def test_help_of_the_group_imports_no_command(tmp_path):
    """`gpulab --help` must answer at once on a slow laptop."""
    probe = (
        "import sys; from gpulab.cli.main import run; run(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in ('boto3', 'botocore', 'paramiko', 'rich', 'jinja2', 'asyncio')])"
    )

    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )

    assert "[]" == result.stdout.splitlines()[-1]
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


def test_names_complete_from_the_local_cache(monkeypatch, capsys):
    """Completion that waits for the network is not completion."""
    remember_names(Home.of(os.environ).folder("default").cache, ["week4", "week5", "gan"])
    monkeypatch.setenv("_GPULAB_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "gpulab stop we")
    monkeypatch.setenv("COMP_CWORD", "2")

    with pytest.raises(SystemExit):
        run([])

    assert ["plain,week4", "plain,week5"] == capsys.readouterr().out.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_the_shells_own(shell, capsys):
    """A script for the wrong shell breaks the login."""
    code = run(["completion", shell])

    assert 0 == code
    assert "_GPULAB_COMPLETE" in capsys.readouterr().out


def test_fish_shows_the_whole_help_of_an_option(capsys):
    """Click's own script splits at each comma, so that `--gpu` would read "Which GPU: T4"."""
    run(["completion", "fish"])

    splits = [line.strip() for line in capsys.readouterr().out.splitlines() if " split " in line]
    assert ['set -l metadata (string split -m 1 "," $completion);'] == splits


def test_version_is_answered_before_anything_is_imported():
    """Scripts ask for it in a loop."""
    probe = "import sys; sys.argv = ['gpulab', '--version']; from gpulab.__main__ import main; main(); print('click' in sys.modules)"

    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )

    assert ["gpulab 0.1.0", "False"] == result.stdout.split("\n")[:2]
