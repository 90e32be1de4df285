"""The agent as it travels. Hides how its source is made small; refuses to change what it does."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import gpulab


@cache
def shipped_agent() -> str:
    """Give the agent's source without docstrings, comments and signature types: the same program in half the bytes."""
    source = (Path(gpulab.__file__).parent / "agent" / "agent.py").read_text(encoding="utf-8")
    tree = _Smaller().visit(ast.parse(source))
    return "#!/usr/bin/env python3\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n"


class _Smaller(ast.NodeTransformer):
    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body = _without_docstring(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.body = _without_docstring(node.body) or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        node.body = [_untyped(statement) for statement in _without_docstring(node.body)]
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return body[1:]
    return body


def _untyped(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.Assign(targets=[statement.target], value=statement.value)
    return statement
