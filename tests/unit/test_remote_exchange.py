"""Which requests may be sent again after the tunnel broke, and which must not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.remote.exchange import LONGEST_HEAD, LONGEST_WITHHELD, Exchange, is_http

GET = b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
SOCKET = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def an_answer(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def after(*passed: tuple[str, bytes]) -> Exchange:
    exchange = Exchange()
    for direction, chunk in passed:
        exchange.sent(chunk) if direction == ">" else exchange.received(chunk)
    return exchange


@pytest.mark.parametrize(
    "request_",
    [GET, SOCKET, GET.replace(b"GET", b"HEAD"), GET.replace(b"GET", b"OPTIONS")],
)
def test_a_safe_request_without_an_answer_is_sent_again(request_):
    """A page that loads while ssh dies must load, not fail."""
    assert request_ == after((">", request_)).replay


@pytest.mark.parametrize(
    "sent",
    [
        POST,
        POST.replace(b"POST", b"DELETE"),
        POST.replace(b"POST", b"GET"),
        GET + GET,
        GET[:-2],
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET / SPDY/1\r\n\r\n",
        b"\x81\x85GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_anything_else_is_never_sent_twice(sent):
    """A cell that runs twice, or a file that is deleted twice, is worse than an error."""
    assert after((">", sent)).replay is None


def test_between_two_requests_the_client_may_stay():
    """Browsers keep six connections open; closing them costs nothing, but a plain client fails."""
    exchange = after((">", GET), ("<", an_answer(b"ok")))

    assert (True, None) == (exchange.is_idle, exchange.replay)


@pytest.mark.parametrize(
    "answer",
    [
        an_answer(b"ok", more="Connection: close\r\n"),
        an_answer(b"ok").replace(b"1.1", b"1.0", 1),
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"+OK not http\r\n",
    ],
)
def test_an_answer_that_the_connections_end_belongs_to_is_left_alone(answer):
    """Keeping such a client would make it wait for ever."""
    exchange = after((">", GET), ("<", answer))

    assert (False, None, False) == (exchange.is_idle, exchange.replay, exchange.withholds)


def test_a_websocket_ends_with_the_tunnel():
    """Its frames cannot be sent again; JupyterLab opens a new one by itself."""
    exchange = after((">", SOCKET), ("<", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), (">", GET))

    assert (False, None) == (exchange.is_idle, exchange.replay)


@pytest.mark.parametrize("cut", [1, 10, 40, -1])
def test_a_short_answer_that_breaks_off_is_asked_for_again(cut):
    """The head arrived, the body did not: passed on at once, nobody could repair it."""
    exchange = after((">", GET), ("<", an_answer(b"x" * 100)[:cut]))

    assert (True, GET) == (exchange.withholds, exchange.replay)


def test_a_short_answer_is_passed_on_once_it_is_whole():
    """Withholding must end with the last byte."""
    answer = an_answer(b"x" * 100)

    exchange = after((">", GET), ("<", answer[:20]), ("<", answer[20:60]), ("<", answer[60:]))

    assert (False, True) == (exchange.withholds, exchange.is_idle)


def test_a_long_answer_is_passed_on_as_it_comes():
    """A data set must not be collected in memory before the download begins."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {LONGEST_WITHHELD + 1}\r\n\r\n".encode()

    exchange = after((">", GET), ("<", head + b"x"))

    assert (False, None) == (exchange.withholds, exchange.replay)


def test_an_answer_to_a_post_is_passed_on_as_it_comes():
    """It cannot be asked for again, so there is no reason to wait."""
    exchange = after((">", POST), ("<", an_answer(b"x" * 100)[:50]))

    assert (False, None, False) == (exchange.withholds, exchange.replay, exchange.is_idle)


def test_a_chunked_answer_ends_with_its_last_chunk():
    """Jupyter compresses its answers and then does not know their length."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    exchange = after((">", GET), ("<", head + b"2\r\nok\r\n"))

    begun = exchange.is_idle
    exchange.received(b"0\r\n\r\n")
    exchange_in_one = after((">", GET), ("<", head + b"2\r\nok\r\n0\r\n\r\n"))

    assert (False, True) == (begun, exchange_in_one.is_idle)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET.replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_answers_without_a_body_are_complete(request_, answer):
    """A 304 has no body whatever its length says; half of Jupyter's files come as one."""
    assert after((">", request_), ("<", answer)).is_idle


def test_the_next_request_begins_anew():
    """A POST before it must not keep a GET from being saved, nor the other way round."""
    exchange = after((">", POST), ("<", an_answer(b"{}")), (">", GET))
    posted = after((">", GET), ("<", an_answer(b"{}")), (">", POST))

    assert (GET, None) == (exchange.replay, posted.replay)


def test_a_large_upload_is_not_kept_in_memory():
    """Uploading a data set through Jupyter must not double it in our memory."""
    exchange = Exchange()

    exchange.sent(POST)
    exchange.sent(b"x" * LONGEST_HEAD)
    exchange.sent(GET)

    assert exchange.replay is None


@given(st.lists(st.tuples(st.sampled_from("<>"), st.binary(max_size=60)), max_size=8))
def test_no_traffic_confuses_it(traffic):
    """Anything may pass through a port; it must be copied, never break the tunnel."""
    exchange = after(*traffic)

    assert exchange.replay is None or exchange.replay.endswith(b"\r\n\r\n")


@given(st.data())
def test_the_cut_of_the_bytes_makes_no_difference(data):
    """TCP cuts where it likes."""
    answer = an_answer(b"x" * 30)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    exchange = after((">", GET), *(("<", piece) for piece in pieces if piece))

    assert (True, False) == (exchange.is_idle, exchange.withholds)


@pytest.mark.parametrize(
    ("start", "verdict"),
    [
        (b"", None),
        (b"GE", None),
        (b"GET /lab", None),
        (GET, True),
        (POST, True),
        (GET[:-2], None),
        (b"SSH-2.0-x\r\n", False),
        (b"\x16\x03\x01", False),
        (b"get / HTTP/1.1\r\n\r\n", False),
    ],
)
def test_only_http_clients_get_the_page(start, verdict):
    """A page in the middle of another protocol would be read as its data."""
    assert verdict == is_http(start)
