"""Guides rot unless something reads them: every file and link they name exists, and the contracts they state are the program's."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import gpulab.errors
from gpulab.errors import GpulabError

CHECKOUT = Path(__file__).resolve().parents[2]
_ROOTS = "src|docs|tests|scripts|cloud-init|ami|courses|.ci"


def test_every_file_a_document_names_exists(documents):
    """A guide that sends its reader to a file that was renamed is wrong where it hurts."""
    named = {
        (path, name)
        for path, text in documents.items()
        for name in re.findall(rf"`((?:{_ROOTS})/[A-Za-z0-9_./-]+)`", text)
    }

    missing = sorted(f"{path}: {name}" for path, name in named if not (CHECKOUT / name).exists())

    assert [] == missing


def test_every_link_between_documents_leads_somewhere(documents):
    """Links are how a reader on a bad connection finds the next page."""
    links = {
        (path, target.split("#")[0])
        for path, text in documents.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"[a-z]+:|#", target)
    }

    dead = sorted(
        f"{path}: {target}"
        for path, target in links
        if not (CHECKOUT / path).parent.joinpath(target).exists()
    )

    assert [] == dead


def test_every_decision_is_in_the_list_of_decisions():
    """A decision nobody finds is taken a second time, differently."""
    index = (CHECKOUT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (CHECKOUT / "docs" / "decisions").glob("*.md")} - {"README.md"}

    assert pages == set(re.findall(r"\]\(([a-z0-9-]+\.md)\)", index))


def test_the_page_of_exit_codes_lists_every_error_with_its_code():
    """Scripts rely on these numbers; a class that moved to another number breaks them silently."""
    page = (CHECKOUT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|([^|]*)\|", page, re.M)
    documented = {
        name: int(code) for code, _, cell in rows for name in re.findall(r"`(\w+)`", cell)
    }

    assert _exit_codes() == documented


def test_the_tree_at_the_top_of_the_errors_is_the_tree():
    """The drawing is what people read first; it names each class, its parent by indentation, and its code."""
    drawn = re.findall(r"^ {4}([ │├└─]*)(\w+) +(\d+) ", gpulab.errors.__doc__, re.M)
    parents: list[str] = []
    found = {}
    for indent, name, code in drawn:
        depth = len(indent) // 4
        parents[depth:] = [name]
        found[name] = (parents[depth - 1] if depth else "Exception", int(code))

    assert {
        name: (kind.__mro__[1].__name__, kind.exit_code) for name, kind in _errors().items()
    } == found


def test_the_version_is_one_number_everywhere():
    """`gpulab --version`, the wheel and the changelog are compared when a student reports a fault."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert gpulab.__version__ == project["version"]
    assert f"## {gpulab.__version__}" in changelog


def test_no_tracked_file_names_this_machine_or_a_registry():
    """A path or an index of one machine in a lock or a document breaks everybody else."""
    here = (f"{CHECKOUT}/", f"{CHECKOUT.parent}/shared/", "/".join(("..", "shared")))
    hosts = r"//[a-z0-9.-]*(pypi|npmjs|debian|pythonhosted)\.(org|com)"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.split("\0")

    named = []
    for name in filter(None, tracked):
        path = CHECKOUT / name
        text = path.read_text(encoding="utf-8", errors="ignore") if path.is_file() else ""
        if any(place in text for place in here) or re.search(hosts, text):
            named.append(name)

    assert [] == [name for name in named if name != "tests/docs/test_documents.py"]


def _errors() -> dict[str, type[GpulabError]]:
    return {
        name: kind
        for name, kind in vars(gpulab.errors).items()
        if isinstance(kind, type) and issubclass(kind, GpulabError)
    }


def _exit_codes() -> dict[str, int]:
    return {name: kind.exit_code for name, kind in _errors().items()}
