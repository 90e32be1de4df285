"""
Who may log in to an instance: the edits of its `authorized_keys`. Each is written beside the file and takes its place only when whole:
the file also lets us in, and on a full disk the copy may be cut short.
"""

from __future__ import annotations

from gpulab.remote.host import Host

_BEGIN = 'umask 077; f=~/.ssh/authorized_keys; new="$f.gpulab"; '
_END = ' && mv -- "$new" "$f" || { rm -f -- "$new"; exit 1; }'
# One line for one key: a second one, with another end, replaces the first. `$1` is the line, `$2` the key's own words. grep says 1 where
# no line is left, and 2 where it could not write.
_ADD = (
    'mkdir -p ~/.ssh && touch "$f" && { grep -vF -- "$2" "$f" > "$new" || [ $? -eq 1 ]; }'
    ' && printf "%s\\n" "$1" >> "$new"'
)
# `$1` is for sed.
_MOVE = '[ -e "$f" ] || exit 0; sed "$1" "$f" > "$new"'


def let_in(host: Host, line: str, *, key: str, timeout_s: float) -> None:
    """
    Let a key in, once.

    Args:
        line: The whole line, see `fleet.ticket.authorized_line`.
        key: The base64 words by which an earlier line of the same key is known, and replaced.

    Raises:
        CommandFailed: It could not be written; who was let in before still is.
        RemoteError: As `Host.run`.
    """
    host.run(["sh", "-c", f"{_BEGIN}{_ADD}{_END}", "sh", line, key], timeout_s=timeout_s)


def move_ends(host: Host, option: str, *, timeout_s: float) -> None:
    """
    Move the end of every key that was let in for a time; only lines of ours begin with one.

    Args:
        option: Their new first word, see `fleet.ticket.expiry`.

    Raises:
        CommandFailed, RemoteError: As `let_in`.
    """
    edit = f's/^expiry-time="[0-9]*Z"/{option}/'
    host.run(["sh", "-c", f"{_BEGIN}{_MOVE}{_END}", "sh", edit], timeout_s=timeout_s)
