# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of attacks against its table of defences: each is switched off by some test."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attacks.defences import DEFENCES
from tests.contract import sources

_FOLDER = sources.REPO / "tests" / "attacks"


def _tests() -> Iterator[tuple[Path, str, Any]]:
    for path in sorted(_FOLDER.glob("test_*.py")):
        module = importlib.import_module(f"tests.attacks.{path.stem}")
        for name, found in vars(module).items():
            if name.startswith("test_"):
                yield path, name, found


def test_every_defence_is_switched_off_by_an_attack() -> None:
    used = {
        kind
        for _, _, test in _tests()
        for mark in getattr(test, "pytestmark", ())
        if mark.name == "parametrize" and mark.args[0] == "arena"
        for kind in mark.args[1]
    }
    assert used - {None} == set(DEFENCES)


def test_every_place_of_a_defence_exists() -> None:
    for defence in DEFENCES.values():
        for module, qualified, _ in defence.places:
            found: Any = importlib.import_module(module)
            for part in qualified.split("."):
                found = getattr(found, part)
            assert callable(found), qualified


def test_no_attack_is_skipped() -> None:
    marks = [mark.name for _, _, test in _tests() for mark in getattr(test, "pytestmark", ())]
    assert set(marks) <= {"parametrize"}
