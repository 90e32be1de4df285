"""
From an instance to an open JupyterLab or TensorBoard in the browser. Hides the token, the local port, the tunnel's process and finding an
instance that was replaced. The token, and TensorBoard's path, never stand in an address that is printed, in an argument or in a log.
"""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpulab.aws import instances as ec2
from gpulab.errors import NotFound, Unreachable
from gpulab.launch.context import Context
from gpulab.launch.running import agent, booting, instances, tensorboard
from gpulab.launch.running.fetching import fetching
from gpulab.model.instance import Instance
from gpulab.remote import detached, ports, tunnel
from gpulab.remote.supervisor import EventKind, Gone, TunnelEvent
from gpulab.remote.target import SshTarget

JUPYTER_PORT = 8888
_CONNECT_WITHIN_S = 60.0
_LOOK_S = 2.0
# A browser needs a moment to read the file that leads it to JupyterLab.
_REDIRECT_LIVES_S = 20.0


@dataclass(frozen=True)
class Opened:
    """
    An open way to JupyterLab.

    Attributes:
        url: On this computer; without the token.
        is_new: Whether the tunnel was started for this call.
        tensorboard_url: The same for TensorBoard, without its secret path; empty when it was not asked for.
    """

    name: str
    url: str
    port: int
    is_new: bool
    tensorboard_url: str = ""


def urls(context: Context) -> Mapping[str, str]:
    """List where background tunnels listen, by the instance's name."""
    return {
        record.name: _url(record.ports[JUPYTER_PORT])
        for record in detached.listing(context.folder.tunnels)
        if JUPYTER_PORT in record.ports
    }


def open_detached(
    context: Context,
    instance: Instance,
    *,
    port: int | None = None,
    with_browser: bool = True,
    logdir: str | None = None,
) -> Opened:
    """
    Keep a tunnel in the background and open the browser; a tunnel that is open already is used again.

    Args:
        logdir: Where TensorBoard reads, below the home: it is started and opened. `None` for JupyterLab.

    Raises:
        Unreachable: The tunnel did not come up.
        RemoteError: The instance does not give its token.
    """
    running = detached.find(context.folder.tunnels, instance.name)
    path = tensorboard.start(context, instance, logdir=logdir) if logdir is not None else ""
    if running is not None and not _serves(running, port, with_tensorboard=logdir is not None):
        detached.stop(context.folder.tunnels, instance.name)
        running = None
    record = running or _start(context, instance, port, with_tensorboard=logdir is not None)
    opened = _opened(
        instance, record.ports, is_new=running is None, with_tensorboard=logdir is not None
    )
    if with_browser:
        _browse(context, instance, opened, path)
    return opened


def serve(
    context: Context,
    instance: Instance,
    *,
    port: int | None = None,
    with_browser: bool = True,
    is_announced: bool = False,
    logdir: str | None = None,
    on_open: Callable[[Opened], None] = lambda opened: None,
    on_change: Callable[[str], None] = lambda text: None,
) -> None:
    """
    Keep a tunnel in this process until it is interrupted or the instance has ended for good.

    Args:
        is_announced: Whether this process is the background tunnel of the name, and says so in its file.
        logdir: See `open_detached`; the background tunnel only forwards, its caller has started TensorBoard.
        on_open: Called once JupyterLab can be reached.
        on_change: Told in a sentence when the link is lost and found.

    Raises:
        Unreachable: It did not come up, or the instance has ended.
        HostKeyMismatch, LoginRefused: Waiting does not mend it.
    """
    is_starting = logdir is not None and not is_announced
    path = tensorboard.start(context, instance, logdir=logdir or "") if is_starting else ""
    wanted = (JUPYTER_PORT,) if logdir is None else (JUPYTER_PORT, tensorboard.PORT)
    sockets = ports.listen(instance.name, wanted, local_port=port)
    finder = _Finder(context, instance)

    was_lost = threading.Event()

    def take(event: TunnelEvent) -> None:
        if event.kind is EventKind.LOST:
            was_lost.set()
        text = _sentence(event)
        # The first connection is not one that was found again.
        if text and (was_lost.is_set() or event.kind is not EventKind.CONNECTED):
            on_change(text)

    with (
        tunnel.running(finder.target, sockets, refresh=finder.refresh, on_event=take) as running,
        fetching(context, instance, target=lambda: finder.target, say=on_change),
    ):
        running.wait_connected(_CONNECT_WITHIN_S)
        opened = _opened(instance, running.ports, is_new=True, with_tensorboard=logdir is not None)
        if is_announced:
            _announce(context, instance, running.ports)
        if with_browser:
            _browse(context, instance, opened, path)
        on_open(opened)
        try:
            gone = _wait(context, instance, running, is_announced=is_announced)
        finally:
            detached.withdraw(context.folder.tunnels, instance.name)
    if gone is not None:
        raise Unreachable(
            f"{instance.name} has ended: {gone.reason}",
            hint=f"`gpulab up {instance.name}` brings the work back",
        )


def lead(folder: Path, opened: Opened, token: str) -> None:
    """
    Lead the browser to JupyterLab by a private file, so that the token stands in no process list.

    Source:
        The way of jupyter_server's `use_redirect_file`.
    """
    _lead(folder, f"{opened.url}?token={token}", to="JupyterLab")


def close(context: Context, instance: Instance) -> bool:
    """Close the background tunnel of an instance; say whether there was one."""
    return detached.stop(context.folder.tunnels, instance.name) is not None


class _Finder:
    """
    Finds where an instance is now: the same one, the one that replaced it, or none.

    Attributes:
        target: Where it was found last.
    """

    def __init__(self, context: Context, instance: Instance) -> None:
        self._context = context
        self._name = instance.name
        self._region = instance.place.region
        self.target = instances.target(context, instance)

    def refresh(self, target: SshTarget) -> SshTarget | Gone | None:
        found = instances.find_alive(self._context, self._name).instance
        if found is not None and found.address:
            if found.id != target.instance_id:
                for _ in booting.pin(self._context, found):
                    pass
            self.target = instances.target(self._context, found)
            return self.target
        if found is not None:
            return None
        reason = self._why_ended(target.instance_id)
        if reason is None:
            return None
        if reason.startswith("Server.Spot"):
            return Gone(
                f"AWS took it back; type `gpulab up {self._name}` in a terminal and this page goes on"
            )
        return Gone("it was ended" + (f" ({reason})" if reason else ""), is_final=True)

    def _why_ended(self, instance_id: str) -> str | None:
        """Return why it has ended, `""` where EC2 does not say; `None` when it has not: a region did not answer a moment ago."""
        try:
            seen = ec2.read(self._context.cloud, self._region, instance_id)
        except NotFound:  # EC2 forgets an ended instance after about an hour
            return ""
        return seen.state_reason if seen.state.is_over else None


def _serves(record: detached.TunnelRecord, port: int | None, *, with_tensorboard: bool) -> bool:
    """Whether an open tunnel is the one that is wanted."""
    is_there = tensorboard.PORT in record.ports or not with_tensorboard
    return is_there and port in (None, record.ports.get(JUPYTER_PORT))


def _opened(
    instance: Instance, found: Mapping[int, int], *, is_new: bool, with_tensorboard: bool
) -> Opened:
    local = found[JUPYTER_PORT]
    board = f"http://127.0.0.1:{found[tensorboard.PORT]}/" if with_tensorboard else ""
    return Opened(instance.name, _url(local), local, is_new, board)


def _start(
    context: Context, instance: Instance, port: int | None, *, with_tensorboard: bool
) -> detached.TunnelRecord:
    profile = context.profile.name
    words = [
        sys.executable,
        "-P",
        "-m",
        "gpulab",
        "--profile",
        profile,
        "open",
        instance.name,
        "--announce",
    ]
    if port is not None:
        words += ["--port", str(port)]
    if with_tensorboard:
        words += ["--tensorboard"]
    folder = context.folder.tunnels
    return detached.start(
        words,
        folder=folder,
        name=instance.name,
        log_file=folder / f"{instance.name}.log",
        environ=context.environment,
        sleep=context.sleep,
    )


def _announce(context: Context, instance: Instance, found: Mapping[int, int]) -> None:
    folder = context.folder.tunnels
    detached.announce(
        folder,
        name=instance.name,
        instance_id=instance.id,
        ports=found,
        log_file=folder / f"{instance.name}.log",
    )


def _wait(
    context: Context, instance: Instance, running: tunnel.Tunnel, *, is_announced: bool
) -> Gone | None:
    """Wait for the end, removing old redirect files; a background tunnel also ends when its file is gone."""
    while True:
        with contextlib.suppress(TimeoutError):
            return running.wait_ended(_LOOK_S)
        _remove_old_redirects(context.folder.tunnels)
        if is_announced and not detached.is_announced(context.folder.tunnels, instance.name):
            return None


def _browse(context: Context, instance: Instance, opened: Opened, path: str) -> None:
    folder = context.folder.tunnels
    if path:
        _lead(folder, opened.tensorboard_url.rstrip("/") + path + "/", to="TensorBoard")
    else:
        lead(folder, opened, agent.token(instances.host(context, instance)))


def _lead(folder: Path, address: str, *, to: str) -> None:
    file = _redirect(folder, address, to=to)
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(file.as_uri())


def _redirect(folder: Path, address: str, *, to: str) -> Path:
    _remove_old_redirects(folder)
    file = folder / f"open-{os.urandom(8).hex()}.html"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(_PAGE.format(address=html.escape(address), to=to))
    return file


def _remove_old_redirects(folder: Path) -> None:
    for file in folder.glob("open-*.html"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _REDIRECT_LIVES_S:
                file.unlink()


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/lab"


def _sentence(event: TunnelEvent) -> str:
    match event.kind:
        case EventKind.LOST:
            return f"The link is lost ({event.detail}); requests wait, connecting again"
        case EventKind.CONNECTED if event.seconds > 0:
            return f"Connected again after {event.seconds:.1f} s"
        case EventKind.REPLACED:
            return "The instance was replaced; the tunnel leads to the new one (`gpulab open` logs the browser in)"
        case EventKind.GONE:
            return event.detail
    return ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Opening {to}</title>
<meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={address}"></head>
<body><p>Opening <a href="{address}">{to}</a></p></body></html>
"""
