"""The tunnel's local ports: the same for a name, never shared, never a surprise."""

from __future__ import annotations

import itertools
import socket

import pytest

from gpulab.errors import WrongUsage
from gpulab.remote.ports import listen, preferred


class FakeBind:
    """A computer on which some ports are taken."""

    def __init__(self, *taken: int) -> None:
        self.taken = set(taken)
        self.asked: list[int] = []

    def __call__(self, port: int) -> socket.socket:
        self.asked.append(port)
        if port in self.taken:
            raise OSError
        self.taken.add(port)
        return socket.socket()


def test_a_name_has_the_same_port_every_time():
    """The browser tab of yesterday must lead to the instance of today."""
    assert list(preferred("lab", 8888)) == list(preferred("lab", 8888))
    assert next(preferred("lab", 8888)) != next(preferred("lab", 6006))
    assert next(preferred("lab", 8888)) != next(preferred("other", 8888))


def test_ports_stay_out_of_the_systems_own_range():
    """A port given to an outgoing connection a minute ago would be taken at random."""
    ports = itertools.chain(*(preferred(f"name-{n}", 8888) for n in range(300)))

    assert all(20000 <= port < 32000 for port in ports)


def test_a_taken_port_moves_on_to_the_next():
    """Two students on one computer may collide; both get a tunnel."""
    first, second = itertools.islice(preferred("lab", 8888), 2)
    bind = FakeBind(first)

    for listening in listen("lab", [8888], bind=bind).values():
        listening.close()

    assert [first, second] == bind.asked


def test_a_port_that_was_asked_for_is_the_one_or_an_error():
    """`--port 8888` in a bookmark must not silently become another."""
    with pytest.raises(WrongUsage) as error:
        listen("lab", [8888, 6006], local_port=9999, bind=FakeBind(9999))

    assert "port 9999 on this computer is taken" == error.value.message


def test_ports_are_open_on_this_computer_only():
    """Nobody else in the campus network may reach the student's Jupyter."""
    opened = listen("lab", [8888, 6006])

    addresses = {end.getsockname()[0] for end in opened.values()}
    for end in opened.values():
        end.close()

    assert {"127.0.0.1"} == addresses
    assert [8888, 6006] == list(opened)


def test_no_free_port_at_all_leaves_nothing_open():
    """A failure half-way must give back the ports it took."""
    taken = FakeBind(*preferred("lab", 6006))

    with pytest.raises(WrongUsage) as error:
        listen("lab", [8888, 6006], bind=taken)

    assert "none of 50 ports tried on this computer is free" == error.value.message
