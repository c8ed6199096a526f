# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code as its checkers see it."""

import subprocess
import sys
from typing import Final

import pytest

from tests.contract import sources

_PYTHON_CHECKS: Final = {
    "ruff check": ["ruff", "check", "--no-cache"],
    "ruff format": ["ruff", "format", "--check", "--no-cache"],
    "mypy": ["mypy", "--strict"],
}


def _run(command: list[str]) -> None:
    found = subprocess.run(command, cwd=sources.REPO, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("check", _PYTHON_CHECKS)
def test_python(check: str) -> None:
    _run([sys.executable, "-m", *_PYTHON_CHECKS[check]])


def test_shell() -> None:
    scripts = [
        sources.relative(path)
        for path in sources.tracked_files()
        if path.read_bytes().startswith((b"#!/bin/bash", b"#!/bin/sh"))
    ]
    assert scripts
    _run(["shellcheck", "--external-sources", *scripts])
