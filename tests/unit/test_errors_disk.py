"""What a disk refuses is told with what to do about it: a message without a next step leaves a student stuck before the lab."""

from __future__ import annotations

import errno

import pytest

from gpulab.errors import StoreError, disk_hint
from gpulab.remote import hostkeys

KEY = hostkeys.HostKey(bytes(range(32)))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EACCES, "owner and modes"),
        (errno.EROFS, "owner and modes"),
        (errno.EIO, "Check this computer's disk"),
    ],
)
def test_each_refusal_of_the_disk_has_its_own_way_out(number, says):
    """Freeing space does not mend a folder that belongs to root."""
    assert says in disk_hint(OSError(number, "refused"))


def test_a_host_key_that_cannot_be_written_names_the_way_out(tmp_path):
    """The crash matrix found this one silent: the disk fills up while the instance already costs."""
    blocked = tmp_path / "known_hosts"
    blocked.mkdir()

    with pytest.raises(StoreError) as failure:
        hostkeys.pin(blocked, "i-0123456789abcdef0", [KEY])

    assert failure.value.hint == disk_hint(OSError(errno.EISDIR, ""))
