"""The rules every test runs under hold: a closed network, no waiting, a stranger's computer."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_a_test_cannot_connect_to_another_host():
    """A test that reaches the real AWS could spend a contributor's money."""
    with (
        socket.socket() as outside,
        pytest.raises(BaseException, match=r"connects to 192\.0\.2\.1"),
    ):
        outside.connect(("192.0.2.1", 443))


def test_a_test_cannot_look_up_a_name():
    """A lookup leaves the host before any connection does."""
    with pytest.raises(BaseException, match=r"looks up ec2\.us-east-1"):
        socket.getaddrinfo("ec2.us-east-1.amazonaws.com", 443)


def test_this_host_stays_reachable():
    """The sandbox and the tunnels are tested on localhost."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            reached = client.getpeername()

        assert server.getsockname() == reached


def test_a_unit_test_cannot_wait():
    """Sleep is an argument below the command line; a test that waits hides one that is not."""
    with pytest.raises(BaseException, match="sleeps 2 s"):
        time.sleep(2)


def test_a_command_of_a_test_finds_no_credentials_and_an_empty_home():
    """A contributor's own profile must never reach a test, nor a program it starts."""
    script = "import os; print([n for n in os.environ if n.startswith('AWS_')], os.listdir(os.path.expanduser('~')))"

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "['AWS_EC2_METADATA_DISABLED'] []\n" == printed.stdout


def test_each_test_has_its_own_folder_of_gpulab():
    """Two tests that shared a ledger would pass or fail by their order."""
    home = Path(os.environ["GPULAB_HOME"])

    assert not home.exists()
    assert home.name.startswith("gpulab-home-")
