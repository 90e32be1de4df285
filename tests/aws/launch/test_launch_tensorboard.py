"""`gpulab open --tensorboard` on the laptop: started before the tunnel, both through one tunnel, an open one used or replaced."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from gpulab.errors import CommandFailed, WrongUsage
from gpulab.launch.running import browser, tensorboard
from gpulab.remote.process import Completed


class Host:
    """An instance that answers the program as told."""

    def __init__(self, answer=Completed(0, b"{}", "")):  # noqa: B008 - frozen
        self.answer, self.asked = answer, []

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

    def open_it(logdir=None):
        return browser.open_detached(context, instance, with_browser=False, logdir=logdir)

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


@pytest.mark.parametrize("logdir", ["/var/log", "../other", "work/../../x"])
def test_a_folder_outside_the_home_is_refused(student, logdir):
    """It is made when it is not there."""
    with pytest.raises(WrongUsage, match="is not a folder below the home"):
        tensorboard.start(student.context, student.up().instance, logdir=logdir)
