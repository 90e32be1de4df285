"""Large inputs: what a reader that is quick with a page may be slow with. Made of each target's own seeds, lines and words, over and over."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fuzzing.edits import MARK
from tests.fuzzing.oracle import Target

_CHARACTERS = tuple(bytes([byte]) for byte in b"[]{}()\"',;:.=-#\\/<>|\t\n\r \0a0\xff")
# Each time another one: a thousand different keys, tables, cells, members and lines.
_COUNTED = (
    "k%d=1\n",
    "[t%d]\n",
    "[[labs]]\nid='w%d'\n",
    "c%d,",
    "s%d,n,s%d@x.dk\n",
    '{"path": "A%d"}\n',
    "i-%d ssh-ed25519 AAAA\n",
)
_MOST_LINES = 12


def large_inputs(target: Target) -> Iterator[bytes]:
    """Yield inputs of about the target's large size; always the same ones."""
    size = target.large
    parts: dict[bytes, None] = {}
    for seed in target.seeds:
        if not seed.startswith(MARK):
            parts[seed] = None
            parts |= dict.fromkeys(seed.splitlines(keepends=True)[:_MOST_LINES])
    parts |= dict.fromkeys((*target.words, *_CHARACTERS))
    first = next((seed for seed in target.seeds if not seed.startswith(MARK)), b"")
    for part in filter(None, parts):
        many = (part * (size // len(part) + 1))[: max(0, size - len(first))]
        yield many
        yield first + many
        yield first[: len(first) // 2] + many + first[len(first) // 2 :]
    for form in _COUNTED:
        rows = (
            form.replace("%d", str(number))
            for number in range((size - len(first)) // (len(form) + 8))
        )
        yield first + "".join(rows).encode()
