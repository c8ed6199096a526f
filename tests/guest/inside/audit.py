# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel and its object managers denied, from the audit log.

A test that provokes a denial says so and takes it off the account; the last test looks at the rest.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from svirtd.core.mcs import Context, parse_context
from tests.support import wait_for

_LOG: Final = Path("/var/log/audit/audit.log")
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


@dataclass(slots=True)
class Audit:
    """The log since the boot, and what of it was expected."""

    expected: set[str] = field(default_factory=set)

    def denials(self) -> list[Denial]:
        """Return every denial since the boot, in order."""
        # The kernel's own log has what came before auditd was up.
        early = subprocess.run(
            ["journalctl", "-k", "-o", "cat", "--no-pager", "--grep", "avc:  denied"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found = {}
        for line in (early + _LOG.read_text("utf-8", "replace")).splitlines():
            match = _DENIED.search(line)
            if match:
                found[match["id"], match["permissions"], match["kind"], match["target"]] = Denial(
                    frozenset(match["permissions"].split()),
                    parse_context(match["source"]),
                    parse_context(match["target"]),
                    match["kind"],
                    line,
                )
        return list(found.values())

    def unexpected(self) -> list[Denial]:
        """Return the denials that no test took off the account."""
        return [one for one in self.denials() if one.text not in self.expected]

    @contextmanager
    def denied(
        self, permissions: str, source: str, target: str, kind: str = "file"
    ) -> Iterator[None]:
        """What happens inside must be denied: one of these permissions, to `source` on `target`.

        `source` and `target` are contexts, or patterns of them with "*"; `kind` may be one of
        several classes. What else is denied meanwhile stays on the account.
        """
        before = {one.text for one in self.denials()}
        yield

        def seen() -> list[Denial]:
            return [
                one
                for one in self.denials()
                if one.text not in before
                and one.permissions & set(permissions.split())
                and fnmatchcase(str(one.source), source)
                and fnmatchcase(str(one.target), target)
                and one.kind in kind.split()
            ]

        found = wait_for(f"a denial of {permissions} on {target} to {source}", seen)
        self.expected.update(one.text for one in found)
