"""docs/security.md: every promise has a test, and every test that is named exists."""

import ast
import re
from pathlib import Path


TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
NAMED = re.compile(r"`(test_\w+\.py)?(?:::(test_\w+))?`")  # a name without a file is in the file named before it


def promises() -> dict[str, list[tuple[str, str]]]:
    """The rows of the tables: promise, and the files and functions that show it."""
    rows, file = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("| ") or line.startswith("| promise "):
            continue
        promise, _, tests = line.strip("| ").rpartition(" | ")
        rows[promise] = []
        for match in NAMED.finditer(tests):
            file = match[1] or file
            rows[promise].append((file, match[2] or ""))
    return rows


def test_a_clock_that_jumps_changes_no_deadline():
    """`time.time()` is a date that is told (`int(time.time())`), never one of two that are compared."""
    compared = []
    for path in PAGE.parents[1].rglob("*.py"):
        if TESTS in path.parents or any(part.startswith(".") for part in path.relative_to(PAGE.parents[1]).parts):
            continue
        tree = ast.parse(path.read_bytes())
        told = {
            id(node.args[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "int" and node.args
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.time" and id(node) not in told:
                compared.append(f"{path}:{node.lineno}")
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "time"
                and any(name.name == "time" for name in node.names)
            ):
                compared.append(f"{path}:{node.lineno}")
    assert not compared


def test_every_promise_has_a_test_that_exists():
    rows = promises()
    assert len(rows) > 20 and not [promise for promise, tests in rows.items() if not tests]
    known = {
        path.name: {node.name for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef)}
        for path in TESTS.glob("test_*.py")
    }
    absent = [
        f"{file}::{function}"
        for tests in rows.values()
        for file, function in tests
        if file not in known or (function and function not in known[file])
    ]
    assert not absent
