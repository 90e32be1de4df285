"""
The sandbox as a server: one world behind a port of 127.0.0.1, its control API beside it, and its end without remains.

Run as a program by `gpulab sandbox start`. Hides the web server and the signals; the rules of the world are in `world`.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulab.errors import GpulabError, WrongUsage
from gpulab.sandbox.control import CONTROL_PATH, Daemon, record, write_record
from gpulab.sandbox.machines import CannotBoot, MachineKind
from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.witnesses import keep_in

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from werkzeug.serving import BaseWSGIServer

    from gpulab.sandbox.world import World

REGION = "us-east-1"
_LOOPBACK = "127.0.0.1"
_LARGEST_REQUEST = 1024 * 1024
_LOOK_EVERY_S = 1.0


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Be the sandbox until SIGTERM or a `stop` request."""
    options = _parser().parse_args(arguments)
    try:
        keep_in(environment)
    except OSError as error:
        return _say(f"could not keep in {error.filename} what is asked for: {error.strerror}")
    try:
        kind = machine_kind(options.machines, options.folder / "process", environment)
    except CannotBoot as reason:
        return _say(str(reason))
    try:
        return _serve(options, kind)
    except OSError as error:
        return _say(f"could not listen on port {options.port}: {error.strerror}")
    finally:
        if kind is not None:
            kind.close()


def machine_kind(name: str, folder: Path, environment: Mapping[str, str]) -> MachineKind | None:
    """
    Make the kind of machines that stand behind instances; `None` for none.

    Raises:
        CannotBoot: This computer lacks something that kind needs.
    """
    if name == "process":
        from gpulab.sandbox.machines.process import ProcessKind

        return ProcessKind(folder, host=environment)
    if name == "container":
        from gpulab.sandbox.machines.container import open_kind

        return open_kind(environment)
    return None


class ControlApi:
    """
    The control API as a WSGI application: POST, JSON in and out, opened by a secret.

    Args:
        answers: What each request does, by the last part of its path; a `GpulabError` becomes an explained answer.
    """

    def __init__(
        self, secret: str, answers: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    ) -> None:
        self._secret = secret
        self._answers = answers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        status, value = self._answer(environ)
        body = json.dumps(value).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    def _answer(self, environ: WSGIEnvironment) -> tuple[str, Any]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._secret.encode()):
            return "403 Forbidden", {"error": "the secret of the control API is missing or wrong"}
        answer = self._answers.get(str(environ["PATH_INFO"]).removeprefix(CONTROL_PATH))
        if answer is None or environ["REQUEST_METHOD"] != "POST":
            return "404 Not Found", {"error": f"no such request: {environ['PATH_INFO']}"}
        try:
            return "200 OK", answer(_body(environ))
        except WrongUsage as error:
            return "400 Bad Request", {"error": error.message, "hint": error.hint}
        except (GpulabError, KeyError, TypeError, ValueError) as error:
            return "500 Internal Server Error", {"error": f"{type(error).__name__}: {error}"}


def beside(control: WSGIApplication, aws: WSGIApplication) -> WSGIApplication:
    """Put the control API beside AWS on one port; no AWS call has its path."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_control = str(environ.get("PATH_INFO", "")).startswith(CONTROL_PATH)
        return (control if is_control else aws)(environ, start_response)

    return application


def make_world(options: argparse.Namespace, kind: MachineKind | None) -> World:
    """Make the world; its clock runs."""
    from gpulab.sandbox.clock import RunningClock
    from gpulab.sandbox.rules import Delays, Rules
    from gpulab.sandbox.world import World

    # A machine that is there writes its console itself, at its own pace; only a made-up one has to be held back.
    delays = replace(Delays(), first_console=timedelta(0)) if kind is not None else Delays()
    world = World(
        seed=options.seed,
        clock=RunningClock(speed=options.speed),
        rules=Rules(delays=delays),
        machines=kind,
        ready=not options.not_ready,
    )
    world.credentials.salt = str(options.seed)
    return world


def _serve(options: argparse.Namespace, kind: MachineKind | None) -> int:
    # First, because it may be refused, and what follows imports moto, which takes a second.
    opened = _open_ports(options.port, kind)
    from gpulab.sandbox.steering import ANSWERS
    from gpulab.sandbox.wsgi import wsgi_app

    world = make_world(options, kind)
    secret = secrets.token_urlsafe(32)
    over = threading.Event()
    answers = {name: _bound(answer, world) for name, answer in ANSWERS.items()}
    control = ControlApi(secret, {**answers, "stop": lambda _: over.set()})
    application = beside(control, wsgi_app(world))
    listeners = [_server_on(one, application) for one in opened]
    port = listeners[0].port
    seen_as = _seen_as(kind)
    world.endpoint_for_machines = f"http://{seen_as}:{port}"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    world.open()
    try:
        world.start_ticking()
        for listener in listeners:
            threading.Thread(target=listener.serve_forever, daemon=True).start()
        write_record(options.folder, _record_of(world, options, secret, (seen_as, port)))
        _wait(over, lambda: _is_recorded(options.folder, secret))
    finally:
        if _is_recorded(options.folder, secret):
            record(options.folder).unlink(missing_ok=True)
        for listener in listeners:
            listener.shutdown()
        world.close()
    return 0


def _bound(answer: Callable[[World, Mapping[str, Any]], Any], world: World) -> Any:
    return lambda request: answer(world, request)


def _open_ports(port: int, kind: MachineKind | None) -> list[socket.socket]:
    """Listen on 127.0.0.1, and where machines with addresses of their own find us under the same port."""
    hosts = dict.fromkeys([_LOOPBACK, _seen_as(kind)])
    opened: list[socket.socket] = []
    for host in hosts:
        at = opened[0].getsockname()[1] if opened else port
        opened.append(socket.create_server((host, at), backlog=128))
    return opened


def _server_on(opened: socket.socket, application: WSGIApplication) -> BaseWSGIServer:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Writes no line for each request: the call log has them."""

        def log_request(self, *_: Any) -> None:
            """Nothing."""

    host, port = opened.getsockname()[:2]
    return make_server(
        host, port, application, threaded=True, request_handler=Quiet, fd=opened.fileno()
    )


def _seen_as(kind: MachineKind | None) -> str:
    """The address under which machines reach this computer, and from which it reaches them."""
    return kind.endpoint_host() if kind is not None else _LOOPBACK


def _record_of(
    world: World, options: argparse.Namespace, secret: str, place: tuple[str, int]
) -> Daemon:
    seen_as, port = place
    key = world.key_of()
    return Daemon(
        url=f"http://{seen_as}:{port}",
        secret=secret,
        pid=os.getpid(),
        started=trees.started_at(os.getpid()),
        machines=options.machines,
        speed=options.speed,
        seed=options.seed,
        region=REGION,
        seen_as=seen_as,
        account=key.account,
        access_key=key.access_key,
        secret_key=key.secret,
    )


def _wait(over: threading.Event, is_recorded: Callable[[], bool]) -> None:
    """Wait for the end, which has come too when nobody can find this sandbox any more: its folder was deleted, or is another's."""
    while not over.wait(timeout=_LOOK_EVERY_S) and is_recorded():
        pass


def _is_recorded(folder: Path, secret: str) -> bool:
    try:
        said = json.loads(record(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # not a word about whose it is
        return True
    return isinstance(said, dict) and said.get("secret") == secret


def _body(environ: WSGIEnvironment) -> Mapping[str, Any]:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > _LARGEST_REQUEST:
        raise WrongUsage("the request is too large")
    value = json.loads(environ["wsgi.input"].read(length) or b"{}")
    if not isinstance(value, dict):
        raise WrongUsage("the request is not a JSON object")
    return value


def _say(sentence: str) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpulab.sandbox serve")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--machines", choices=["process", "container", "none"], default="process")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--not-ready", action="store_true")
    return parser
