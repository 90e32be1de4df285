"""
What one connection through the tunnel is waiting for: a pure reading of the bytes that pass. Decides whether a request may
be sent again after the tunnel broke; says no to everything that is not plainly a safe HTTP request without an answer.
"""

from __future__ import annotations

import re

# Safe methods only: RFC 9110 9.2.2 lets a client send them again after a lost connection.
_SAFE = re.compile(rb"(?:GET|HEAD|OPTIONS) [^\r\n]+ HTTP/1\.[01]\r\n")
_ANY = re.compile(rb"[A-Z]{3,20} [^\r\n]+ HTTP/1\.[01]\r\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
# These are asked of a head in small letters: a search that knows its first letters passes a head several times faster.
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+) *\r\n")
_CLOSES = re.compile(rb"\r\nconnection: *close *\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked *\r\n")
_MAYBE = re.compile(rb"$|[A-Z]{1,20}(?: |$)")
_HEAD_END = b"\r\n\r\n"
_NO_BODY = ("204", "304")
LONGEST_HEAD = 64 << 10
LONGEST_WITHHELD = 256 << 10


class Exchange:
    """
    One client's conversation, as far as it must be known to survive a broken tunnel.

    HTTP/1.1 without pipelining, as browsers speak it. Anything else (a WebSocket after its handshake, another
    protocol, an oversized head) is opaque: it ends with the tunnel, and the client begins anew.
    """

    __slots__ = (
        "_asked",
        "_body_left",
        "_head",
        "_is_opaque",
        "_is_repeatable",
        "_is_settled",
        "_length",
    )

    def __init__(self) -> None:
        self._asked = bytearray()
        self._head = bytearray()
        # Bytes of the answer still to come; `None` before its head is complete, -1 when only its end will tell.
        self._body_left: int | None = None
        self._length = 0
        self._is_settled = False
        self._is_opaque = False
        # Whether what was asked may be asked again; read once for each request.
        self._is_repeatable = False

    def sent(self, chunk: bytes | memoryview) -> None:
        """Take note of what the client sent."""
        if self._is_opaque:
            return
        if self._is_settled:
            self._asked.clear()
            self._is_settled = False
        self._asked += chunk
        self._is_repeatable = _may_be_repeated(self._asked)
        self._head.clear()
        self._body_left = None
        if len(self._asked) > LONGEST_HEAD:
            self.forget()

    def received(self, chunk: bytes | memoryview) -> None:
        """Take note of what the server answered."""
        if self._is_opaque:
            return
        if self._body_left is None:
            self._read_head(bytes(chunk))
        elif self._body_left < 0:
            self._is_settled = bytes(chunk[-7:]) == b"\r\n0\r\n\r\n"
        else:
            self._count(len(chunk))

    def forget(self) -> None:
        """Stop following: this connection cannot be saved."""
        self._is_opaque = True
        self._asked.clear()
        self._head.clear()

    @property
    def is_idle(self) -> bool:
        """Whether the last answer is complete and no request is under way."""
        return self._is_settled and not self._is_opaque

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way: between two requests, or before the first."""
        is_fresh = not (self._asked or self._head or self._is_opaque or self._body_left is not None)
        return self.is_idle or is_fresh

    @property
    def withholds(self) -> bool:
        """
        Whether what has come of the answer must not be passed on yet.

        A short answer to a repeatable request is passed on as a whole, so that it can be asked for again when it
        breaks off in the middle. It is complete no later for that.
        """
        if self._is_opaque or self._is_settled or not (self._head or self._body_left is not None):
            return False
        is_short = self._body_left is None or 0 <= self._length <= LONGEST_WITHHELD
        return is_short and self._is_repeatable

    @property
    def replay(self) -> bytes | None:
        """The request to send again, or `None` if that is not safe or there is none."""
        if self._is_opaque or self._is_settled:
            return None
        has_begun = self._head or self._body_left is not None
        if has_begun and not self.withholds:
            return None
        return bytes(self._asked) if self._is_repeatable else None

    def asked_again(self) -> None:
        """Forget what has come of the answer: the request was sent again."""
        self._head.clear()
        self._body_left = None

    def _read_head(self, chunk: bytes) -> None:
        self._head += chunk
        end = self._head.find(_HEAD_END)
        if end < 0:
            if len(self._head) > LONGEST_HEAD or not b"HTTP/1.".startswith(self._head[:7]):
                self.forget()
            return
        head, rest = bytes(self._head[: end + 4]), len(self._head) - end - 4
        last = bytes(self._head[-7:])
        self._head.clear()
        status = _STATUS.match(head)
        if not status or not _ANY.match(bytes(self._asked)) or status[1].startswith(b"1"):
            self.forget()  # 101 switches to a WebSocket; 100 comes before a body we do not keep
            return
        fields = head.lower()
        if fields.startswith(b"http/1.0") or _CLOSES.search(fields):
            self.forget()  # the server will close, and the client expects it
            return
        self._begin_body(fields, status[1].decode("ascii"), rest, last)

    def _begin_body(self, fields: bytes, status: str, rest: int, last: bytes) -> None:
        length = _LENGTH.search(fields)
        if status in _NO_BODY or self._asked.startswith(b"HEAD "):
            self._body_left = 0
            self._is_settled = True
        elif length:
            self._body_left = self._length = int(length[1])
            self._count(rest)
        elif _CHUNKED.search(fields):
            self._body_left = self._length = -1
            self._is_settled = last == b"\r\n0\r\n\r\n"
        else:
            self.forget()  # the end of the connection ends this answer

    def _count(self, size: int) -> None:
        assert self._body_left is not None
        self._body_left = max(self._body_left - size, 0)
        self._is_settled = self._body_left == 0


def is_http(start: bytes) -> bool | None:
    """Whether a client that has sent this so far asks for something over HTTP; `None`: not yet to be told."""
    if _ANY.match(start):
        return True if _HEAD_END in start else None
    return None if b"\n" not in start and _MAYBE.match(start) else False


def _may_be_repeated(asked: bytearray) -> bool:
    """Whether this is one whole safe request without a body."""
    if not (asked.endswith(_HEAD_END) and _SAFE.match(asked)):
        return False
    return asked.find(_HEAD_END) == len(asked) - len(_HEAD_END) and not _LENGTH.search(
        asked.lower()
    )
