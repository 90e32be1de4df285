"""A lab's notebooks and data sets on an instance: a real git repository on this disk, a student who edits, a TA who publishes anew."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from gpulab.agent import lab
from gpulab.agent.lab import Place, Problem, bring, fetch_all, fetch_one
from gpulab.launch.running import lab_folder

_WHO = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@t",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@t",
}


@pytest.fixture
def no_pauses(monkeypatch):
    """Tries without waiting in between."""
    monkeypatch.setattr(lab.time, "sleep", lambda seconds: None)


@pytest.fixture
def place(tmp_path, no_pauses) -> Place:
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work", tmp_path / "cache")


class Upstream:
    """The TA's repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        # GitHub gives any commit by its id; git's own default does not.
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.folder), *words],
            env={**os.environ, **_WHO, "GIT_CONFIG_GLOBAL": os.devnull},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def publish(self, **files: str) -> str:
        """Commit files, named with `__` for the slash and `_` for the dot; returns the commit."""
        for name, text in files.items():
            path = self.folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def named(self, commit: str = "", folder: str = "", **more) -> dict:
        return {"repository": self.folder.as_uri(), "commit": commit, "folder": folder, **more}


@pytest.fixture
def upstream(tmp_path) -> Upstream:
    return Upstream(tmp_path / "deep-learning")


def shown(place: Place) -> dict[str, str]:
    """Every file a student sees in the work folder."""
    files = (p for p in place.work.rglob("*") if p.is_file())
    names = {str(p.relative_to(place.work)): p.read_text() for p in files}
    return {name: text for name, text in names.items() if not name.startswith(".gpulab")}


def test_the_labs_folder_comes_with_what_lies_beside_it_on_the_way_up(place, upstream):
    """Notebooks of the course import `utils.py` of the parent folder; other weeks are not wanted."""
    commit = upstream.publish(
        README_md="r", labs__utils_py="u", labs__one__a_ipynb="{}", labs__two__b_ipynb="{}"
    )

    said = bring(place, upstream.named(commit, "labs/one"))

    assert {
        "deep-learning/README.md": "r",
        "deep-learning/labs/utils.py": "u",
        "deep-learning/labs/one/a.ipynb": "{}",
    } == shown(place)
    assert f"~/work/deep-learning/labs/one is at {commit[:7]}: 3 new" == said


@pytest.mark.parametrize(
    ("asked", "expected"), [("labs/one/", "deep-learning/labs/one"), ("", "deep-learning")]
)
def test_the_labs_folder_is_written_down_for_push_and_pull(place, upstream, asked, expected):
    """`gpulab pull --lab` in ten weeks, from another computer: only the work itself still knows the folder."""
    upstream.publish(labs__one__a_ipynb="{}", labs__two__b_ipynb="{}")

    bring(place, upstream.named(folder=asked))

    said = (place.work / lab_folder.FILE).read_bytes()
    assert expected == lab_folder.read(said, name="week1")
    assert (place.work / expected).is_dir()


def test_the_named_commit_comes_and_not_the_newest(place, upstream):
    """A lab is what the TA tested."""
    old = upstream.publish(a_py="old")
    upstream.publish(a_py="new")

    bring(place, upstream.named(old))

    assert {"deep-learning/a.py": "old"} == shown(place)


def test_without_a_commit_the_default_branch_is_followed(place, upstream):
    """The shortest command should work."""
    upstream.publish(a_py="one")
    bring(place, upstream.named())
    upstream.publish(a_py="two")

    said = bring(place, upstream.named())

    assert {"deep-learning/a.py": "two"} == shown(place)
    assert said.endswith("0 new, 1 renewed")


def test_what_the_student_changed_is_never_overwritten(place, upstream):
    """An evening's solution must survive the TA's correction of a typing mistake."""
    upstream.publish(a_py="first\n")
    bring(place, upstream.named())
    (place.work / "deep-learning/a.py").write_text("my solution\n")
    new = upstream.publish(a_py="corrected\n")

    said = bring(place, upstream.named())

    files = shown(place)
    assert "my solution\n" == files["deep-learning/a.py"]
    assert "corrected\n" == files[f"deep-learning/a.new-{new[:7]}.py"]
    assert (
        f"| a.py | a.new-{new[:7]}.py | they contradict each other |"
        in files["deep-learning/NEW-VERSIONS.md"]
    )
    assert "1 you changed stay yours, the new ones lie beside, see NEW-VERSIONS.md" in said


def test_a_clean_merge_of_both_is_offered(place, upstream):
    """Student and TA mostly change different cells; then nobody has to copy by hand."""
    text = "".join(f"line {n}\n" for n in range(20))
    upstream.publish(a_py=text)
    bring(place, upstream.named())
    (place.work / "deep-learning/a.py").write_text(text.replace("line 2\n", "mine\n"))
    new = upstream.publish(a_py=text.replace("line 17\n", "theirs\n"))

    bring(place, upstream.named())

    merged = shown(place)[f"deep-learning/a.merged-{new[:7]}.py"]
    assert text.replace("line 2\n", "mine\n").replace("line 17\n", "theirs\n") == merged


def test_a_merge_that_is_no_notebook_any_more_is_not_offered(place, upstream):
    """Lines of JSON can be merged into something JupyterLab refuses to open."""
    rows = ["[\n", *(f"{n},\n" for n in range(20)), "20\n", "]\n"]
    upstream.publish(a_ipynb="".join(rows))
    bring(place, upstream.named())
    (place.work / "deep-learning/a.ipynb").write_text("".join(rows[:3] + rows[4:]))
    new = upstream.publish(a_ipynb="".join(rows).replace("18,\n", "18\n"))

    bring(place, upstream.named())

    assert f"deep-learning/a.new-{new[:7]}.ipynb" in shown(place)
    assert f"deep-learning/a.merged-{new[:7]}.ipynb" not in shown(place)


def test_the_same_offer_is_made_once(place, upstream):
    """Who deletes the new version has decided."""
    upstream.publish(a_py="first\n")
    bring(place, upstream.named())
    (place.work / "deep-learning/a.py").write_text("mine\n")
    new = upstream.publish(a_py="second\n")
    bring(place, upstream.named())
    (place.work / f"deep-learning/a.new-{new[:7]}.py").unlink()

    bring(place, upstream.named())

    assert f"deep-learning/a.new-{new[:7]}.py" not in shown(place)
    assert "mine\n" == shown(place)["deep-learning/a.py"]


def test_a_file_that_was_there_before_is_the_students(place, upstream):
    """Work kept from another computer may have the same name; nothing is known of it."""
    (place.work / "deep-learning").mkdir()
    (place.work / "deep-learning/a.py").write_text("mine\n")
    commit = upstream.publish(a_py="theirs\n")

    bring(place, upstream.named(commit))

    assert "mine\n" == shown(place)["deep-learning/a.py"]
    assert "theirs\n" == shown(place)[f"deep-learning/a.new-{commit[:7]}.py"]


def test_on_a_new_instance_the_kept_work_is_still_known(place, upstream, tmp_path):
    """What was delivered is written in the work folder, so that it travels with the work; the cache does not."""
    upstream.publish(a_py="first\n", b_py="first\n")
    bring(place, upstream.named())
    (place.work / "deep-learning/a.py").write_text("mine\n")
    upstream.publish(a_py="second\n", b_py="second\n")

    bring(Place(place.work, tmp_path / "another cache"), upstream.named())

    assert ("mine\n", "second\n") == (
        shown(place)["deep-learning/a.py"],
        shown(place)["deep-learning/b.py"],
    )


def test_what_was_deleted_comes_back(place, upstream):
    """The way to a fresh copy is to delete or rename one's own."""
    upstream.publish(a_py="first\n")
    bring(place, upstream.named())
    (place.work / "deep-learning/a.py").rename(place.work / "deep-learning/mine.py")

    bring(place, upstream.named())

    assert {"deep-learning/a.py", "deep-learning/mine.py"} == set(shown(place))


def test_links_and_paths_into_our_own_folder_are_left_out(place, upstream, tmp_path):
    """A repository must not write outside its folder, whatever its author had in mind."""
    (upstream.folder / "out").symlink_to(tmp_path)
    commit = upstream.publish(_gpulab__x="bad", a_py="good")

    said = bring(place, upstream.named(commit))

    assert {"deep-learning/a.py": "good"} == shown(place)
    assert said.endswith("2 links, submodules or blocked paths left out")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", ".git/hooks/x", "a/.gpulab/x", ""]
)
def test_paths_that_lead_elsewhere_are_not_safe(path):
    """The last guard if git itself lets one through."""
    assert not lab.is_safe(path)


def test_a_folder_in_the_way_costs_one_file_and_not_the_lab(place, upstream):
    """The student has a folder where the repository has a file."""
    (place.work / "deep-learning/a.py/mine").mkdir(parents=True)
    upstream.publish(a_py="x", b_py="y")

    bring(place, upstream.named())

    assert "y" == shown(place)["deep-learning/b.py"]


@pytest.mark.parametrize(
    ("commit", "folder", "said"),
    [
        ("", "labs/nine", "has no folder labs/nine"),
        ("f" * 40, "", "has no commit ffff"),
        ("nobranch", "", "couldn't find remote ref nobranch"),
        ("--upload-pack=touch", "", "is no commit"),
    ],
)
def test_what_cannot_be_had_is_said_and_changes_nothing(place, upstream, commit, folder, said):
    """The TA mistyped course.toml; the student must be able to say what is wrong."""
    upstream.publish(a_py="x")

    with pytest.raises(Problem, match=said):
        bring(place, upstream.named(commit, folder))

    assert {} == shown(place)


def test_a_server_that_gives_no_single_commits_is_asked_for_its_branches(place, upstream):
    """Not every git server is GitHub."""
    upstream.git("config", "uploadpack.allowAnySHA1InWant", "false")
    old = upstream.publish(a_py="old")
    upstream.publish(a_py="new")

    bring(place, {**upstream.named(old), "repository": upstream.folder.as_uri()})

    assert {"deep-learning/a.py": "old"} == shown(place)


def a_data_set(serve, content="1,2,3\n"):
    service = serve(**{"/data/points.csv": content})
    return f"{service.url}/data/points.csv", hashlib.sha256(content.encode()).hexdigest(), service


def test_a_data_set_is_fetched_once_and_shown_in_the_work_folder(place, upstream, serve):
    """Three labs read the same file; it is downloaded on the first day."""
    upstream.publish(a_py="x")
    url, sha256, service = a_data_set(serve)

    said = [fetch_all(place, upstream.named(data=[[url, sha256]])) for _ in range(2)]

    assert ["1 data sets in ~/work/data"] * 2 == said
    assert "1,2,3\n" == (place.work / "data/points.csv").read_text()
    assert 1 == len(service.asked)


def test_a_repository_names_its_own_data(place, upstream, serve):
    """The list belongs to the commit it was tested with; nobody types sums into course.toml."""
    url, sha256, _ = a_data_set(serve)
    listed = json.dumps([{"url": url, "sha256": sha256}])
    (upstream.folder / "week1").mkdir()
    (upstream.folder / "week1/gpulab-data.json").write_text(listed)
    upstream.publish(a_py="x")

    fetch_all(place, upstream.named(folder="week1"))

    assert (place.work / "data/points.csv").exists()


def test_a_file_that_is_not_what_was_named_is_refused(place, serve):
    """Somebody replaced it at its address; training on it would be a wrong result, or worse."""
    url, _, _ = a_data_set(serve)

    with pytest.raises(Problem, match="is not the one that was named"):
        fetch_one(place, url, "0" * 64)

    assert [] == [p for p in place.cache.rglob("*") if p.is_file()]


def test_one_that_fails_does_not_cost_the_others(place, upstream, serve):
    """Phase `data` says which one; the notebook that needs another one runs."""
    upstream.publish(a_py="x")
    url, sha256, _ = a_data_set(serve)

    with pytest.raises(Problem, match=r"1 of 2 data sets are here; gone\.bin: .*404"):
        fetch_all(
            place,
            upstream.named(data=[[url.replace("points.csv", "gone.bin"), sha256], [url, sha256]]),
        )

    assert (place.work / "data/points.csv").exists()


def test_the_students_own_file_of_that_name_stays(place, upstream, serve):
    """Nothing of ours replaces what is there."""
    upstream.publish(a_py="x")
    url, sha256, _ = a_data_set(serve)
    (place.work / "data").mkdir()
    (place.work / "data/points.csv").write_text("mine")

    fetch_all(place, upstream.named(data=[[url, sha256]]))

    assert "mine" == (place.work / "data/points.csv").read_text()


def test_an_address_without_https_is_refused(place):
    """Anyone on the way could answer; the sum would catch it, a gigabyte later."""
    with pytest.raises(Problem, match="needs an https address"):
        fetch_one(place, "http://example.org/x", "0" * 64)


def test_the_word_over_ssh_brings_notebooks_and_leaves_the_data_to_a_child(
    upstream, tmp_path, monkeypatch, capsys
):
    """`gpulab up` must not wait for gigabytes; what went wrong lies where the data should be."""
    upstream.publish(a_py="x")
    (tmp_path / "etc/gpulab").mkdir(parents=True)
    (tmp_path / "etc/gpulab/spec.json").write_text('{"user": "ubuntu"}')
    asked = upstream.named(data=[["https://x.invalid/y", "nonsense"]])

    code = lab.main(["--root", str(tmp_path), "lab", json.dumps(asked)])

    failed = tmp_path / "home/ubuntu/work/data/NOT-FETCHED.txt"
    until = time.monotonic() + 20
    while not failed.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert 0 == code
    assert "1 new" in capsys.readouterr().out
    assert (
        "0 of 1 data sets are here; y: it needs an https address and a sha256\n"
        == failed.read_text()
    )


def test_a_specification_without_notebooks_is_an_error_in_words(tmp_path, capsys):
    """Someone types the word by hand."""
    (tmp_path / "etc/gpulab").mkdir(parents=True)
    (tmp_path / "etc/gpulab/spec.json").write_text('{"user": "ubuntu"}')

    code = lab.main(["--root", str(tmp_path), "lab"])

    assert (1, "KeyError: 'notebooks'\n") == (code, capsys.readouterr().err)
