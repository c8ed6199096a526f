# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the shards have done, and the verdict on all of it: was every boundary killed at?"""

import ast
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from svirtd.failpoints import BOUNDARIES, Point

SHARD: Final = "SVIRT_CRASH_SHARD"
FOLDER: Final = "SVIRT_CRASH_REPORTS"
_PACKAGE: Final = Path(__file__).resolve().parents[2] / "svirtd"


@dataclass(slots=True)
class Report:
    """Counts of one shard."""

    number: int = 0
    sites: Counter[str] = field(default_factory=Counter)
    killed_at: Counter[str] = field(default_factory=Counter)
    recoveries: int = 0
    errors: int = 0
    histories: int = 0

    @classmethod
    def of_environment(cls) -> "Report":
        """Return an empty one for the shard that the environment names."""
        return cls(int(os.environ.get(SHARD, "0")))

    @property
    def boundaries(self) -> set[str]:
        """The boundaries at which the daemon was killed."""
        return {key.split()[0] for key in self.killed_at}

    def reached(self, points: Iterable[tuple[Point, str]]) -> None:
        """Note the calls that a run has come by."""
        self.sites.update(f"{point} {site}" for point, site in points)

    def killed(self, point: Point, site: str, *, in_recovery: bool = False) -> None:
        """Note that the daemon was killed at a boundary."""
        self.killed_at[f"{point} {site}"] += 1
        self.recoveries += in_recovery

    def save(self) -> None:
        """Leave the counts for the verdict."""
        folder = os.environ.get(FOLDER)
        if folder:
            counts = {
                "sites": self.sites,
                "killed_at": self.killed_at,
                "recoveries": self.recoveries,
                "errors": self.errors,
                "histories": self.histories,
            }
            Path(folder, f"{self.number}.json").write_text(json.dumps(counts))


def take(test: str) -> bool:
    """Say whether a test is the caller's: that of the shard which asks first."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return True
    name = hashlib.sha256(test.encode()).hexdigest()
    try:
        Path(folder, name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def merged(folder: Path) -> Report:
    """Return the sum of what the shards have saved."""
    total = Report()
    for path in folder.glob("*.json"):
        counts = json.loads(path.read_text())
        total.sites.update(counts["sites"])
        total.killed_at.update(counts["killed_at"])
        total.recoveries += counts["recoveries"]
        total.errors += counts["errors"]
        total.histories += counts["histories"]
    return total


def missing(report: Report) -> list[str]:
    """Say which boundaries and which calls no scenario has killed at, or even reached."""
    found = [
        f"no scenario kills at {point}" for point in BOUNDARIES if point not in report.boundaries
    ]
    called = calls()
    found += [f"nothing calls {point}" for point in Point if point not in dict(called)]
    for point, site in called:
        key = f"{point} {site}"
        if point in BOUNDARIES and key not in report.killed_at:
            found.append(f"no scenario kills at the call of {key}")
        elif point not in BOUNDARIES and key not in report.sites:
            found.append(f"no scenario reaches {key}")
    return found


def calls() -> list[tuple[Point, str]]:
    """Return every call of reach() in the daemon's sources, with its place."""
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "reach"
            ):
                (argument,) = node.args
                assert isinstance(argument, ast.Attribute), f"{path}:{node.lineno}: not a member"
                site = f"{path.relative_to(_PACKAGE)}:{node.lineno}"
                found.append((Point[argument.attr], site))
    return found
