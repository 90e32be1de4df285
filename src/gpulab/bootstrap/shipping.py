"""
The agent as it travels. Hides how its source is made small; refuses to change what it does.

User data has 16 KB for everything, so it carries the agent without the part that keeps the work in S3, without
docstrings, comments, types, spaces and imports for types, with short names, compressed, behind one line that unpacks and runs it.
The whole agent, readable, lies in the bucket the work is kept in: an instance without a bucket does not need it, nor what reaches the bucket.
"""

from __future__ import annotations

import argparse
import ast
import base64
import builtins
import bz2
import contextlib
import datetime
import http.client
import io
import itertools
import json
import os
import re
import shutil
import socket
import stat
import string
import subprocess
import sys
import threading
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gpulab
from gpulab.bootstrap.locks import Lock

# From one line to the other; the first part is always left out, the second one where there is no bucket.
_KEEPING = ("# --- keeping the work: not in user data", "# --- the words ---")
_REACHING = (
    "# --- reaching the bucket: in user data where there is one",
    "# --- is anyone there? ---",
)
_STUB = """#!/usr/bin/env python3
import base64, bz2
exec(compile(bz2.decompress(base64.b64decode("{packed}")), "gpulab-agent", "exec"))
"""
_ONCE = threading.Lock()


@cache
def whole_agent(locks: tuple[Lock, ...] = (), check: str = "") -> bytes:
    """
    Give the agent as it was written, with the lab's program, locks and checks in it; it goes to the bucket.

    Args:
        check: The environment's own, as `Environment.check` gives it.
    """
    agent = (Path(gpulab.__file__).parent / "agent" / "agent.py").read_text("utf-8")
    files = {lock.sha256: lock.requirements() for lock in locks}
    put = {
        '\nLAB = ""\n': f"\nLAB = {lab_program().decode()!r}\n",
        "\nLOCKS: dict[str, str] = {}\n": f"\nLOCKS = {files!r}\n",
        '\nCHECK = ""\n': f"\nCHECK = {check_program(check, is_table=True).decode()!r}\n",
    }
    for place, program in put.items():
        agent = agent.replace(place, program)
    return agent.encode()


@cache
def lab_program() -> bytes:
    """Give the program that brings a lab's notebooks; it goes over ssh where there is no bucket."""
    return (Path(gpulab.__file__).parent / "agent" / "lab.py").read_bytes()


def check_program(check: str, *, is_table: bool = False) -> bytes:
    """
    Give the program that checks an instance.

    Args:
        check: The environment's own, as `Environment.check` gives it.
        is_table: For people on the instance; otherwise a JSON object a line.
    """
    source = (Path(gpulab.__file__).parent / "agent" / "check.py").read_text("utf-8")
    first, future, rest = source.partition("from __future__ import annotations\n")
    return f"{first}{future}CHECK = {check!r}\nTABLE = {is_table}\n{rest}".encode()


def shipped_agent(*, has_bucket: bool) -> str:
    """Give the program that travels in user data: an ordinary script that unpacks and runs itself."""
    # Thirty-two launches at once would each make it, in ten megabytes and half a second.
    with _ONCE:
        return _shipped_agent(has_bucket=has_bucket)


@cache
def _shipped_agent(*, has_bucket: bool) -> str:
    packed = bz2.compress(small_source(has_bucket=has_bucket).encode())
    return _STUB.format(packed=base64.b64encode(packed).decode())


@cache
def small_source(*, has_bucket: bool) -> str:
    """Give what the shipped program runs."""
    source = whole_agent().decode()
    for begin, end in (_KEEPING,) if has_bucket else (_KEEPING, _REACHING):
        source = source[: source.index(begin)] + source[source.index(end) :]
    tree = _Bare().visit(ast.parse(source))
    attributes = _short_attributes(tree)
    _shorten_locals(tree)
    tree = _Renamed(_short_globals(tree), attributes).visit(tree)
    _drop_unused_imports(tree)
    return _squeezed(ast.unparse(ast.fix_missing_locations(tree)) + "\n")


def _drop_unused_imports(tree: ast.Module) -> None:
    """Leave out what only types needed; `__future__` goes with them."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in list(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [n for n in node.names if (n.asname or n.name).split(".")[0] in used]
            if not node.names:
                tree.body.remove(node)


def _squeezed(source: str) -> str:
    """Write a program with one tab for each level, and no space where Python needs none."""
    lines, text, level = source.splitlines(), "", 0
    string_from: tuple[int, int] | None = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        # Since Python 3.12 a formatted string is many tokens; it is taken as it stands.
        if string_from is not None and kind != "FSTRING_END":
            continue
        if kind == "FSTRING_START":
            string_from = token.start
        elif kind == "FSTRING_END" and string_from is not None:
            text += _glue(text, _between(lines, string_from, token.end))
            string_from = None
        elif kind in ("INDENT", "DEDENT"):
            level += 1 if kind == "INDENT" else -1
        elif kind == "NEWLINE":
            text += "\n"
        elif kind not in ("NL", "ENDMARKER"):
            text += "\t" * level if text.endswith("\n") else ""
            text += _glue(text, token.string)
    return text


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "\n".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])


def _glue(before: str, token: str) -> str:
    """The token, after a space where it would run into the one before: two words, or a word and a string's quotes."""
    sticks = "_'\""
    left, right = before[-1:], token[:1]
    is_apart = not (left.isalnum() or left in sticks) or not (right.isalnum() or right in sticks)
    return token if not left or is_apart else f" {token}"


class _Bare(ast.NodeTransformer):
    """Removes docstrings and types that nothing reads at run time."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body = [_untyped(statement) for statement in _without_docstring(node.body)]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.body = _without_docstring(node.body) or [ast.Pass()]
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                field.annotation = ast.Constant(0)  # a NamedTuple wants one, and looks at none
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        node.body = [_untyped(statement) for statement in _without_docstring(node.body)]
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


class _Renamed(ast.NodeTransformer):
    """Gives variables, functions and the attributes of our own classes short names; keywords keep theirs."""

    def __init__(self, names: dict[str, str], attributes: dict[str, str]) -> None:
        self.names = names
        self.attributes = attributes

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        node.attr = self.attributes.get(node.attr, node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.name = self.names.get(node.name, node.name)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        self.generic_visit(node)
        for name, method in methods.items():
            method.name = self.attributes.get(name, name)
        node.name = self.names.get(node.name, node.name)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.ExceptHandler:
        self.generic_visit(node)
        node.name = self.names.get(node.name or "", node.name)
        return node


def _shorten_locals(tree: ast.Module) -> None:
    """Name the variables of each function a, b, c, ... as they come: the same short texts everywhere compress best."""
    taken = {*_foreign_names(tree), *dir(builtins), *_KEYWORDS, *_global_names(tree)}
    for function in _functions(tree.body):
        mine = [name for name in _bound_names(function) if name not in taken]
        short = (n for n in _identifiers(string.ascii_lowercase) if n not in taken)
        name = function.name
        _Renamed(dict(zip(mine, short, strict=False)), {}).visit(function)
        function.name = name


def _functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Functions and methods; one inside another shares the outer one's names."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body)


def _bound_names(function: ast.FunctionDef) -> list[str]:
    found: dict[str, None] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            found[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.ExceptHandler | ast.FunctionDef) and node is not function:
            found |= {node.name: None} if node.name else {}
    return list(found)


def _short_globals(tree: ast.Module) -> dict[str, str]:
    """Capitals, which no variable of a function has."""
    known = _global_names(tree)
    uses = Counter(name for name in _own_names(tree) if name in known)
    taken = {*_foreign_names(tree), *dir(builtins)}
    mine = [name for name, _ in uses.most_common() if name not in taken]
    short = (n for n in _identifiers(string.ascii_uppercase) if n not in taken)
    return dict(zip(mine, short, strict=False))


def _global_names(tree: ast.Module) -> set[str]:
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _short_attributes(tree: ast.Module) -> dict[str, str]:
    """Attributes that only our own classes have; one that anything of the standard library has keeps its name."""
    mine: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            mine.update(item.name for item in node.body if isinstance(item, ast.FunctionDef))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            mine[node.attr] += 1
    taken = {*_foreign_names(tree), *_standard_attributes(), *_OPTIONS, *_KEYWORDS}
    names = [name for name, _ in mine.most_common() if name not in taken and name[:2] != "__"]
    return dict(
        zip(names, (n for n in _identifiers(string.ascii_letters) if n not in taken), strict=False)
    )


def _standard_attributes() -> set[str]:
    modules = (
        argparse,
        contextlib,
        datetime,
        http.client,
        json,
        os,
        re,
        shutil,
        socket,
        stat,
        subprocess,
        sys,
        time,
    )
    types = (
        str,
        bytes,
        dict,
        list,
        set,
        int,
        float,
        tuple,
        Path,
        os.stat_result,
        subprocess.Popen,
        http.client.HTTPResponse,
    )
    more = (
        http.client.HTTPConnection,
        http.client.HTTPMessage,
        re.Match,
        datetime.datetime,
        threading.Thread,
    )
    return {name for thing in (*modules, *types, *more) for name in dir(thing)}


# What argparse makes from words on the command line.
_OPTIONS = ("root", "word", "until", "minutes", "follow")
_KEYWORDS = ("as", "do", "if", "in", "is", "or")


def _identifiers(letters: str) -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(letters, repeat=length))


def _own_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def _foreign_names(tree: ast.Module) -> Iterator[str]:
    """Names that mean something beyond the variable: imports, keywords of calls, fields of classes, dunders."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.ClassDef):
            fields = (_targets(item) for item in node.body)
            yield from (one.id for field in fields for one in field if isinstance(one, ast.Name))
        elif isinstance(node, ast.Name) and node.id.startswith("__"):
            yield node.id


def _targets(statement: ast.stmt) -> list[ast.expr]:
    """What a statement gives a value to, or only a type."""
    if isinstance(statement, ast.AnnAssign):
        return [statement.target]
    return statement.targets if isinstance(statement, ast.Assign) else []


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return body[1:]
    return body


def _untyped(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.Assign(targets=[statement.target], value=statement.value)
    return statement
