# SPDX-License-Identifier: LGPL-2.1-or-later
"""SECURITY.md against the tree: every file, function and test of its table is there."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.defences import DEFENCES
from tests.contract import sources

_TEXT: Final = (sources.REPO / "SECURITY.md").read_text("utf-8")
_ROWS: Final = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| Rule"))
]


def _named(cell: str) -> list[tuple[str, str]]:
    """The (file, name) of each reference in a cell; the name is empty for a whole file."""
    found = [reference.partition(":") for reference in re.findall(r"`([^`]+)`", cell)]
    return [(file, name) for file, _, name in found]


def _defined(path: Path) -> set[str]:
    """The names of the functions and classes of a module, those in classes among them."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("row", _ROWS, ids=[row[0][:40] for row in _ROWS])
def test_what_the_table_names_is_there(row: list[str]) -> None:
    _, enforced, attacked = row
    assert _named(enforced)
    assert _named(attacked)
    for file, name in _named(enforced):
        path = sources.REPO / "svirtd" / file
        assert path.is_file(), file
        assert not name or name in _defined(path), f"{file}: {name}"
    for file, name in _named(attacked):
        assert name.startswith("test_"), name
        assert name in _defined(sources.REPO / file), f"{file}: {name}"


def test_every_defence_that_can_be_switched_off_is_in_the_table() -> None:
    """By the functions that stand for it."""
    enforced = {name for row in _ROWS for _, name in _named(row[1])}
    for what, defence in DEFENCES.items():
        places = {part for _, qualified, _ in defence.places for part in qualified.split(".")}
        assert places & enforced, what


def test_every_class_of_attacks_is_in_the_table() -> None:
    named = {file for row in _ROWS for file, _ in _named(row[2])}
    here = {
        f"tests/attacks/{path.name}" for path in (sources.REPO / "tests/attacks").glob("test_*")
    }
    assert here <= named
