"""`gpulab course`: files many people edit, checked before the term."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import jsonschema
import pytest

from gpulab.cli.main import run
from gpulab.course.schema import json_schema

EXAMPLE = Path(__file__).parents[2] / "courses" / "02456-2017"


@pytest.fixture
def course(tmp_path, capsys):
    """A new course in a folder."""
    run(["course", "new", str(tmp_path / "dl"), "--name", "Deep Learning"])
    capsys.readouterr()
    return tmp_path / "dl"


def test_a_new_course_is_sound(course, capsys):
    """The first minute of a teacher: write, check."""
    code = run(["course", "check", "--course", str(course)])

    captured = capsys.readouterr()
    assert 0 == code
    assert "dl: 1 lab, 0 students, nothing wrong\n" == captured.out


def test_git_sees_only_the_plan_of_a_course_that_was_taught(course):
    """`git add .` after the first lab must not publish addresses, account numbers or anybody's notebooks."""
    written = [
        "templates/s171000.template.json",
        "handed-in/week4/s171000/lab.ipynb",
        "to-grade/week4/s171000/lab.ipynb.html",
    ]
    for name in written:
        (course / name).parent.mkdir(parents=True)
        (course / name).write_text("a student's")

    git = ["git", "-C", str(course)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert [".gitignore", "course.toml"] == listed.stdout.split()
    # The guide tells a teacher to write into these folders, so the two must agree.
    guide = (EXAMPLE.parents[1] / "docs" / "teaching.md").read_text(encoding="utf-8")
    named = set(re.findall(r"gpulab course enrol (\w+)", guide))
    named |= set(re.findall(r"collect week4 ([\w-]+)/", guide))
    named |= set(re.findall(r"--hand-in ([\w-]+)/", guide))
    assert {name.split("/")[0] for name in written} == named


def test_a_course_that_is_there_is_never_overwritten(course, capsys):
    """Typing `new` again must not cost the semester's plan."""
    (course / "course.toml").write_text("mine")

    code = run(["course", "new", str(course)])

    assert 2 == code
    assert "holds a course already" in capsys.readouterr().err
    assert "mine" == (course / "course.toml").read_text()


@pytest.mark.parametrize("name", [".gitignore", "roster.csv", "course.toml"])
def test_a_new_course_that_was_cut_short_is_completed_by_the_same_command(
    name, tmp_path, monkeypatch, capsys
):
    """Half a course has no .gitignore: the first roster that is filled in would go into Git, with everybody's address."""
    folder, really = tmp_path / "dl", os.replace

    def full(source, target, **more):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(source, target, **more)

    monkeypatch.setattr(os, "replace", full)
    cut_short = run(["course", "new", str(folder)])
    monkeypatch.setattr(os, "replace", really)

    code = run(["course", "new", str(folder)])

    assert (1, 0) == (cut_short, code), capsys.readouterr().err
    assert {".gitignore", "course.toml", "roster.csv"} == {p.name for p in folder.iterdir()}


def test_check_names_every_problem_of_both_files_at_once(course, capsys):
    """A teacher mends a file in one go; line numbers lead the editor there."""
    (course / "course.toml").write_text(
        (course / "course.toml").read_text().replace("timezone", "timezon")
    )
    plan = run(["course", "check", "--course", str(course)]), capsys.readouterr()
    (course / "course.toml").write_text(
        (course / "course.toml").read_text().replace("timezon", "timezone")
    )
    (course / "roster.csv").write_text(
        "id,name,email,account\ns1,Ann,nope,111122223333\n,Bo,b@x.example,123\ns3,Cy,c@x.example,\n"
    )

    people = run(["course", "check", "--course", str(course)]), capsys.readouterr()

    assert (2, "course.toml:6: unknown key `course.timezon`\n    Did you mean `timezone`?\n") == (
        plan[0],
        plan[1].out,
    )
    assert [2, 3, 3, 4] == [
        int(line.split(":")[1]) for line in people[1].out.splitlines() if line[0] == "r"
    ]
    assert "s3 has neither `account`, `role` nor `profile`" in people[1].out
    assert people[1].err.startswith("error: 4 problems in roster.csv\n")
    assert 2 == people[0]


def test_check_json_has_file_line_text_and_hint(course, capsys):
    """Editors and CI read it."""
    (course / "roster.csv").write_text("id,name\n")

    code = run(["course", "check", "--course", str(course), "--json"])

    found = json.loads(capsys.readouterr().out)
    assert 2 == code
    assert ["problems", "students"] == sorted(found)
    assert ["file", "hint", "line", "text"] == sorted(found["problems"][0])


def test_the_schema_describes_the_example(capsys):
    """What editors complete is what the reader accepts."""
    code = run(["course", "schema"])

    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert 0 == code
    assert json.loads(json_schema()) == schema


def test_show_is_in_the_courses_own_time(capsys):
    """13:00 is 13:00 in the auditorium, wherever the laptop is."""
    code = run(["course", "show", "--course", str(EXAMPLE)])

    out = capsys.readouterr().out
    assert 0 == code
    assert "week4    Mon 25 Sep 13:00-17:00" in out
    assert "12 students in 3 groups" in out
    assert "synopsis      Wed 01 Nov 23:59  Project synopsis" in out


def test_show_json_tells_no_name(capsys):
    """What is piped elsewhere must not carry the roster."""
    run(["course", "show", "--course", str(EXAMPLE), "--json"])

    out = capsys.readouterr().out
    assert "Anna" not in out
    assert "student.example" not in out
    assert 12 == len(json.loads(out)["owners"])


def test_the_key_of_the_ids_lies_in_the_users_folder_for_its_owner_only(course):
    """Whoever has the key and a list of addresses can undo the opaque ids."""
    run(["course", "check", "--course", str(course)])

    file = Path(os.environ["GPULAB_HOME"]) / "courses" / "dl" / "secret"
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 65 == len(file.read_text())
    assert ["secret"] == [f.name for f in file.parent.iterdir()]


def test_a_key_that_others_may_read_is_refused(course, capsys):
    """A shared home folder must not give the roster away unnoticed."""
    run(["course", "check", "--course", str(course)])
    file = Path(os.environ["GPULAB_HOME"]) / "courses" / "dl" / "secret"
    file.chmod(0o644)
    capsys.readouterr()

    code = run(["course", "check", "--course", str(course)])

    assert 1 == code
    assert f"`chmod 600 {file}` closes it" in capsys.readouterr().err


def test_a_broken_key_is_never_replaced_by_a_new_one(course, capsys):
    """A new key would give every student another id, and orphan what runs."""
    run(["course", "check", "--course", str(course)])
    file = Path(os.environ["GPULAB_HOME"]) / "courses" / "dl" / "secret"
    file.write_text("")
    capsys.readouterr()

    code = run(["course", "check", "--course", str(course)])

    assert 1 == code
    assert "Bring it back from a backup" in capsys.readouterr().err
    assert "" == file.read_text()


def test_without_a_course_the_hint_says_how_to_begin(tmp_path, monkeypatch, capsys):
    """The first command somebody types in the wrong folder."""
    monkeypatch.chdir(tmp_path)

    code = run(["course", "show"])

    captured = capsys.readouterr()
    assert 2 == code
    assert "`gpulab course new FOLDER` writes one" in captured.err


@pytest.mark.parametrize("way", ["above", "environment"])
def test_the_course_is_found_from_below_or_from_the_environment(course, way, monkeypatch, capsys):
    """Like Git: one need not stand in the right folder."""
    (course / "notes").mkdir()
    monkeypatch.chdir(course / "notes" if way == "above" else course.parent)
    if way == "environment":
        monkeypatch.setenv("GPULAB_COURSE", str(course))

    code = run(["course", "check"])

    assert 0 == code
    assert "dl: 1 lab," in capsys.readouterr().out


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_profile_asked_for_stands_for_the_courses(course, way, monkeypatch, capsys):
    """A rehearsal on the sandbox must not reach the account that the file names."""
    words = ["course", "show", "--course", str(course), "--json"]
    if way == "environment":
        monkeypatch.setenv("GPULAB_PROFILE", "sandbox")
    code = run(words if way == "environment" else ["--profile", "sandbox", *words])

    assert 0 == code
    assert "sandbox" == json.loads(capsys.readouterr().out)["course"]["accounts"]["profile"]
