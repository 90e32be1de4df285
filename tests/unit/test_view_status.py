"""What `gpulab show` says of an instance that AWS takes back."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from gpulab.model.status import read_status
from gpulab.view.instances import status_lines

NOW = datetime(2026, 11, 23, 14, 29, tzinfo=UTC)


def test_a_notice_promises_no_more_than_what_is_saved():
    """Without a bucket nothing is being saved, and with one a file may fail: the two lines must be read together."""
    status = {"version": 1, "at": "2026-11-23T14:28:30Z"}
    status["keep"] = {"failed": ["a.h5: Input/output error"]}
    status["notice"] = {"action": "terminate", "time": "2026-11-23T14:30:00Z"}

    lines = status_lines(read_status(json.dumps(status)), now=NOW)

    assert [
        "saved     not yet",
        "not saved a.h5: Input/output error",
        "notice    AWS will terminate it at 14:30 UTC; what is saved by then comes back with `gpulab up`",
    ] == lines[-3:]
