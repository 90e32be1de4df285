"""The command tree and the documents, read once, for the tests that hold them together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The script that writes the reference, as a module."""
    path = CHECKOUT / "scripts" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def commands(reference: ModuleType) -> dict[str, click.Command]:
    """Every command by the words that call it, such as `gpulab sandbox start`."""
    from gpulab.cli.main import group

    return {" ".join(words): found for words, found in reference.commands(group, ("gpulab",))}


@pytest.fixture(scope="session")
def documents() -> dict[str, str]:
    """Every Markdown file of the project, by its path in the checkout."""
    paths = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")]
    return {str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8") for path in paths}
