"""Where the work of a name is kept: a bucket's prefix, or a folder on this computer."""

from __future__ import annotations

import re

from gpulab.launch.context import Context


def bucket_region(bucket: str) -> str:
    """Return the region of our bucket; its name ends in it."""
    found = re.search(r"[a-z]{2}(?:-[a-z]+)+-\d+$", bucket)
    return found[0] if found else "us-east-1"


def prefix(context: Context, name: str) -> str:
    """Return the prefix of a name's kept work; ends with a slash."""
    return f"{context.owner}/{name}/"
