# SPDX-License-Identifier: LGPL-2.1-or-later
"""The door to the audit log, with a log that takes what it is told to take."""

import os
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from svirtd.host import audit
from svirtd.host.audit import AuditLog, field
from svirtd.host.journal import Journal, MessageId
from tests.support import wait_for


class FakeLibrary:
    """libaudit, which is full as long as `room` is not set."""

    AUDIT_USER_AVC = 1107

    def __init__(self) -> None:
        self.written: list[tuple[object, ...]] = []
        self.result = 1
        self.room = threading.Event()
        self.room.set()

    def audit_open(self) -> int:
        return os.open("/dev/null", os.O_RDONLY) if self.result > 0 else -1

    def audit_log_user_avc_message(self, _fd: int, *record: object) -> int:
        self.room.wait()
        if self.result > 0:
            self.written.append(record)
        return self.result


class FakeJournal:
    def __init__(self) -> None:
        self.said: list[str] = []

    def record(self, message_id: MessageId, message: str, **_: Any) -> None:
        assert message_id is MessageId.WARNING
        self.said.append(message)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    library = FakeLibrary()
    monkeypatch.setitem(__import__("sys").modules, "audit", library)
    return library


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture
def log(library: FakeLibrary, journal: FakeJournal) -> Iterator[AuditLog]:
    log = AuditLog(cast("Journal", journal))
    yield log
    library.room.set()
    log.close()


def test_records_are_written_in_order(log: AuditLog, library: FakeLibrary) -> None:
    for number in range(100):
        log.user_avc(f"avc:  {number}", 1000)
    log.close()
    assert library.written == [
        (1107, f"avc:  {number}", None, None, None, 1000) for number in range(100)
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web1", 'vm="web1"'),
        ("web 1", "vm=7765622031"),
        ('a"b', "vm=612262"),
        ("a\nb", "vm=610A62"),
        ("ü", "vm=C3BC"),
        ("\udcff", "vm=5C7564636666"),
    ],
)
def test_a_field_cannot_forge_another(value: str, shown: str) -> None:
    assert field("vm", value) == shown


def test_a_full_log_holds_up_nobody_and_is_told_once(
    log: AuditLog, library: FakeLibrary, journal: FakeJournal
) -> None:
    library.room.clear()
    for number in range(audit._WAITING_MAX + 10):
        log.user_avc(f"avc:  {number}", 1000)
    assert len(journal.said) == 1
    assert "is not in the audit log: it takes no more" in journal.said[0]
    library.room.set()
    log.close()
    assert len(library.written) >= audit._WAITING_MAX


def test_a_log_that_refuses_is_told_once_each_time(
    log: AuditLog, library: FakeLibrary, journal: FakeJournal
) -> None:
    library.result = -1
    log.user_avc("avc:  1", 0)
    log.user_avc("avc:  2", 0)
    wait_for("it is told", lambda: journal.said)
    wait_for("both were tried", log._waiting.empty)
    library.result = 1
    log.user_avc("avc:  3", 0)
    wait_for("the log takes them again", lambda: library.written)
    assert len(journal.said) == 1
    assert "Operation not permitted" in journal.said[0]


def test_a_log_that_was_away_at_the_start_is_opened_later(
    library: FakeLibrary, journal: FakeJournal
) -> None:
    library.result = -1
    log = AuditLog(cast("Journal", journal))
    log.user_avc("avc:  1", 0)
    wait_for("it is told", lambda: journal.said)
    assert "cannot be reached" in journal.said[0]
    library.result = 1
    log.user_avc("avc:  2", 0)
    log.close()
    assert [record[1] for record in library.written] == ["avc:  2"]
