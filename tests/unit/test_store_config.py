"""The configuration file: what it means, and how it is refused."""

from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import StoreError, WrongUsage
from gpulab.store.config import Profile, change_profile, read_config
from gpulab.store.files import write_atomically
from gpulab.store.home import Folder


def test_no_file_is_the_default_profile(tmp_path):
    """The first command of a new user must not fail on a missing file."""
    config = read_config(tmp_path / "config.toml")

    assert Profile(name="default") == config.profile(None)


def test_a_profile_reads_back_what_was_written(tmp_path):
    """`init` writes what `up` reads."""
    path = tmp_path / "config.toml"

    change_profile(
        path,
        "course",
        {"regions": ["eu-north-1"], "credit_usd": "100.00", "idle_minutes": 30},
    )

    profile = read_config(path).profile("course")
    assert ("course", ("eu-north-1",), Decimal("100.00"), 30) == (
        profile.name,
        profile.regions,
        profile.credit_usd,
        profile.idle_minutes,
    )


def test_changing_one_key_keeps_the_users_comments(tmp_path):
    """People annotate their configuration; a tool that eats comments is not trusted twice."""
    path = tmp_path / "config.toml"
    path.write_text('# mine\ndefault_profile = "a"\n[profiles.a]\ngpu = "T4" # cheap\n')

    change_profile(path, "a", {"hours": "2"})

    text = path.read_text()
    assert "# mine" in text
    assert "# cheap" in text
    assert Decimal(2) == read_config(path).profile("a").hours


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ("[profiles.a]\nregoins = []\n", "profiles.a.regoins", "`regions`"),
        ("[profiles.a]\nhours = 'long'\n", "profiles.a.hours", ""),
        ("[profiles.a]\nhours = -1\n", "profiles.a.hours", ""),
        ("[profiles.a]\nhours = nan\n", "profiles.a.hours", ""),
        ("[profiles.a]\nhours = true\n", "profiles.a.hours", ""),
        ("[profiles.a]\nidle_minutes = 0\n", "profiles.a.idle_minutes", ""),
        ("[profiles.a]\nregions = 'us-east-1'\n", "profiles.a.regions", ""),
        ("[profiles.a]\nregions = []\n", "profiles.a.regions", ""),
        ("[profiles.a]\ngpu = 4\n", "profiles.a.gpu", ""),
        ("profiles = 3\n", "profiles", ""),
        ("default_profile = 3\n", "default_profile", ""),
        ("x = ", "not readable as TOML", "gpulab init"),
        ("\x00", "not readable as TOML", "gpulab init"),
    ],
)
def test_a_wrong_configuration_names_file_and_key(tmp_path, text, named, hint):
    """The user must find the line without reading our code."""
    path = tmp_path / "config.toml"
    path.write_text(text)

    with pytest.raises(WrongUsage) as caught:
        read_config(path)

    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert hint in caught.value.hint


def test_bytes_that_are_not_text_are_refused_by_name(tmp_path):
    """An editor's UTF-16 must not end in a traceback."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfeg\x00")

    with pytest.raises(WrongUsage, match="not readable as TOML"):
        read_config(path)


def test_an_unknown_profile_names_the_nearest(tmp_path):
    """`--profile sandbx` is a slip, not a new profile."""
    path = tmp_path / "config.toml"
    change_profile(path, "sandbox", {"gpu": "T4"})

    with pytest.raises(WrongUsage) as caught:
        read_config(path).profile("sandbx")

    assert "Did you mean `sandbox`?" == caught.value.hint


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk must not cost the configuration."""
    path = tmp_path / "config.toml"
    write_atomically(path, b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_atomically(path, b"new")

    assert [Path("config.toml")] == [p.relative_to(tmp_path) for p in tmp_path.iterdir()]
    assert b"old" == path.read_bytes()


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path, monkeypatch):
    """A full disk may show first at a folder: that is no fault of ours to be reported with a traceback."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreError, match=r"could not write .*tunnels: No space left on device"):
        _ = Folder(tmp_path).tunnels


def test_an_interrupted_write_leaves_nothing_half_made(tmp_path, monkeypatch):
    """Ctrl-C while templates or settings are written: whoever sends the folder on must not find halves in it."""
    path = tmp_path / "s1.template.json"

    def interrupted(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")

    assert [] == list(tmp_path.iterdir())
