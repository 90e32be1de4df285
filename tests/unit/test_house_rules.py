"""The test of the tests, and of the modules: what a reviewer should not have to say twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef
# Failing one of these says nothing about why: almost anything raises them.
_VAGUE = {"Exception", "BaseException"}


def test_every_test_says_why_anyone_cares():
    """A test nobody understands is deleted the first time it is in the way."""
    silent = [place for place, test in _tests() if not ast.get_docstring(test)]

    assert [] == silent


def test_every_test_asserts_something_real():
    """A test that cannot fail is worse than none: it looks like one."""
    empty = [place for place, test in _tests() if not asserts_something(test)]

    assert [] == empty


@pytest.mark.parametrize(
    ("body", "is_real"),
    [
        ("assert 2 == len(zones)", True),
        ("assert not zones", True),
        ("zones.sort()", False),
        ("assert True", False),
        ("assert zones is not None", False),
        ("assert zones is not None and zone is not None", False),
        ("assert zones", False),
        ("with pytest.raises(WrongUsage): read('x')", True),
        ("with pytest.raises(Exception): read('x')", False),
        ("with pytest.raises(Exception, match='line 3'): read('x')", True),
        ("check_it(zones)", False),
        ("assert_same_plan(one, other)", True),
    ],
)
def test_what_counts_as_an_assertion(body, is_real):
    """The rule is code, so it is tested like code."""
    (test,) = ast.parse(f"def test_x():\n    {body}").body

    assert is_real is asserts_something(test)


def test_every_module_says_what_it_hides():
    """The first line of a module is the map of its room."""
    silent = [
        str(path.relative_to(CHECKOUT))
        for folder in ("src", "scripts", "tests")
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        if path.stat().st_size and not ast.get_docstring(_tree(path))
    ]

    assert [] == silent


def test_no_module_of_the_product_is_a_drawer_of_odds_and_ends():
    """A module called `utils` hides nothing, so everything ends up in it."""
    drawers = {"utils", "util", "common", "base", "constants", "helpers", "misc"}

    found = sorted(p.name for p in (CHECKOUT / "src").rglob("*") if p.stem in drawers)

    assert [] == found


def test_only_the_command_line_catches_everything():
    """
    A broad `except` elsewhere swallows the error that would have told a student what to do.

    What runs beside the product (the agent, the sandbox's servers, the copying beside an open tunnel) must outlive a fault,
    and says why on the line.
    """
    broad = [
        f"{path.relative_to(CHECKOUT / 'src')}:{node.lineno}"
        for path in sorted((CHECKOUT / "src").rglob("*.py"))
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ExceptHandler)
        and _is_broad(node)
        and not _raises_again(node)
        and not (_runs_beside(path) and _has_reason(path, node))
    ]

    assert [place for place in broad if place.startswith("gpulab/cli/main.py:")] == broad


def test_every_exception_to_a_rule_has_its_reason():
    """Without the reason, nobody dares to take an exception back when it is no longer needed."""
    silenced = re.compile(r"# (?:noqa|pragma: no cover)")
    reasoned = re.compile(r"# (?:noqa: [A-Z0-9, ]+|pragma: no cover)\W+[a-z`]", re.I)

    bare = [
        f"{path.relative_to(CHECKOUT)}:{number}"
        for folder in ("src", "scripts")
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if silenced.search(line) and not reasoned.search(line)
    ]

    assert [] == bare


def test_every_lint_rule_that_is_switched_off_has_its_reason():
    """The settings read as a specification; an ignored rule without a word is a hole in it."""
    settings = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    ruff = settings.split("[tool.ruff.lint]")[1].split("[tool.mypy]")[0]
    rules = [line for line in ruff.splitlines() if re.search(r'"[A-Z]+\d{3}"', line)]

    assert [] == [line for line in rules if not re.search(r"# \S", line)]


def asserts_something(test: Function) -> bool:
    """Whether a test can fail for a reason: a comparison, a call, a negation, or an exception of a kind."""
    return any(
        (isinstance(node, ast.Assert) and _is_real(node.test))
        or (isinstance(node, ast.Call) and _expects(node))
        for node in ast.walk(test)
    )


def _is_real(claim: ast.expr) -> bool:
    if isinstance(claim, ast.BoolOp):
        return any(_is_real(part) for part in claim.values)
    if isinstance(claim, (ast.Constant, ast.Name)):
        return False
    return not (
        isinstance(claim, ast.Compare)
        and isinstance(claim.ops[0], ast.IsNot)
        and isinstance(claim.comparators[0], ast.Constant)
        and claim.comparators[0].value is None
    )


def _expects(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.rpartition(".")[2].startswith("assert_"):
        return True
    if name not in ("pytest.raises", "raises", "pytest.warns"):
        return False
    kind = ast.unparse(call.args[0]) if call.args else ""
    return kind not in _VAGUE or any(word.arg == "match" for word in call.keywords)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kind = "" if handler.type is None else ast.unparse(handler.type)
    return handler.type is None or kind in _VAGUE


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the error goes on: raised again here, or handed to whoever waits for the result."""
    return any(
        isinstance(node, ast.Raise)
        or (isinstance(node, ast.Attribute) and node.attr == "set_exception")
        for node in ast.walk(handler)
    )


def _runs_beside(path: Path) -> bool:
    parts = path.relative_to(CHECKOUT / "src" / "gpulab").parts
    return parts[0] in ("agent", "sandbox") or parts == ("launch", "running", "fetching.py")


def _has_reason(path: Path, node: ast.ExceptHandler) -> bool:
    lines = path.read_text(encoding="utf-8").splitlines()
    return any("  # " in line for line in lines[node.lineno - 1 : node.body[0].lineno - 1])


def _tests() -> Iterator[tuple[str, Function]]:
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        for node in ast.walk(_tree(path)):
            if isinstance(node, Function) and node.name.startswith("test"):
                yield f"{path.relative_to(CHECKOUT)}:{node.lineno} {node.name}", node


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
