"""Every page that gpulab writes, made of one text from outside, and the same pages without what escapes it."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from tests.aws.security.hostile import Live
from tests.cli.test_report import a_run

from gpulab.course.notebook import read_notebook
from gpulab.fleet.ticket import Ticket
from gpulab.fleets.members import Member
from gpulab.launch.running import browser
from gpulab.model.fleet import AccountRef, Seat
from gpulab.model.report import Report
from gpulab.remote import tunnel
from gpulab.remote.supervisor import Gone
from gpulab.reporting.report import Question, report_of
from gpulab.spending.facts import timeline_of
from gpulab.store.hand_in import export
from gpulab.view import dashboard_page, notebook
from gpulab.view.handout import Handed, handout_html

_BUILDERS = Path(__file__).parents[2] / "unit" / "fleet_builders.py"
_spec = importlib.util.spec_from_file_location("fleet_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

# A file's name has no `/`, so it ends no element.
_ELEMENT = re.compile("<script>.*?</script>")
NOW = datetime(2026, 11, 16, 12, 0, tzinfo=UTC)


def handed(text: str) -> Handed:
    """One student whose every word in the roster is this text."""
    (one,) = build.students(1)
    student = replace(one, name=text, id=text, email=text, group=text)
    seat = Seat("week4-s1", "s1", "s1", "", (student,), AccountRef("default", "", "", ""))
    ticket = Ticket(
        name="week4-s1",
        instance_id="i-0123456789abcdef0",
        address="203.0.113.9",
        user="ubuntu",
        host_key="AAAA",
        private_key="",
        ends_at=NOW,
    )
    return Handed(Member(seat.account, seat, None), ticket, "s1.ticket")


def report(text: str, *labs: str) -> Report:
    """A report whose student's every word is this text, and so are the labs, where no others are named."""
    (one,) = build.students(1)
    student = replace(one, name=text, id=text, owner=text, group=text)
    runs = [a_run(n, owner=text, lab=lab) for n, lab in enumerate(labs or (text,))]
    reading = timeline_of([fact for run in runs for fact in run])
    return report_of(reading, Question(now=NOW, has_names=True), students=[student])


def _report_page(text: str) -> str:
    """Its plots are tested on their own: drawing them takes longer than everything else here."""
    from gpulab.view import report_html

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_html, "plots_of", lambda _: SimpleNamespace(css="", plots=()))
        return report_html.page(report(text), title=text)


def _handout(text: str) -> str:
    return handout_html([handed(text)], title=f"Lab {text}")


def _hand_in(text: str) -> str:
    """The page beside a notebook of this name, as `fleet collect --hand-in` writes it."""
    name = _ELEMENT.sub("", text)
    raw = json.dumps({"cells": [{"cell_type": "code", "source": "1"}]}).encode()
    with tempfile.TemporaryDirectory() as folder:
        collected, into = Path(folder, "work"), Path(folder, "to-grade")
        collected.mkdir()
        (collected / f"{name}.ipynb").write_bytes(raw)
        done = list(export(collected, into, "s1", render=_rendered))
        (page,) = (into / "s1").glob("*.html")
        assert [""] == [one.trouble for one in done]
        return page.read_text(encoding="utf-8")


def _rendered(raw: bytes, title: str) -> str:
    return notebook.notebook_html(read_notebook(raw), title=title)


def _notebook(text: str) -> str:
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}]
    cells = [
        {"cell_type": "markdown", "source": f"# {text}\n\n{text}\n\n```\n{text}\n```"},
        {"cell_type": "code", "source": text, "outputs": outputs, "execution_count": 1},
    ]
    return _rendered(json.dumps({"cells": cells}).encode(), "hand-in")


def _gone(text: str) -> str:
    answer = tunnel.gone_page(Gone(f"ended: {text}", is_final=True)).decode()
    return answer.partition("\r\n\r\n")[2]


def _leading(text: str) -> str:
    """The private file that leads to JupyterLab; the token is what the instance says it is."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(browser.webbrowser, "open", lambda uri: True)
        browser.lead(Path(folder), SimpleNamespace(url="http://127.0.0.1:8888/lab"), text)
        (file,) = Path(folder).glob("open-*.html")
        return file.read_text(encoding="utf-8")


def _dashboard(text: str) -> str:
    return dashboard_page.page(text, static="http://127.0.0.1/")


def _dashboard_leading(text: str) -> str:
    return dashboard_page.leading_page(f"http://127.0.0.1/{text}")


def _dashboard_file(text: str) -> str:
    return dashboard_page.redirect_file("http://127.0.0.1/", text)


PAGES: dict[str, Callable[[str], str]] = {
    "report": _report_page,
    "handout": _handout,
    "hand-in, by a notebook's name": _hand_in,
    "hand-in, by its cells": _notebook,
    "gone": _gone,
    "leading to JupyterLab": _leading,
    "dashboard": _dashboard,
    "leading to the dashboard": _dashboard_leading,
    "signing in to the dashboard": _dashboard_file,
}


class _Raw(jinja2.Environment):
    """Jinja as it is where nobody asks for escaping."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{**settings, "autoescape": False})


@contextmanager
def unescaped() -> Iterator[None]:
    """The weak set-up: our pages as they are, but for the escaping."""
    raw = SimpleNamespace(escape=lambda text: text)
    assert tunnel.html is html is browser.html
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Environment", _Raw)
        patch.setattr(tunnel, "html", raw)
        patch.setattr(browser, "html", raw)
        patch.setattr(notebook, "_template", cache(notebook._template.__wrapped__))
        yield


def added(page: str, harmless: str) -> list[str | None]:
    """What runs or asks for something in a page beyond what is in the harmless one."""
    own = Live(harmless).found
    found = Live(page).found
    for one in own:
        found.remove(one)
    return found
