"""Making and checking locks: what uv is asked, what a lock allows, what a course adds, what is said when it does not work."""

from __future__ import annotations

import json
import stat
import sys
from datetime import date

import pytest

from gpulab.bootstrap import load_environment, parse_lock
from gpulab.bootstrap.checking import fits_alone, problems, wishes
from gpulab.bootstrap.locking import difference, find_uv, renew
from gpulab.errors import SetupMissing, WrongUsage

TODAY = date(2026, 11, 23)
# Plays `uv pip compile`: one wheel a package, platform and Python; the versions come from a table, then from the constraints.
UV = """#!{python}
import json, hashlib, pathlib, sys
table = json.loads(pathlib.Path(__file__).with_name("index.json").read_text())
words = sys.argv[1:]
python, platform = words[words.index("--python-version") + 1], words[words.index("--python-platform") + 1]
fixed = dict(l.split("==") for l in pathlib.Path(words[words.index("--constraints") + 1]).read_text().split())
def names(path):
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            yield from names(path.parent / line[3:])
        elif line and not line.startswith("#"):
            yield line
files = [pathlib.Path(w) for w in words if w.endswith((".in", ".txt")) and "constraints" not in w]
wished = dict((l.split("==") + [""])[:2] for f in files for l in names(f))
out = []
for name, version in wished.items():
    if version and fixed.get(name, version) != version:
        sys.exit(f"Because you require {{name}}=={{version}} and {{name}}=={{fixed[name]}}, we can conclude nothing")
    chosen = fixed.get(name) or version or table[name]
    sha = hashlib.sha256(f"{{name}}{{chosen}}{{python}}{{platform}}".encode()).hexdigest()
    if name == "local":
        out.append(f'[[packages]]\\nname = "local"\\nversion = "1"\\n')
    else:
        out.append(f'[[packages]]\\nname = "{{name}}"\\nversion = "{{chosen}}"\\nwheels = [{{{{size = 1048576, hashes = {{{{sha256 = "{{sha}}"}}}}}}}}]\\n')
pathlib.Path(words[words.index("--output-file") + 1]).write_text("".join(out))
"""


@pytest.fixture
def uv(tmp_path):
    """A stand-in for uv and its index."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "index.json").write_text(
        json.dumps({"numpy": "2.4.6", "pandas": "3.1.1", "local": "1"})
    )
    program = tmp_path / "bin" / "uv"
    program.write_text(UV.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return find_uv(str(tmp_path / "bin"))


@pytest.fixture
def course(tmp_path):
    """A base of one package and a folder with a wish on top of it."""
    base, bio = tmp_path / "course" / "ground", tmp_path / "course" / "bio"
    base.mkdir(parents=True)
    bio.mkdir()
    (base / "environment.toml").write_text(
        'title = "Ground"\n[cpu]\nrequirements = "requirements.in"\n'
        'pythons = ["3.11", "3.12"]\nplatforms = ["x86_64-manylinux_2_28"]\n'
    )
    (base / "requirements.in").write_text("numpy\n")
    (base / "cpu.lock").write_text(
        f"# locked-on: 2026-11-20\n# download-mib: 9\nnumpy==2.4.1 --hash=sha256:{'a' * 64}\n"
    )
    (bio / "environment.toml").write_text('title = "Biology"\nbase = "ground"\n')
    (bio / "requirements.txt").write_text("pandas\n")
    return base.parent


def test_a_lock_allows_one_file_for_each_python_and_no_other(uv, course):
    """A hash that is not in the lock is not installed, whatever the index offers that day."""
    (one,) = renew(course / "ground", uv=uv, today=TODAY)

    assert ("cpu", ("numpy 2.4.1 -> 2.4.6",)) == (one.variant, one.changes)
    assert 2 == len(one.lock.pins[0].hashes)
    assert (">=3.11,<3.13", 1, TODAY) == (
        one.lock.python,
        one.lock.download_mib,
        one.lock.locked_on,
    )
    assert one.lock == parse_lock(one.text)


def test_an_environment_on_top_of_another_keeps_its_versions(uv, course):
    """What was tested below stays what it was; only the course's own wishes are new, and only they are shown."""
    (one,) = renew(course / "bio", uv=uv, today=TODAY, extra_folders=[course])

    assert {"numpy": "2.4.1", "pandas": "3.1.1"} == {p.name: p.version for p in one.lock.pins}
    assert ("+ pandas 3.1.1",) == tuple(line for line in one.changes if "other files" not in line)


def test_versions_can_be_kept_when_only_files_changed(uv, course):
    """A new platform must not bring new versions in the week before an exam."""
    (one,) = renew(course / "ground", uv=uv, today=TODAY, keep_versions=True)

    assert ("numpy 2.4.1: other files",) == one.changes


def test_wishes_that_contradict_the_base_are_told_in_uvs_words(uv, course):
    """The TA must learn which line to change."""
    (course / "bio" / "requirements.txt").write_text("numpy==1.26.4\n")

    with pytest.raises(
        WrongUsage, match=r"you require numpy==1\.26\.4 and numpy==2\.4\.1"
    ) as refused:
        renew(course / "bio", uv=uv, today=TODAY, extra_folders=[course])

    assert "Loosen one of the wishes" in refused.value.hint


def test_a_package_without_published_files_cannot_be_locked(uv, course):
    """A Git address has no hash that an instance could compare."""
    (course / "bio" / "requirements.txt").write_text("local\n")

    with pytest.raises(WrongUsage, match="local does not come from an index"):
        renew(course / "bio", uv=uv, today=TODAY, extra_folders=[course])


def test_without_uv_the_way_to_get_it_is_said(tmp_path):
    """Nobody has it on a fresh laptop."""
    with pytest.raises(SetupMissing, match="takes uv, which is not installed") as refused:
        find_uv(str(tmp_path))

    assert "pip install uv" in refused.value.hint


def test_a_base_below_a_base_is_refused_instead_of_followed_for_ever(course):
    """Two folders that name each other must end in a sentence."""
    (course / "ground" / "environment.toml").write_text('title = "x"\nbase = "bio"\n')

    with pytest.raises(WrongUsage, match="which stands on another one itself"):
        load_environment("bio", [course])


def test_the_difference_names_every_kind_of_change():
    """A TA reads it before a term and decides by it."""
    old = parse_lock("".join(f"{n} --hash=sha256:{'a' * 64}\n" for n in ("a==1", "b==1", "c==1")))
    new = parse_lock(
        f"b==2 --hash=sha256:{'a' * 64}\nc==1 --hash=sha256:{'b' * 64}\nd==1 --hash=sha256:{'a' * 64}\n"
    )

    assert ["- a 1", "b 1 -> 2", "c 1: other files", "+ d 1"] == difference(old, new)


def test_wishes_are_read_with_extras_comments_and_included_files(tmp_path):
    """The check compares them with the lock; one it misreads would be a false alarm."""
    (tmp_path / "more.in").write_text("tensorflow[and-cuda]\nScikit_Learn>=1 # why\n")
    (tmp_path / "all.in").write_text("# first\n-r more.in\nkeras==2.2.5\nappnope; os == 'mac'\n\n")

    found = wishes([tmp_path / "all.in"])

    assert {"tensorflow": "", "scikit-learn": ">=1", "keras": "==2.2.5"} == found


def a_sound_course(course):
    (course / "bio" / "cpu.lock").write_text(
        f"# locked-on: 2026-11-22\n# download-mib: 9\n# python: >=3.11,<3.13\nnumpy==2.4.1 --hash=sha256:{'a' * 64}\n"
        f"pandas==3.1.1 --hash=sha256:{'a' * 64}\nipykernel==7.4.0 --hash=sha256:{'a' * 64}\n"
    )


def said_of(course, name="bio", today=TODAY):
    return [f"{p.where}: {p.text}" for p in problems(name, today=today, extra_folders=[course])]


def test_a_sound_environment_has_no_problem(course):
    """A check that always finds something is not read."""
    a_sound_course(course)

    assert [] == said_of(course)


def test_a_wish_that_is_not_locked_is_found(course):
    """Someone adds a line to requirements.txt and forgets the lock; students then miss the package."""
    a_sound_course(course)
    (course / "bio" / "requirements.txt").write_text("pandas==3.0.0\nlifelines\n")

    assert [
        "cpu.lock: it has pandas 3.1.1, asked for is 3.0.0",
        "cpu.lock: lifelines is asked for and not in it",
    ] == said_of(course)


@pytest.mark.parametrize(("kernel", "said"), [("4.0.1", "ipykernel 4.0.1"), ("", "no ipykernel")])
def test_a_lock_whose_kernel_cannot_start_is_found(course, kernel, said):
    """A resolver once went back to 2015 to please everybody; every notebook then said "kernel died"."""
    a_sound_course(course)
    lock = course / "bio" / "cpu.lock"
    text = lock.read_text()
    lock.write_text(
        text.replace("ipykernel==7.4.0", f"ipykernel=={kernel}" if kernel else "other==1.0")
    )

    assert [f"cpu.lock: it has {said}, so no notebook can start"] == said_of(course)


def test_an_old_lock_and_a_base_that_moved_on_are_said(course):
    """Both are quiet: nothing fails, until something does."""
    a_sound_course(course)
    text = (course / "ground" / "cpu.lock").read_text()
    (course / "ground" / "cpu.lock").write_text(text.replace("2.4.1", "2.4.9"))

    assert [
        "cpu.lock: ground has moved on since: numpy",
        "cpu.lock: it is 121 days old; old versions collect known holes",
    ] == said_of(course, today=date(2027, 3, 23))


def test_an_environment_that_no_user_data_can_hold_is_none_of_the_problems(course):
    """EC2 refuses more than 16 kB, but locks travel in the bucket; that it takes one is told elsewhere, and fails nobody's CI."""
    a_sound_course(course)
    pins = "".join(
        f"package-number-{n:03}==1.{n} --hash=sha256:{n:064x}\n" for n in range(2**13, 2**13 + 900)
    )
    (course / "bio" / "cpu.lock").write_text((course / "bio" / "cpu.lock").read_text() + pins)

    assert [] == said_of(course)
    assert not fits_alone(load_environment("bio", [course]))


def test_a_broken_folder_is_one_problem_and_not_the_end(course):
    """`env check` of ten environments must tell about the other nine."""
    (course / "bio" / "environment.toml").write_text("title = \n")

    (only,) = said_of(course)

    assert "environment.toml is not TOML" in only
