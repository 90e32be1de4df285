"""What a command costs before it does anything: nothing heavy is imported for a version, a help page or a Tab."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

_HEAVY = (
    *("boto3", "botocore", "paramiko", "rich", "jinja2", "asyncio", "moto", "asyncssh", "flask"),
    *("starlette", "uvicorn"),
)


@pytest.mark.parametrize(
    ("what", "may_import_click"),
    [
        ("import gpulab", False),
        ("import gpulab.errors, gpulab.__main__", False),
        ("import sys; sys.argv[1:] = ['--version']; import gpulab.__main__ as m; m.main()", False),
        ("import gpulab.cli.main", True),
        ("import gpulab.cli.main as m; m.run(['--help'])", True),
        ("import gpulab.cli.main as m; m.run(['up', '--help'])", True),
        ("import gpulab.cli.main as m; m.run(['nonsense'])", True),
    ],
)
def test_nothing_heavy_is_imported(what, may_import_click):
    """boto3 alone is sixteen times a bare Python; a student waits for it on every Tab."""
    heavy = _HEAVY if may_import_click else (*_HEAVY, "click")
    script = f"{what}\nimport sys\nprint('heavy:', sorted(set(sys.modules) & set({heavy!r})))"

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "heavy: []" == printed.stdout.splitlines()[-1]


def test_tab_imports_nothing_heavy():
    """Completing a name reads a local file and asks nobody."""
    script = (
        "import atexit, os, sys\n"
        "os.environ |= {'_GPULAB_COMPLETE': 'bash_complete', 'COMP_WORDS': 'gpulab sto', 'COMP_CWORD': '1'}\n"
        f"atexit.register(lambda: print('heavy:', sorted(set(sys.modules) & set({_HEAVY!r}))))\n"
        "from gpulab.cli.main import run\n"
        "run([])\n"
    )

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert ["plain,stop", "heavy: []"] == printed.stdout.splitlines()


def test_only_what_is_declared_is_imported():
    """A package that only the development environment has is a traceback on a student's computer."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {_NAMES.get(name, name) for name in (re.split(r"[^\w-]", a)[0] for a in asked)}

    strange = {
        f"{file.name}: {name}"
        for file in (CHECKOUT / "src").rglob("*.py")
        for name in _imported(file)
        if name not in sys.stdlib_module_names | declared | {"gpulab"}
    }

    assert set() == strange


# What a distribution is imported as where that is another name; botocore and markupsafe come with what is declared.
_NAMES = {"flask-cors": "flask_cors"}
_WITH_DECLARED = {"botocore", "markupsafe", "werkzeug", "numpy", "yaml"}


def _imported(file):
    """The first part of every module that a file imports at run time, wherever in it."""
    tree = ast.parse(file.read_text())
    hints = {id(n) for t in ast.walk(tree) if _is_typing(t) for n in ast.walk(t)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        yield from {name.partition(".")[0] for name in names} - _WITH_DECLARED


def _is_typing(node):
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
