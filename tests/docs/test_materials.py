"""What gpulab is made of: every package with its licence and its hash, and none that the core imports but does not install."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = (CHECKOUT / "scripts" / "locks" / "run.txt").read_text(encoding="utf-8")
# Licences under which a university may install and pass on what imports them.
KIND = re.compile(
    r"(?:MIT|MIT-0|MIT-CMU|ISC|0BSD|Zlib|CC0-1\.0|PSF-2\.0|MPL-2\.0|LGPL-2\.1|Apache-2\.0|BSD-[23]-Clause)"
)
# With its extra, a dashboard needs a web server; everything else loads without any extra.
NEEDS_AN_EXTRA = {"gpulab.dashboard.serving": "uvicorn", "gpulab.dashboard.web": "starlette"}
_WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
extras = {extras!r}
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nobody())
import gpulab
for module in pkgutil.walk_packages(gpulab.__path__, "gpulab."):
    if module.name.startswith("gpulab.sandbox") or module.name == "gpulab.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error)
"""


@pytest.fixture(scope="module")
def materials() -> ModuleType:
    """The script, as a module."""
    path = CHECKOUT / "scripts" / "materials.py"
    spec = importlib.util.spec_from_file_location("materials", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_licences_is_current(materials):
    """A course that redistributes gpulab must know what comes along."""
    page = (CHECKOUT / "docs" / "licences.md").read_text(encoding="utf-8")

    assert materials.page() == page


def test_every_package_has_a_licence_one_may_live_with(materials):
    """A package that says nothing, or whose terms reach over to its user, is found before it is shipped."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.*) \|$", materials.page(), re.M)
    stated = {name: re.split(r" (?:AND|OR) ", text) for name, text in rows if name != "package"}

    unknown = {n: t for n, t in stated.items() if not any(KIND.fullmatch(one) for one in t)}
    # asyncssh belongs to the sandbox, which is not imported by the rest; EPL lets one use it as it is.
    assert {"asyncssh": ["EPL-2.0", "GPL-2.0-or-later"]} == unknown
    assert {"boto3", "click", "moto", "duckdb", "uvicorn"} <= stated.keys()


def test_the_bill_of_materials_is_the_lock(materials):
    """Whoever looks for a vulnerable package in what is installed must find it, with the hashes that were allowed."""
    bill = json.loads(materials.bill(LOCK))

    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK, re.M))
    hashes = LOCK.count("--hash=sha256:")
    components = bill["components"]
    assert ("CycloneDX", "1.6") == (bill["bomFormat"], bill["specVersion"])
    assert pinned == {c["name"]: c["version"] for c in components}
    assert hashes == sum(len(c["hashes"]) for c in components) > 2 * len(pinned)
    assert {f"pkg:pypi/{name.lower()}@{v}" for name, v in pinned.items()} == {
        c["purl"] for c in components
    }
    installed = [c["name"] for c in components if c["name"] != "tzdata"]
    assert installed == [c["name"] for c in components if c.get("licenses")]


def test_the_core_loads_without_any_extra():
    """`pip install gpulab` alone must start every command; an import of an extra shows only on a fresh computer."""
    extras = {"asyncssh", "duckdb", "flask", "flask_cors", "matplotlib", "moto", "numpy", "starlette", "uvicorn", "werkzeug", "xlsxwriter"}  # fmt: skip

    said = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS.format(extras=extras)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert NEEDS_AN_EXTRA == dict(line.split() for line in said.splitlines())
