# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refusals in the log: all of them, but of one user not so many that they hide the rest."""

import time
from typing import Any

import pytest

from svirtd.api.refusals import Refusals
from svirtd.errors import AccessDenied
from svirtd.host.journal import Journal, MessageId


class Kept(Journal):
    """Keeps what is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, Any]] = []

    def record(self, message: MessageId, text: str, **fields: Any) -> None:  # type: ignore[override]
        assert message is MessageId.REFUSED
        self.texts.append((text, fields["SVIRT_CALLER_UID"]))


def test_a_flood_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    journal = Kept()
    refusals = Refusals(journal)

    def refuse(uid: int, times: int) -> list[tuple[str, Any]]:
        journal.texts.clear()
        for _ in range(times):
            refusals.record(uid, "Release", "vm", AccessDenied("no"))
        return journal.texts

    assert refuse(1000, 100) == [("Release refused: no", 1000)] * 20
    # Nobody else's are kept from the log, and none of root's.
    assert refuse(1001, 1) == [("Release refused: no", 1001)]
    assert refuse(0, 100) == [("Release refused: no", 0)] * 100
    assert refuse(1000, 5) == []
    now_s += 10.1
    assert refuse(1000, 1) == [
        ("85 more calls of uid 1000 were refused in ten seconds", 1000),
        ("Release refused: no", 1000),
    ]
    assert refuse(1001, 1) == [("Release refused: no", 1001)]


def test_not_everybody_is_remembered() -> None:
    refusals = Refusals(Kept())
    for uid in range(1, 1000):
        refusals.record(uid, "Release", "vm", AccessDenied("no"))
    assert len(refusals._windows) == 256
