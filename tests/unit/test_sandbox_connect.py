"""The ssh ProxyCommand of the sandbox: bytes, ends and refusals, without a sandbox."""

from __future__ import annotations

import os
import socket
import threading

from gpulab.sandbox.connect import carry, connect


def test_bytes_go_both_ways_and_the_end_is_passed_on():
    """Ssh talks in small and large pieces; what it sent last must arrive before the end does."""
    near, far = socket.socketpair()
    source, into_source = os.pipe()
    out_of_sink, sink = os.pipe()
    sent = os.urandom(50_000)
    received: list[bytes] = []

    def echo_backwards() -> None:
        while piece := far.recv(65536):
            received.append(piece)
        far.sendall(b"".join(received)[::-1])
        far.close()

    peer = threading.Thread(target=echo_backwards)
    peer.start()
    os.write(into_source, sent)
    os.close(into_source)

    carry(near, source, sink)

    peer.join()
    assert sent[::-1] == os.read(out_of_sink, 65536)


def test_it_ends_with_the_machine_even_while_the_client_is_silent():
    """When a machine is cut off, ssh must notice at once and not when somebody types."""
    near, far = socket.socketpair()
    source, into_source = os.pipe()
    out_of_sink, sink = os.pipe()
    far.sendall(b"SSH-2.0-x\r\n")
    far.close()

    carry(near, source, sink)

    os.close(into_source)
    assert b"SSH-2.0-x\r\n" == os.read(out_of_sink, 100)


def test_a_client_that_has_gone_is_no_traceback():
    """Ctrl-C of ssh closes the pipe while bytes are on their way."""
    near, far = socket.socketpair()
    source, into_source = os.pipe()
    out_of_sink, sink = os.pipe()
    os.close(out_of_sink)
    far.sendall(b"x" * 1000)

    carry(near, source, sink)

    os.close(into_source)
    assert near.fileno() != -1


def test_without_a_sandbox_it_times_out_and_says_why(tmp_path, capsys):
    """Ssh shows this line to a person; the words before it are those a network would give."""
    code = connect("54.210.1.2", 22, {"GPULAB_HOME": str(tmp_path)})

    expected = (
        "connect to address 54.210.1.2 port 22: Connection timed out (the sandbox is not running)\n"
    )
    assert (1, expected) == (code, capsys.readouterr().err)
