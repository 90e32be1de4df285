"""What a command costs before it does anything: nothing heavy is imported for a version, a help page or a Tab."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
