"""The wheel holds the package, its data and nothing else: what a student installs is what was tested and is in git."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
# Where each folder of the checkout lies in the wheel.
_CARRIED = {
    "src/gpulab/": "gpulab/",
    "cloud-init/": "gpulab/data/cloud-init/",
    "ami/": "gpulab/data/ami/",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as the gate builds it, from the checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_the_package_and_its_data(wheel):
    """A template that is only in the checkout works for its author and nobody else; a file that git does not have was read by nobody."""
    inside = [name for name in wheel.namelist() if ".dist-info/" not in name]

    assert sorted(_tracked()) == sorted(inside)


def test_the_wheel_holds_each_file_as_it_is_in_the_checkout(wheel):
    """What is changed on the way into the wheel is what students run, and no test of the checkout would see it."""
    changed = [
        inside for inside, path in _tracked().items() if wheel.read(inside) != path.read_bytes()
    ]

    assert [] == changed


def test_the_wheel_brings_nothing_beside_the_package(wheel):
    """A file at its top level would lie among everybody's modules; one in the metadata may be run at every start, or hide scripts."""
    elsewhere = {n.partition("/")[2] for n in wheel.namelist() if ".dist-info/" in n}

    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} == elsewhere


def test_the_wheel_carries_its_licence(wheel):
    """A course that redistributes gpulab must be able to show under what terms."""
    licences = [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]

    assert 1 == len(licences)


def test_the_wheel_asks_for_what_the_project_says(wheel):
    """A requirement lost on the way into the wheel shows only on a fresh computer."""
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]

    assert sorted(project["dependencies"]) == sorted(asked)
    assert project["requires-python"] == metadata["Requires-Python"]
    assert sorted(project["optional-dependencies"]) == sorted(metadata.get_all("Provides-Extra"))


def _tracked() -> dict[str, Path]:
    """What git has of the carried folders: where it is in the wheel, and where in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *_CARRIED],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return {
        inside + name.removeprefix(folder): CHECKOUT / name
        for name in listed
        for folder, inside in _CARRIED.items()
        if name.startswith(folder) and (CHECKOUT / name).is_file()
    }
