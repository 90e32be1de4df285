"""What completing the books of a class came to, in words and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulab.fleets.bookkeeping import Recalled
from gpulab.view.fleet import trouble_lines
from gpulab.view.words import counted, one_line


def recalled_lines(found: Sequence[Recalled]) -> list[str]:
    """Say how many facts are new, what nobody could tell, and who could not be asked."""
    new = sum(one.new for one in found)
    lines = [f"{counted(len(found), 'account')} asked, {counted(new, 'fact')} new"]
    # What one account says of a region, all of them may say.
    unknown = dict.fromkeys(text for one in found for text in one.unknown)
    lines += [f"not known: {one_line(text)}" for text in unknown]
    return lines + trouble_lines((one.account, one.trouble) for one in found)


def recalled_json(found: Sequence[Recalled]) -> dict[str, Any]:
    """Return it for programs."""
    return {
        "accounts": [
            {
                "account": one.account.key,
                "new": one.new,
                "unknown": list(one.unknown),
                "error": one.trouble.message if one.trouble else "",
                "hint": one.trouble.hint if one.trouble else "",
            }
            for one in found
        ]
    }
