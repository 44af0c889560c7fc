"""The core stays pure: no I/O, no clock, nothing of unplugd outside itself but its errors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import unplugd

CORE = Path(unplugd.__file__).parent / "core"

# No time, os, socket, asyncio, logging, random, pathlib: a core that needs one of these has grown a shell.
ALLOWED = {
    "__future__", "array", "bisect", "collections", "collections.abc", "dataclasses", "enum", "fnmatch", "functools",
    "math", "re", "struct", "types", "typing", "zlib", "unplugd.core", "unplugd.errors",
}  # fmt: skip

# Builtins that reach outside the process or around the imports.
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


def imports(tree: ast.AST, package: str) -> set[str]:
    """The absolute names of all modules that `tree`, a module of `package`, imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from unplugd import service` names its module only in the alias.
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "unplugd" else {base}
    return names


def is_allowed(name: str) -> bool:
    return name in ALLOWED or name.startswith("unplugd.core.")


def calls(tree: ast.AST) -> set[str]:
    return {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


MODULES = sorted(CORE.rglob("*.py"))


def test_there_is_a_core() -> None:
    assert len(MODULES) > 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_of_the_core(path: Path) -> None:
    tree = ast.parse(path.read_bytes(), str(path))
    assert {name for name in imports(tree, "unplugd.core") if not is_allowed(name)} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_core_calls_nothing_outside(path: Path) -> None:
    tree = ast.parse(path.read_bytes(), str(path))
    assert calls(tree) & FORBIDDEN_CALLS == set()


@pytest.mark.parametrize(
    "source",
    [
        "import time", "import os.path", "from asyncio import sleep", "from ..service import Service",
        "from .. import service", "from unplugd import service", "import unplugd.service",
        "def f():\n    import socket", "from typing import Any\nimport logging",
    ],
)  # fmt: skip
def test_impurity_is_seen(source: str) -> None:
    assert not all(is_allowed(name) for name in imports(ast.parse(source), "unplugd.core"))


@pytest.mark.parametrize(
    "source",
    ["from . import events", "from .events import Line", "from unplugd.core.events import Line",
     "from unplugd.errors import ClientFault", "from ..errors import ClientFault", "import struct",
     "from collections.abc import Iterator", "from unplugd import core"],
)  # fmt: skip
def test_purity_is_seen(source: str) -> None:
    assert all(is_allowed(name) for name in imports(ast.parse(source), "unplugd.core"))


def test_every_exemption_says_why() -> None:
    """What silences ruff or mypy has its reason on the same line."""
    root = CORE.parents[2]
    bare = re.compile(r"# (?:noqa|type: ignore)(?!(?:: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)*|\[[a-z, -]+\])[ #(-]+\w)")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("daemon", "tests", "scripts", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if bare.search(line) and "re.compile" not in line
    ]
    assert found == []
