# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel and its object managers denied, from the audit log.

A test that provokes a denial says so and takes it off the account; the last test looks at the rest.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from svirtd.core.mcs import Context, parse_context
from tests.support import wait_for

_LOG: Final = Path("/var/log/audit/audit.log")
_RECORD_BYTES: Final = 8192
_QUIET_S: Final = 0.2
_DENIED: Final = re.compile(
    r"audit\((?P<id>[\d.]+:\d+)\).*?avc: +denied +\{ (?P<permissions>[^}]+) \}.*?"
    r"scontext=(?P<source>\S+) tcontext=(?P<target>\S+) tclass=(?P<kind>\w+)"
)


@dataclass(frozen=True, slots=True)
class Denial:
    """One denial. `text` is the log's line, by which it is told from another."""

    permissions: frozenset[str]
    source: Context
    target: Context
    kind: str
    text: str


def _denial(match: re.Match[str], line: str) -> Denial:
    return Denial(
        frozenset(match["permissions"].split()),
        parse_context(match["source"]),
        parse_context(match["target"]),
        match["kind"],
        line,
    )


class _Growing:
    """What has come to a file of lines since the last look: a log is long, and looked at often."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[str]:
        """Return the whole lines that are new."""
        # Moved out of the way, with what was not read of it.
        assert self._path.stat().st_size >= self._offset, f"{self._path} was rotated"
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").splitlines()


class _Kernel:
    """The kernel's own log, which has what came before auditd was up."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def lines(self) -> list[str]:
        """Return the records that are new. One that was overwritten unseen is an error (EPIPE)."""
        found = []
        while True:
            try:
                found.append(os.read(self._fd, _RECORD_BYTES).decode("utf-8", "replace"))
            except BlockingIOError:
                return found


class Audit:
    """The log since the boot, and what of it was expected."""

    def __init__(self) -> None:
        self.expected: set[str] = set()
        self._logs = _Kernel(), _Growing(_LOG)
        self._found: dict[tuple[str, ...], Denial] = {}

    def denials(self) -> list[Denial]:
        """Return every denial since the boot, in order."""
        for line in (line for log in self._logs for line in log.lines()):
            match = _DENIED.search(line)
            if match:
                # Which of the two logs has told it first does not matter.
                key = match["id"], match["permissions"], match["kind"], match["target"]
                self._found.setdefault(key, _denial(match, line))
        return list(self._found.values())

    def unexpected(self) -> list[Denial]:
        """Return the denials that no test took off the account."""
        return [one for one in self.denials() if one.text not in self.expected]

    def leave_out(self, source: str) -> None:
        """Take off the account what was denied to a process that svirtd did not start."""
        self.expected.update(one.text for one in self.denials() if str(one.source) == source)

    @contextmanager
    def denied(
        self, permissions: str, source: str, target: str, kind: str = "file"
    ) -> Iterator[None]:
        """What happens inside must be denied: one of these permissions, to `source` on `target`.

        `source` and `target` are contexts, or patterns of them with "*"; `kind` may be one of
        several classes. What else is denied meanwhile stays on the account.
        """
        with self.each_denied(source, [(permissions, target, kind)]):
            yield

    @contextmanager
    def each_denied(self, source: str, wanted: Sequence[tuple[str, str, str]]) -> Iterator[None]:
        """As denied(), for several: permissions, target and kind of each."""
        before = {one.text for one in self.denials()}
        yield

        def found() -> list[list[Denial]]:
            fresh = [one for one in self.denials() if one.text not in before]
            return [[one for one in fresh if _matches(one, source, *each)] for each in wanted]

        seen: list[list[Denial]] = []

        def complete() -> bool:
            seen[:] = found()
            return all(seen)

        try:
            wait_for("every denial", complete)
            # Of what is denied alike, one stands for all; the log may be late with the others.
            count = -1
            while count != (count := sum(map(len, seen))):
                time.sleep(_QUIET_S)
                complete()
        except AssertionError:
            missing = [each for each, ones in zip(wanted, seen, strict=True) if not ones]
            raise AssertionError(f"not denied to {source}: {missing}") from None
        self.expected.update(one.text for ones in seen for one in ones)


def _matches(one: Denial, source: str, permissions: str, target: str, kind: str) -> bool:
    return (
        bool(one.permissions & set(permissions.split()))
        and fnmatchcase(str(one.source), source)
        and fnmatchcase(str(one.target), target)
        and one.kind in kind.split()
    )
