# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the crash tier."""

import pytest

from tests.crash.histories_run import figures
from tests.fixtures import client, nothing_left, sandbox, zygote

__all__ = ["client", "nothing_left", "sandbox", "zygote"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the random histories came to."""
    if figures:
        what = ", ".join(f"{number} {name}" for name, number in figures.items())
        terminalreporter.write_line(f"at random: {what}")
