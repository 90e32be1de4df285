"""Archives from a hostile instance: nothing lands outside, nothing changes its meaning on another system."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import Unreachable, UnsafeArchive
from gpulab.remote.archive import Limits, collisions, extract, unpack, unsafe_name


def an_archive(*members: tarfile.TarInfo | tuple[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    stream.seek(0)
    return stream


def a_member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = link
    return member


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "an absolute path"),
        ("../x", "a path with an empty part, `.` or `..`"),
        ("a/../../x", "a path with an empty part, `.` or `..`"),
        ("a//b", "a path with an empty part, `.` or `..`"),
        ("", "a path with an empty part, `.` or `..`"),
        ("C:/x", "a name with `\\` or `:`"),
        ("a\\..\\x", "a name with `\\` or `:`"),
        ("notes.txt:stream", "a name with `\\` or `:`"),
        ("a/NUL", "a name that Windows reserves"),
        ("con.txt", "a name that Windows reserves"),
        ("COM1 .ipynb", "a name that Windows reserves"),
        ("LPT¹", "a name that Windows reserves"),
        ("trailing.", "a name that Windows reserves"),
        ("trailing ", "a name that Windows reserves"),
        ("a\nb", "a name with control or undecodable characters"),
        ("a\x1b[2Jb", "a name with control or undecodable characters"),
        ("a\udcffb", "a name with control or undecodable characters"),
        ("é" * 128, "a name of more than 255 bytes"),
        ("a/" * 64 + "b", "a path that is too long"),
    ],
)
def test_a_name_that_means_something_else_somewhere_is_refused(name, reason):
    """The same archive is unpacked on Windows, macOS and Linux."""
    assert reason == unsafe_name(name, windows=False)


@pytest.mark.parametrize(
    "name", ["week 4/lab.ipynb", "Übung.py", "console.log", "a.b.c", ".hidden", "what?.txt"]
)
def test_an_ordinary_name_is_taken(name):
    """Students name files as they like; refusing those would lose work."""
    assert "" == unsafe_name(name, windows=False)


def test_windows_own_rules_count_on_windows_only():
    """A question mark is fine on Linux and cannot be written on Windows."""
    assert "a name that Windows does not take" == unsafe_name("what?.txt", windows=True)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["a/x", "a/y", "b"], None),
        (["Lab.ipynb", "lab.ipynb"], ("Lab.ipynb", "lab.ipynb")),
        (["Week/a", "week/b"], ("Week", "week/b")),
        (["caf\u00e9", "cafe\u0301"], ("caf\u00e9", "cafe\u0301")),
        (["a", "a/b"], ("a", "a/b")),
        (["a/b", "a"], ("a", "a")),
        (["stra\u00dfe", "STRASSE"], ("stra\u00dfe", "STRASSE")),
    ],
)
def test_two_names_of_one_file_are_found(names, pair):
    """On macOS and Windows the second would overwrite the first without a word."""
    found = ((earlier, name) for name, earlier in collisions(names) if earlier)

    assert pair == next(found, None)


@pytest.mark.parametrize(
    "member",
    [
        a_member("evil", tarfile.SYMTYPE, "/etc/passwd"),
        a_member("evil", tarfile.LNKTYPE, "../../x"),
        a_member("evil", tarfile.CHRTYPE),
        a_member("evil", tarfile.BLKTYPE),
        a_member("evil", tarfile.FIFOTYPE),
        a_member("evil", tarfile.CONTTYPE),
        ("../evil", b"x"),
        ("/evil", b"x"),
    ],
)
def test_a_dangerous_member_stops_everything_and_is_named(tmp_path, member):
    """A half-unpacked hostile archive is a hostile folder."""
    destination = tmp_path / "inside" / "work"

    with pytest.raises(UnsafeArchive) as error:
        extract(an_archive(("good", b"x"), member, ("after", b"x")), destination)

    assert "evil'" in error.value.message
    assert [] == sorted(tmp_path.glob("inside/*"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("Lab.ipynb", b"1"), ("lab.ipynb", b"2")], "lab.ipynb"),
        ([("a", b"1"), ("a", b"2")], "'a'"),
        ([("a", b"1"), ("a/b", b"2")], "'a/b'"),
        ([("D/a", b"1"), ("d/b", b"2")], "'d/b'"),
    ],
)
def test_members_that_would_overwrite_each_other_are_refused(tmp_path, members, named):
    """The second of two such members decides what the user reads."""
    with pytest.raises(UnsafeArchive) as error:
        extract(an_archive(*members), tmp_path / "work")

    assert named in error.value.message


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(files=2), "more than 2 members"),
        (Limits(bytes=2), "more than 2 bytes in all"),
    ],
)
def test_an_endless_archive_stops_at_its_limit(tmp_path, limits, words):
    """An instance could fill the laptop's disk."""
    archive = an_archive(("a", b"1"), ("b", b"2"), ("c", b"3"))

    with pytest.raises(UnsafeArchive) as error:
        extract(archive, tmp_path / "work", limits=limits)

    assert words in error.value.message


def test_a_header_of_gigabytes_is_not_read_into_memory(tmp_path):
    """Tarfile reads a long-name header as a whole; the instance chooses its length."""
    header = a_member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 8 << 30
    stream = io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))

    with pytest.raises(UnsafeArchive) as error:
        extract(stream, tmp_path / "work")

    assert "a header of 8589934592 bytes" in error.value.message


def test_a_file_nobody_asked_for_is_refused(tmp_path):
    """`.bashrc` beside the notebooks would run at the next login."""
    wanted = {"lab.ipynb": {"mtime_ns": 0, "executable": False}}

    with pytest.raises(UnsafeArchive) as error:
        unpack(an_archive((".bashrc", b"x")), tmp_path, wanted=wanted)

    assert "a file that was not asked for" in error.value.message


def test_an_archive_cut_short_leaves_nothing(tmp_path):
    """A lost connection must not look like a small folder."""
    whole = an_archive(("a", b"1" * 5000), ("b", b"2" * 5000)).getvalue()

    with pytest.raises(Unreachable):
        extract(io.BytesIO(whole[:6000]), tmp_path / "work")

    assert [] == list(tmp_path.iterdir())


def test_a_good_archive_is_unpacked_whole_with_hashes(tmp_path):
    """The hashes are of what was written, so the caller can compare them with the instance's."""
    archive = an_archive(a_member("d", tarfile.DIRTYPE), ("d/a b", b"hello"))

    files = extract(archive, tmp_path / "work")

    assert b"hello" == (tmp_path / "work" / "d" / "a b").read_bytes()
    assert ["d/a b"] == [file.path for file in files]
    assert "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" == files[0].sha256


@given(st.binary(max_size=3000))
def test_no_bytes_end_in_a_traceback(tmp_path_factory, junk):
    """Whatever an instance sends, the user reads a sentence."""
    folder = tmp_path_factory.mktemp("junk")

    with pytest.raises((Unreachable, UnsafeArchive)):
        raise (extract(io.BytesIO(junk), folder / "work") and Unreachable("")) or Unreachable(
            "empty"
        )
