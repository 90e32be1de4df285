"""Bad input that was once answered wrongly, and what could be: every reader's good inputs and its kept bad ones, before the fuzzers' own judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzzing.oracle import judge
from tests.fuzzing.targets import targets_of

from gpulab.errors import RemoteError
from gpulab.remote.archive import extract

CORPUS = Path(__file__).parents[1] / "corpus"
TARGETS = [
    target
    for room in ("course", "store", "remote", "instance")
    for target in targets_of(room).values()
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_kept_inputs_end_in_a_clean_error_or_success(target):
    """Whoever finds such an input twice has found that nobody cared the first time."""
    kept = sorted((CORPUS / target.name).glob("*"))

    found = {file.name: judge(target, file.read_bytes()) for file in kept}
    found |= {f"seed {n}": judge(target, seed) for n, seed in enumerate(target.seeds)}

    assert {} == {name: finding for name, finding in found.items() if finding is not None}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_each_reader_takes_the_good_inputs_that_the_fuzzer_begins_from(target):
    """A target whose every input is refused at the door looks clean for ever: two were so once, and one hid a fault."""
    for seed in target.seeds:
        target.read(seed)  # raises where the reader refuses it

    assert target.seeds


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("parent-folder", "../evil"),
        ("absolute-path", "/tmp/evil"),
        ("link-then-file-through-it", "evil"),
        ("hard-link", "evil"),
        ("device", "evil"),
        ("pipe", "evil"),
        ("reserved-on-windows", "week4/evil/NUL.txt"),
        ("stream-on-windows", "evil.txt:stream"),
        ("drive-on-windows", "C:\\\\evil"),
        ("same-but-for-case", "evil"),
        ("same-but-for-accents", "-evil"),
        ("file-and-folder", "evil/x"),
        ("terminal-escape", "evil\\x1b"),
        ("sparse", "sparse"),
        ("header-of-gigabytes", "a header of 8589934592 bytes"),
        ("pax-path", "../evil"),
        ("gzip-bomb", "a gzip file where a member of its archive was to begin"),
        ("zip-bomb", "a zip file where a member of its archive was to begin"),
    ],
)
def test_a_hostile_archive_is_refused_with_its_members_name(tmp_path, name, said):
    """CVE-2007-4559 and its relatives: the user must know what to remove on the instance, and nothing may be here."""
    with (CORPUS / "tar" / name).open("rb") as stream, pytest.raises(RemoteError) as caught:
        extract(stream, tmp_path / "work")

    assert said in caught.value.message
    assert [] == list(tmp_path.iterdir())
