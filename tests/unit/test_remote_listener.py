"""The tunnel's front: clients wait for an upstream and are never refused."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from gpulab.remote.listener import Listener

PORT = 8888
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """Stands where ssh would listen; the test plays the server by hand."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is None:
            self._listening = socket.create_server(("127.0.0.1", 0))
        else:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(path))
            self._listening.listen(16)
        self._listening.settimeout(30)

    @property
    def endpoint(self) -> Path | int:
        return self.path or int(self._listening.getsockname()[1])

    def accept(self) -> socket.socket:
        end, _ = self._listening.accept()
        end.settimeout(30)
        return end

    def close(self) -> None:
        self._listening.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@pytest.fixture
def front():
    """A started listener without an upstream, and where it listens."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    front = Listener({PORT: listening})
    front.address = listening.getsockname()
    front.kept = []
    front.start()
    yield front
    front.stop()
    for end in front.kept:
        end.close()


@pytest.fixture(params=["unix", "tcp"])
def upstreams(request, tmp_path):
    """Makes upstreams: unix sockets as on Linux and macOS, TCP as on Windows."""
    if request.param == "unix" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no unix sockets")
    made: list[Upstream] = []

    def make() -> Upstream:
        path = tmp_path / f"{len(made)}.sock" if request.param == "unix" else None
        made.append(Upstream(path))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


def a_client(front) -> socket.socket:
    client = socket.create_connection(front.address)
    client.settimeout(30)
    return client


def read(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (chunk := end.recv(size - len(got))):
        got += chunk
    return got


@pytest.mark.parametrize("request_", [GET, POST])
def test_a_client_that_comes_early_waits(front, upstreams, request_):
    """A browser opened before the tunnel is up must load, not say `refused`."""
    client = a_client(front)
    client.sendall(request_)
    upstream = upstreams()

    front.connect({PORT: upstream.endpoint})
    server = upstream.accept()
    asked = read(server, len(request_))
    server.sendall(OK)

    assert request_ == asked
    assert OK == read(client, len(OK))


def test_a_request_under_way_when_ssh_dies_is_answered_by_the_next(front, upstreams):
    """This is the request that other tunnels lose."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(GET)
    dying = first.accept()
    read(dying, len(GET))

    front.disconnect()
    first.close()
    dying.close()
    second = upstreams()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    asked = read(server, len(GET))
    server.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_a_dead_ssh_that_nobody_has_noticed_yet_loses_nothing(front, upstreams):
    """Between the death of ssh and its discovery there are milliseconds; requests fall into them."""
    first = upstreams()
    front.connect({PORT: first.endpoint})
    first.close()
    client = a_client(front)
    client.sendall(GET)
    second = upstreams()

    front.connect({PORT: second.endpoint})
    server = second.accept()
    read(server, len(GET))
    server.sendall(OK)

    assert OK == read(client, len(OK))


def test_a_half_answer_is_replaced_by_a_whole_one(front, upstreams):
    """A body that breaks off would be a broken notebook in the browser."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(GET)
    dying = first.accept()
    read(dying, len(GET))
    dying.sendall(OK[:-1])

    front.disconnect()
    first.close()
    dying.close()
    second = upstreams()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    read(server, len(GET))
    server.sendall(OK)

    assert OK == read(client, len(OK))


def test_an_idle_client_keeps_its_connection_over_the_break(front, upstreams):
    """A program with one kept-alive connection would fail at its next request."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(GET)
    dying = first.accept()
    read(dying, len(GET))
    dying.sendall(OK)
    read(client, len(OK))

    front.disconnect()
    first.close()
    dying.close()
    client.sendall(GET)
    second = upstreams()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    asked = read(server, len(GET))
    server.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_a_post_under_way_is_not_sent_twice(front, upstreams):
    """The client learns that it failed; only it knows whether to try again."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(POST)
    dying = first.accept()
    read(dying, len(POST))

    front.disconnect()
    first.close()
    dying.close()

    assert b"" == client.recv(1)


def test_a_server_that_closes_without_an_answer_is_not_asked_twice(front, upstreams):
    """A request that crashes the server would crash it again."""
    upstream, client = upstreams(), a_client(front)
    front.connect({PORT: upstream.endpoint})
    client.sendall(GET)
    server = upstream.accept()
    read(server, len(GET))

    server.close()

    assert b"" == client.recv(1)
    assert b"" == upstream.accept().recv(1)


def test_a_client_that_asks_again_after_the_server_has_hung_up_is_served(front, upstreams):
    """Whether the server closed a quiet connection or ssh is about to die is not the client's worry."""
    upstream, client = upstreams(), a_client(front)
    front.connect({PORT: upstream.endpoint})
    client.sendall(GET)
    server = upstream.accept()
    read(server, len(GET))
    server.sendall(OK)
    read(client, len(OK))
    upstream.accept()  # the spare

    server.close()
    again = upstream.accept()
    client.sendall(GET)
    asked = read(again, len(GET))
    again.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_an_ssh_that_takes_its_time_to_die_loses_nothing(front, upstreams):
    """On a busy computer a killed process listens on for a while; the soak lost one request in a hundred drops to that."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(GET)
    dying = first.accept()
    read(dying, len(GET))

    dying.close()
    lingering = first.accept()
    threading.Event().wait(0.3)
    front.disconnect()
    first.close()
    lingering.close()
    second = upstreams()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    asked = read(server, len(GET))
    server.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_a_client_that_has_not_asked_yet_outlives_the_break(front, upstreams):
    """Between connecting and asking there is a moment; the soak lost one request in two hundred drops to it."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    dying = first.accept()

    front.disconnect()
    first.close()
    dying.close()
    threading.Event().wait(0.05)
    client.sendall(GET)
    second = upstreams()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    asked = read(server, len(GET))
    server.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_an_ssh_that_hangs_after_it_closed_loses_nothing(front, upstreams):
    """Its listening socket lives on, so only the next link tells that it was not the server that closed."""
    first, client = upstreams(), a_client(front)
    front.connect({PORT: first.endpoint})
    client.sendall(GET)
    hanging = first.accept()
    read(hanging, len(GET))

    hanging.close()
    lingering = first.accept()
    second = upstreams()
    front.disconnect()
    front.connect({PORT: second.endpoint})
    server = second.accept()
    asked = read(server, len(GET))
    server.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))
    assert b"" == lingering.recv(1)


def an_answered_client(front, upstream, answer=OK) -> None:
    """Let a client be answered; it and the server keep the connection open until the end of the test."""
    client = a_client(front)
    client.sendall(GET)
    server = upstream.accept()
    read(server, len(GET))
    server.sendall(answer)
    read(client, len(answer))
    front.kept += [client, server]


def test_the_next_client_finds_its_channel_open(front, upstreams):
    """Opening a channel is a round trip to the instance, which every new connection of a browser would wait for."""
    upstream = upstreams()
    front.connect({PORT: upstream.endpoint})
    an_answered_client(front, upstream)
    spare = upstream.accept()  # nobody has asked for it yet

    client = a_client(front)
    client.sendall(GET)
    asked = read(spare, len(GET))
    spare.sendall(OK)

    assert GET == asked
    assert OK == read(client, len(OK))


def test_a_spare_that_the_server_has_closed_is_given_to_nobody(front, upstreams):
    """A POST on it could not be sent again."""
    upstream = upstreams()
    front.connect({PORT: upstream.endpoint})
    an_answered_client(front, upstream)
    upstream.accept().close()

    client = a_client(front)
    client.sendall(POST)
    server = upstream.accept()
    asked = read(server, len(POST))
    server.sendall(OK)

    assert POST == asked
    assert OK == read(client, len(OK))


def test_a_spare_goes_with_its_link(front, upstreams):
    """Through an ssh that was replaced it would lead nowhere."""
    first, second = upstreams(), upstreams()
    front.connect({PORT: first.endpoint})
    an_answered_client(front, first)
    spare = first.accept()

    front.connect({PORT: second.endpoint})
    client = a_client(front)
    client.sendall(GET)
    server = second.accept()

    assert b"" == read(spare, 1)
    assert GET == read(server, len(GET))


def test_a_server_that_keeps_no_connection_open_gets_no_spare(front, upstreams):
    """One that serves a single client at a time would serve nobody else."""
    upstream = upstreams()
    front.connect({PORT: upstream.endpoint})
    an_answered_client(front, upstream, b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")

    client = a_client(front)
    client.sendall(GET)
    server = upstream.accept()

    assert GET == read(server, len(GET))


def test_waiting_browsers_get_the_page_and_others_wait_on(front, upstreams):
    """The student reads what happened in the tab, not in a terminal that is covered."""
    page = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nsoon"
    early, late, silent = a_client(front), a_client(front), a_client(front)
    early.sendall(GET)

    front.show(page)
    late.sendall(GET)

    assert page == read(early, 1000)
    assert page == read(late, 1000)
    front.show(None)
    upstream = upstreams()
    front.connect({PORT: upstream.endpoint})
    silent.sendall(GET)
    assert GET == read(upstream.accept(), len(GET))


def test_bulk_arrives_whole_in_both_directions_at_once(front, upstreams):
    """Flow control in both directions at the same time is where copying loops deadlock."""
    upstream, client = upstreams(), a_client(front)
    front.connect({PORT: upstream.endpoint})
    up, down = os.urandom(3_000_001), os.urandom(3_000_002)
    server = upstream.accept()
    got: dict[str, bytes] = {}

    def talk(name: str, end: socket.socket, given: bytes, expected: int) -> None:
        sender = threading.Thread(target=end.sendall, args=(given,))
        sender.start()
        got[name] = read(end, expected)
        sender.join()

    threads = [
        threading.Thread(target=talk, args=("server", server, down, len(up))),
        threading.Thread(target=talk, args=("client", client, up, len(down))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (up, down) == (got["server"], got["client"])


def test_a_slow_client_stops_the_server_and_not_our_memory(front, upstreams):
    """A paused download of a data set must not be collected in the tunnel."""
    upstream, client = upstreams(), a_client(front)
    front.connect({PORT: upstream.endpoint})
    server = upstream.accept()
    server.settimeout(1)
    taken = 0

    with pytest.raises(TimeoutError):
        while taken < 200 << 20:
            taken += server.send(b"x" * 65536)

    assert taken < 50 << 20
    client.close()


def test_the_end_of_one_direction_leaves_the_other_open(front, upstreams):
    """`curl -T -` and git end their side first and then read the answer."""
    upstream, client = upstreams(), a_client(front)
    front.connect({PORT: upstream.endpoint})
    client.sendall(b"all I have to say")
    client.shutdown(socket.SHUT_WR)
    server = upstream.accept()

    heard = read(server, 1000)
    server.sendall(b"the answer")
    server.close()

    assert b"all I have to say" == heard
    assert b"the answer" == read(client, 1000)


def test_many_clients_at_once_are_all_served(front, upstreams):
    """JupyterLab opens dozens of connections while it loads; ssh's own backlog is short."""
    upstream = upstreams()
    clients = [a_client(front) for _ in range(60)]
    for client in clients:
        client.sendall(GET)

    front.connect({PORT: upstream.endpoint})
    servers = [upstream.accept() for _ in clients]
    for server in servers:
        read(server, len(GET))
        server.sendall(OK)

    assert {OK} == {read(client, len(OK)) for client in clients}


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")
def test_a_full_backlog_is_tried_again(front, tmp_path):
    """A burst fills the queue before ssh; a client that comes in between must not wait for the next ssh."""
    upstream = Upstream(tmp_path / "full.sock")
    upstream._listening.listen(0)
    front.connect({PORT: upstream.endpoint})
    clients = [a_client(front) for _ in range(10)]
    for client in clients:
        client.sendall(GET)

    servers = [upstream.accept() for _ in clients]
    for server in servers:
        read(server, len(GET))
        server.sendall(OK)

    assert {OK} == {read(client, len(OK)) for client in clients}
    upstream.close()


def test_a_client_that_left_while_waiting_is_forgotten(front, upstreams):
    """A closed tab must not run its request minutes later."""
    leaving, staying = a_client(front), a_client(front)
    leaving.sendall(POST)
    staying.sendall(GET)
    while front.waiting != 2:
        threading.Event().wait(0.01)
    leaving.close()
    while front.waiting != 1:
        threading.Event().wait(0.01)
    upstream = upstreams()

    front.connect({PORT: upstream.endpoint})

    assert GET == read(upstream.accept(), len(GET))
