"""The wheel holds the package, its data and nothing else: what a student installs is what was tested."""

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
    """A template that is only in the checkout works for its author and nobody else."""
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert _tracked() == inside


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


def _tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_CARRIED],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return {
        inside + name.removeprefix(folder)
        for name in listed
        for folder, inside in _CARRIED.items()
        if name.startswith(folder) and (CHECKOUT / name).is_file()
    }
