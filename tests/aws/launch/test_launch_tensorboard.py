"""`gpulab open --tensorboard` on the laptop: started before the tunnel, both through one tunnel, an open one used or replaced."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gpulab.errors import CommandFailed, WrongUsage
from gpulab.launch.running import browser, tensorboard
from gpulab.remote.process import Completed

PATH = "/" + "5ec2e7" * 10 + "0123"


class Host:
    """An instance that answers the program as told."""

    def __init__(self):
        self.answer, self.asked = Completed(0, json.dumps({"path": PATH}).encode(), ""), []

    def run(self, command, *, given=b"", **_more):
        self.asked.append((command, given))
        return self.answer


@pytest.fixture
def opening(student, monkeypatch):
    """Opens without a browser; the background tunnel is a record, and what is started or stopped is written down."""
    story = []
    instance = student.up().instance
    host = Host()
    context = replace(student.context, connect=lambda target: host)
    held = SimpleNamespace(record=None)

    def start(words, **_more):
        ports = {8888: 21001, 6006: 21002} if "--tensorboard" in words else {8888: 21001}
        story.append("tunnel with " + ", ".join(map(str, ports)))
        held.record = SimpleNamespace(ports=ports)
        return held.record

    monkeypatch.setattr(browser.detached, "find", lambda folder, name: held.record)
    monkeypatch.setattr(browser.detached, "start", start)
    monkeypatch.setattr(browser.detached, "stop", lambda folder, name: story.append("stopped"))

    def open_it(logdir=None, *, with_browser=False):
        return browser.open_detached(context, instance, with_browser=with_browser, logdir=logdir)

    return open_it, story, host


def test_both_go_through_one_tunnel(opening):
    """One supervised connection on a bad network, not two."""
    open_it, story, host = opening

    opened = open_it("work/logs")

    ((command, given),) = host.asked
    assert ["python3", "-", "6006", "work/logs"] == command
    assert b"Starts TensorBoard on an instance" in given
    assert "http://127.0.0.1:21002/" == opened.tensorboard_url
    assert "http://127.0.0.1:21001/lab" == opened.url
    assert ["tunnel with 8888, 6006"] == story


def test_a_tunnel_without_it_is_replaced_by_one_with_both_on_the_same_port(opening):
    """JupyterLab's tab keeps its address: local ports are the same for a name."""
    open_it, story, _ = opening
    open_it()

    open_it("work")

    assert ["tunnel with 8888", "stopped", "tunnel with 8888, 6006"] == story


def test_a_tunnel_with_both_serves_jupyterlab_too(opening):
    """Going back to the notebook must not cut the board's tab."""
    open_it, story, _ = opening
    open_it("work")

    opened = open_it()

    assert ["tunnel with 8888, 6006"] == story
    assert ("", False) == (opened.tensorboard_url, opened.is_new)


def test_an_environment_without_it_is_told_before_a_tunnel_is_opened(opening):
    """A browser with "connection refused" explains nothing."""
    open_it, story, host = opening
    host.answer = Completed(1, b"", "the lab's environment has no TensorBoard\n")

    with pytest.raises(CommandFailed, match="has no TensorBoard"):
        open_it("work")

    assert [] == story


def test_the_browser_is_led_behind_the_path_by_a_private_page(opening, student, monkeypatch):
    """The path is what keeps others out: it is in no argument of the browser, in nothing that is printed, and nobody else reads the page."""
    open_it, story, _ = opening
    shown = []
    monkeypatch.setattr(browser.webbrowser, "open", shown.append)
    before = os.umask(0)
    try:
        opened = open_it("work", with_browser=True)
    finally:
        os.umask(before)

    (page,) = student.context.folder.tunnels.glob("open-*.html")
    assert f'url=http://127.0.0.1:21002{PATH}/"' in page.read_text(encoding="utf-8")
    assert [page.as_uri()] == shown
    assert PATH not in f"{opened} {story} {shown}"
    if os.name == "posix":
        assert 0o600 == stat.S_IMODE(page.stat().st_mode)


@pytest.mark.parametrize(
    "answer",
    [b"{}", b"[]", b"", b'{"path": "/@evil.example"}', b'{"path": ["/"]}', b'{"path": ""}'],
)
def test_an_instance_that_tells_another_path_leads_nowhere(opening, answer):
    """Its owner is root there: the browser goes where the instance says only if that is a path of ours."""
    open_it, story, host = opening
    host.answer = Completed(0, answer, "")

    with pytest.raises(CommandFailed, match="does not tell where TensorBoard is"):
        open_it("work", with_browser=True)

    assert [] == story


@pytest.mark.parametrize("logdir", ["/var/log", "../other", "work/../../x"])
def test_a_folder_outside_the_home_is_refused(student, logdir):
    """It is made when it is not there."""
    with pytest.raises(WrongUsage, match="is not a folder below the home"):
        tensorboard.start(student.context, student.up().instance, logdir=logdir)
