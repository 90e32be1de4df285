"""JupyterLab on a booted machine under attack: from the network, from another site in the student's browser, from another user of the laptop."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest

from gpulab.bootstrap import user_data
from gpulab.sandbox.machines import Ingress

_spec = importlib.util.spec_from_file_location(
    "agent_boot", Path(__file__).with_name("test_agent_boot.py")
)
boot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boot)

# As tutorials on the web say it, when something does not work.
CARELESS = (
    "cd ~/work && setsid -f /opt/gpulab/server/bin/python -m jupyter_server --ServerApp.ip=0.0.0.0 --ServerApp.port=8899"
    " --ServerApp.allow_remote_access=True --IdentityProvider.token= --ServerApp.allow_origin='*'"
    " --ServerApp.disable_check_xsrf=True --ServerApp.open_browser=False </dev/null >/tmp/careless.log 2>&1"
)
# A token as an argument, which is how most write it.
WEAK = (
    "setsid -f /opt/gpulab/server/bin/python -c 'import time; time.sleep(600)'"
    " --IdentityProvider.token=weak-token </dev/null >/dev/null 2>&1"
)
# Where any user of the instance looks, or whoever is sent its logs.
EVERYBODYS = {
    "arguments": "sudo -u nobody sh -c 'cat /proc/[0-9]*/cmdline' 2>/dev/null | tr '\\0' ' '",
    "journal": "sudo journalctl --no-pager -o cat",
    "logs": "sudo cat /var/log/cloud-init*.log 2>/dev/null; gpulab-agent log",
}
# A browser that is logged in sends its cookie along, wherever the request comes from.
ATTACKS = {
    "no token": "curl {quiet} {url}/api/kernels",
    "rebound name": "curl {quiet} -b jar{port} -H 'Host: evil.example:{port}' {url}/api/contents",
    "foreign read": "curl {quiet} -b jar{port} -H 'Origin: http://evil.example' {url}/api/contents",
    "foreign write": "curl {quiet} -b jar{port} -X POST -H 'Origin: http://evil.example' -d '{{}}' {url}/api/contents",
    "write without proof": "curl {quiet} -b jar{port} -X POST -d '{{}}' {url}/api/contents",
    "foreign socket": "curl {quiet} -b jar{port} -H 'Origin: http://evil.example' -H 'Connection: Upgrade' -H 'Upgrade: websocket'"
    " -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' --max-time 3"
    " {url}/api/events/subscribe",
}


def reached(booted, port):
    """Which attacks get what they want, by the machine's own loopback: where the tunnel ends."""
    url = f"http://127.0.0.1:{port}"
    said = {}
    for name, words in ATTACKS.items():
        quiet = "-s -o /dev/null -w '%{http_code}'"
        code = booted.ssh(words.format(quiet=quiet, url=url, port=port)).stdout.strip()[-3:]
        said[name] = code in ("200", "201", "101")
    return said


def is_open_from_here(booted, port):
    try:
        socket.create_connection((booted.birth.private_address, port), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_jupyter_is_reached_by_its_token_through_the_tunnel_and_no_other_way(
    machines, set_up, eventually
):
    """Whoever can call JupyterLab runs programs as the student, with their work and the instance's role."""
    birth = machines.birth()
    wide = Ingress("tcp", 8000, 9000, f"{machines.kind.endpoint_host()}/32")
    spec = user_data(boot.a_spec())
    booted = machines.boot(user_data=spec, ingress=(*birth.ingress, wide)).wait_for_ssh()
    set_up(booted, until="jupyter")
    booted.run(CARELESS)
    booted.run(WEAK)
    alive = "curl -sf http://127.0.0.1:8899/api/status"
    eventually(
        lambda: booted.ssh(alive).returncode == 0, lambda: booted.run("cat /tmp/careless.log")
    )
    for port, more in ((8888, "?token=$(gpulab-agent token)"), (8899, "")):
        booted.run(f'curl -sL -o /dev/null -c jar{port} "http://127.0.0.1:{port}/api/status{more}"')
        booted.run(
            f'curl -sL -o /dev/null -b jar{port} -c jar{port} "http://127.0.0.1:{port}/tree{more}"'
        )

    token = booted.run("gpulab-agent token").strip()
    seen = {where: booted.run(words) for where, words in EVERYBODYS.items()}
    own = booted.run("curl -s -b jar8888 http://127.0.0.1:8888/api/contents")
    found = {port: reached(booted, port) for port in (8888, 8899)}
    outside = {port: is_open_from_here(booted, port) for port in (8888, 8899)}

    assert 64 == len(token)
    assert [] == [where for where, text in seen.items() if token in text]
    assert "--IdentityProvider.token=weak-token" in seen["arguments"]
    assert "jupyter" in seen["arguments"]
    assert "directory" == json.loads(own)["type"]
    assert dict.fromkeys(ATTACKS, True) == found[8899]
    assert dict.fromkeys(ATTACKS, False) == found[8888]
    assert {8888: False, 8899: True} == outside
