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
ENVIRONMENTS = CHECKOUT / "ami" / "environments"
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
    own = materials.page().partition("## In the lab environments")[0]
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.*) \|$", own, re.M)
    stated = {name: re.split(r" (?:AND|OR) ", text) for name, text in rows if name != "package"}

    unknown = {n: t for n, t in stated.items() if not any(KIND.fullmatch(one) for one in t)}
    # asyncssh belongs to the sandbox, which is not imported by the rest; EPL lets one use it as it is.
    assert {"asyncssh": ["EPL-2.0", "GPL-2.0-or-later"]} == unknown
    assert {"boto3", "click", "moto", "duckdb", "uvicorn"} <= stated.keys()


def test_the_bill_of_materials_is_the_lock(materials):
    """Whoever looks for a vulnerable package in what is installed must find it, with the hashes that were allowed."""
    bill = json.loads(materials.bills()["sbom.json"])

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


def test_each_lock_of_a_lab_environment_has_its_bill(materials):
    """What a student's notebook runs on is not in gpulab's own lock; a hole in it must be found by the same means."""
    bills = materials.bills()

    assert {"sbom-tf2-gpu.json", "sbom-tf1-legacy-gpu.json", "sbom-server-laptop.json"} <= set(
        bills
    )
    for path in ENVIRONMENTS.glob("*/*.lock"):
        text = path.read_text(encoding="utf-8")
        bill = json.loads(bills.pop(f"sbom-{path.parent.name}-{path.stem}.json"))
        pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", text, re.M))
        assert pinned == {c["name"]: c["version"] for c in bill["components"]}
        assert text.count("--hash=sha256:") == sum(len(c["hashes"]) for c in bill["components"])
    assert {"sbom.json"} == set(bills)


def test_the_page_lists_every_package_of_a_lab_environment_with_the_licence_it_states(materials):
    """Who shares an image with CUDA in it must have seen whose terms that falls under."""
    labs = materials.page().partition("## In the lab environments")[2]
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \| (.+) \| (.+) \|$", labs, re.M)
    locked = set()
    for path in ENVIRONMENTS.glob("*/*.lock"):
        pins = re.findall(r"^([\w.-]+)==([^ ;\\]+)", path.read_text(encoding="utf-8"), re.M)
        where = f"{path.parent.name} {path.stem}"
        locked |= {(re.sub(r"[-_.]+", "-", n).lower(), v, where) for n, v in pins}
    listed = {
        (name, version, lock) for name, version, _, where in rows for lock in where.split(", ")
    }

    assert locked == listed
    assert {"Apache-2.0"} == {licence for name, _, licence, _ in rows if name == "tensorflow"}
    terms = {licence for name, _, licence, _ in rows if name.startswith("nvidia-")}
    assert {"Other/Proprietary License", "LicenseRef-NVIDIA-Proprietary"} <= terms


def test_what_nobody_has_read_of_a_licence_is_said_to_be_not_known(
    materials, tmp_path, monkeypatch
):
    """A guess would be believed; what another version said is a hint, with that version beside it."""
    known = {"old==1.0": "MIT", "mute==2.0": "", "here==3.0": "ISC"}
    (tmp_path / "licences.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(materials, "COLLECTED", tmp_path / "licences.json")
    asked = [("here", "3.0"), ("old", "1.1"), ("mute", "2.0"), ("new", "1.0")]

    assert ["ISC", "MIT (1.0)", "not known", "not known"] == [
        materials.lab_licence(name, version) for name, version in asked
    ]


def test_licences_are_collected_from_what_packages_say(materials, tmp_path, monkeypatch):
    """The file is made by the script from metadata, so that nobody types a licence."""
    for name, said in {
        "jinja2": "License-Expression: BSD-3-Clause",
        "stray": "License: GPL",
    }.items():
        folder = tmp_path / "unpacked" / f"{name}-3.1.6.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 3.1.6\n{said}\n")
    lock = "jinja2==3.1.6 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    monkeypatch.setattr(materials, "lab_locks", lambda: {"lab cpu": lock})
    monkeypatch.setattr(materials, "COLLECTED", tmp_path / "licences.json")
    monkeypatch.setattr(sys, "argv", ["materials.py", "collect", str(tmp_path / "unpacked")])

    assert 0 == materials.main()
    assert {"jinja2==3.1.6": "BSD-3-Clause"} == materials.collected()


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
