"""The lab's folder, as an instance says it: any notebook there may have written the file."""

from __future__ import annotations

import json

import pytest

from gpulab.errors import WrongUsage
from gpulab.launch.running.lab_folder import read


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"nothing of ours",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"folder": 7}',
        b'{"folder": ""}',
        *(
            json.dumps({"folder": folder}).encode()
            for folder in (
                "../.ssh",
                "a/../../.ssh",
                "/etc",
                "a//b",
                ".",
                "a/\x1b[2J",
                "a\nb",
                "a\u202eb",
            )
        ),
    ],
    ids=lambda said: said[:20].decode(),
)
def test_what_is_no_folder_below_the_work_folder_is_refused(said):
    """It becomes a folder on the student's own computer: `../.ssh` would be written into."""
    with pytest.raises(WrongUsage, match="week1 has no lab's notebooks"):
        read(said, name="week1")


def test_a_folder_of_any_language_is_taken():
    """Courses name their folders as they speak."""
    said = json.dumps({"folder": "kursus/Øvelse 1"}).encode()

    assert "kursus/Øvelse 1" == read(said, name="week1")
