"""`gpulab dashboard` from the command line: what it prints and leaves behind, and what the open port answers to a program."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from gpulab.cli.main import run
from gpulab.dashboard.feed import Feed
from gpulab.dashboard.gate import Gate
from gpulab.dashboard.serving import Served, serving
from gpulab.errors import WrongUsage
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import RunningClock

_BUILDERS = Path(__file__).parents[1] / "unit" / "dashboard_builders.py"
_spec = importlib.util.spec_from_file_location("dashboard_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
_PATIENCE_S = 60.0


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    """A dashboard of a busy lab."""
    feed = Feed("c1 w1", now=lambda: build.NOW, sleep=time.sleep)
    feed.publish(build.busy_lab())
    with serving(feed, folder=tmp_path / "dashboard") as opened:
        yield opened


def ask(served: Served, method: str, path: str, body: str = "", **headers: str):
    """Send one request as a program would; `Host` is ours unless it is given."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=20)
    with contextlib.closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, sent)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def enter(served: Served) -> str:
    """Show the secret as the private file does, and return the cookie."""
    status, headers, _ = ask(
        served,
        "POST",
        "/enter",
        urlencode({"secret": secret_of(served.file)}),
        Origin="null",
        Content_Type="application/x-www-form-urlencoded",
    )
    assert 200 == status
    return headers["set-cookie"].partition(";")[0]


def secret_of(file: Path) -> str:
    return re.search(r'name="secret" value="([^"]+)"', file.read_text()).group(1)


def test_the_secret_opens_the_page_and_nothing_else_does(served):
    """Every other user of this computer can reach the port."""
    path = served.gate.base + "state.json"

    without = ask(served, "GET", path)
    guessed = ask(served, "POST", "/enter", "secret=guessed")
    with_it = ask(served, "GET", path, Cookie=enter(served))

    assert (401, 403, 200) == (without[0], guessed[0], with_it[0])
    assert "set-cookie" not in guessed[1]
    assert 25 == len(json.loads(with_it[2])["tiles"])


def test_the_cookie_is_of_this_page_alone(served):
    """Scripts may not read it, other sites may not send it, other ports do not get it."""
    body = urlencode({"secret": served.gate.secret})

    _, headers, _ = ask(served, "POST", "/enter", body, Origin="null")

    attributes = headers["set-cookie"].lower().split("; ")[1:]
    assert ["httponly", f"path={served.gate.base.lower()}", "samesite=strict"] == sorted(attributes)


def test_every_answer_carries_the_policy(served):
    """Refusals too: a page that is refused must not be framed or sniffed either."""
    cookie = enter(served)
    answers = [
        ask(served, "GET", "/"),
        ask(served, "GET", served.gate.base, Cookie=cookie),
        ask(served, "GET", served.gate.base + "state.json", Cookie=cookie),
        ask(served, "GET", "/dashboard.js"),
        ask(served, "GET", "/nowhere"),
        ask(served, "GET", "/", Host="evil.example"),
    ]

    assert [200, 200, 200, 200, 404, 421] == [status for status, _, _ in answers]
    for _, headers, _ in answers:
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("nosniff", "no-store", "same-origin") == (
            headers["x-content-type-options"],
            headers["cache-control"],
            headers["cross-origin-resource-policy"],
        )
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_what_is_no_http_ends_nothing(served, capfd):
    """A port scanner on the same computer."""
    for rubbish in (b"\0\xff" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.gate.port), timeout=20) as connection:
            connection.sendall(rubbish)
            assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]

    assert 200 == ask(served, "GET", "/")[0]
    assert ("", "") == capfd.readouterr()


def test_a_form_too_large_is_a_wrong_secret(served):
    """Memory is not filled by who has no secret."""
    status, _, page = ask(served, "POST", "/enter", "secret=" + "x" * 100_000)

    assert 403 == status
    assert "That is not the code" in page


def test_a_port_that_is_taken_is_named(served, tmp_path):
    """Two dashboards with one `--port`."""
    with pytest.raises(WrongUsage, match=f"port {served.gate.port} on this computer is taken"):
        with serving(
            Feed("x", now=lambda: build.NOW, sleep=time.sleep),
            folder=tmp_path,
            port=served.gate.port,
        ):
            pass


def test_only_this_computer_is_served(served):
    """A lecture hall's Wi-Fi is not the audience."""
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        other = "127.0.0.2"  # this host has no other address; a second loopback one stands in

    with pytest.raises(OSError):
        socket.create_connection((other, served.gate.port), timeout=5).close()


# From here on the command itself.


@pytest.fixture
def course(tmp_path, capsys, monkeypatch) -> Iterator[Path]:
    """A course of one student in one account of the simulated AWS."""
    with Sandbox(clock=RunningClock()):
        folder = tmp_path / "dl"
        run(["course", "new", str(folder), "--shared"])
        plan = (folder / "course.toml").read_text()
        plan = plan.replace('"eu-west-1", "eu-central-1"', '"us-east-1"')
        (folder / "course.toml").write_text(plan)
        (folder / "roster.csv").write_text("id,name,email\ns1,Ann,s1@x.example\n")
        monkeypatch.setenv("GPULAB_COURSE", str(folder))
        capsys.readouterr()
        yield folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wek1"], "has no lab `wek1`"),
        (["week1", "--only", "nobody*"], "no id matches `nobody*`"),
        (["--names"], "choose students of a lab"),
        (["week1", "--every", "1"], "invalid value for '--every'"),
    ],
)
def test_wrong_usage_exits_with_2_before_anything_is_served(course, words, said, capsys):
    """One line, and no page that would show nothing."""
    code = run(["dashboard", *words])

    assert 2 == code
    assert said in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_install_it(capsys, monkeypatch):
    """A student who has gpulab alone."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )

    code = run(["dashboard"])

    captured = capsys.readouterr()
    assert 1 == code
    assert (
        "error: this needs uvicorn, which is not installed\n\n"
        "hint: Install gpulab again with it, as you did before, in its checkout: `pipx install --force '.[dashboard]'`,"
        " `uv tool install --force '.[dashboard]'` or `pip install '.[dashboard]'`;"
        " name the other extras that you use there, too\n"
    ) == captured.err


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A run in the background inherits a deaf ear for SIGINT; a terminal does not."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize(("words", "name"), [([], ""), (["--names"], "Ann")])
def test_a_lab_is_served_from_roster_and_account(course, capsys, words, name):
    """From the roster and the simulated EC2 to the page's JSON, names only when asked for."""
    states: list[dict] = []
    reader = threading.Thread(target=_read_and_end, args=(states,), daemon=True)
    reader.start()

    code = run(["dashboard", "week1", "--no-open", *words])

    reader.join(_PATIENCE_S)
    captured = capsys.readouterr()
    assert (130, 1) == (code, len(states))
    assert captured.out.strip().endswith(".html")
    assert "dl week1: First lab" == states[0]["title"]
    assert [("s1", name, "not up")] == [
        (tile["who"], tile["names"], tile["standing"]) for tile in states[0]["tiles"]
    ]
    assert ["First look: 1 not up"] == [entry["text"] for entry in states[0]["log"]]


def _read_and_end(states: list[dict]) -> None:
    """Be the browser: take the file, show its secret, wait for the first look; then press Ctrl-C."""
    folder = Path(os.environ["GPULAB_HOME"]) / "dashboard"
    try:
        _until(lambda: any(folder.glob("dashboard-*.html")))
        (file,) = folder.glob("dashboard-*.html")
        text = file.read_text()
        port = int(re.search(r"127\.0\.0\.1:(\d+)/enter", text).group(1))
        secret = secret_of(file)
        front = Served(f"http://127.0.0.1:{port}/", file, Gate(port, "/", secret, ""))
        _, headers, page = ask(
            front, "POST", "/enter", urlencode({"secret": secret}), Origin="null"
        )
        base = re.search(r"url=(/[^\"]+/)", page).group(1)
        cookie = headers["set-cookie"].partition(";")[0]

        def state() -> dict:
            return json.loads(ask(front, "GET", f"{base}state.json", Cookie=cookie)[2])

        _until(lambda: state()["tiles"])
        states.append(state())
    finally:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS: Ctrl-C by a signal")
def test_it_serves_looks_and_ends_with_ctrl_c_without_remains(tmp_path, monkeypatch):
    """The browser is handed a file, never the secret; afterwards neither file nor port is left."""
    opened, home = tmp_path / "opened", tmp_path / "home"
    browser = tmp_path / "browser"
    browser.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {opened}.part; mv {opened}.part {opened}\n'
    )
    browser.chmod(0o700)
    environment = {**os.environ, "GPULAB_HOME": str(home), "BROWSER": f"{browser} %s"}
    environment |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "us-east-1"}
    environment |= {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_MAX_ATTEMPTS": "1",
    }

    process = subprocess.Popen(
        [sys.executable, "-m", "gpulab", "dashboard", "--every", "5"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Python leaves a Ctrl-C alone that its parent ignores, as a shell's background jobs do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        try:
            _until(opened.exists)
            (file,) = (home / "dashboard").iterdir()
            words = opened.read_text().split()
            mode = stat.S_IMODE(file.stat().st_mode)
            secret = secret_of(file)
            command = Path(f"/proc/{process.pid}/cmdline")
            argv = command.read_bytes().decode() if command.exists() else ""
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=_PATIENCE_S)

    assert (130, "") == (process.returncode, out)
    assert ([file.as_uri()], 0o600) == (words, mode)
    assert (False, False) == (secret in argv, secret in err)
    assert "The dashboard is at http://127.0.0.1:" in err
    assert "Traceback" not in err
    assert [] == list((home / "dashboard").iterdir())


def _until(is_so) -> None:
    ends = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)
