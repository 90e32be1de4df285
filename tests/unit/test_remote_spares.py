"""Spare connections: how long they are kept, and what becomes of those that died."""

from __future__ import annotations

import socket

import pytest

from gpulab.remote.spares import Spares


@pytest.fixture
def clock():
    """A clock that the test moves."""
    return [100.0]


@pytest.fixture
def spares(clock):
    made = Spares(lambda: clock[0])
    yield made
    made.close()


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        yield listening


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_a_spare_is_closed_before_a_server_would_close_it(spares, server, clock):
    """Servers close idle connections; the one who is given such a connection loses a request."""
    spares.prepare(8888, port_of(server))
    end, _ = server.accept()
    clock[0] += 19.0
    spares.expire()
    left = spares.patience()

    clock[0] += 1.0
    spares.expire()

    assert 1.0 == pytest.approx(left)
    assert b"" == end.recv(1)
    assert (None, None) == (spares.take(8888), spares.patience())


def test_there_is_one_for_each_port_however_often_it_is_asked_for(spares, server):
    """Every answer asks for one; a spare each would be a leak."""
    for _ in range(3):
        spares.prepare(8888, port_of(server))
    end, _ = server.accept()
    server.settimeout(0)

    with pytest.raises(BlockingIOError):
        server.accept()
    with spares.take(8888) as taken:
        assert port_of(server) == taken.getpeername()[1]
    assert spares.take(8888) is None
    end.close()


def test_a_server_that_speaks_first_loses_no_word_of_it(spares, server):
    """Looking whether a spare lives must not read what belongs to the client."""
    spares.prepare(8888, port_of(server))
    end, _ = server.accept()
    end.sendall(b"hello")

    with spares.take(8888) as taken:
        taken.settimeout(30)
        assert b"hello" == taken.recv(5)


def test_nobody_there_is_no_spare(spares, server):
    """The ssh behind it may have gone a moment ago."""
    port = port_of(server)
    server.close()

    spares.prepare(8888, port)

    assert spares.take(8888) is None
