# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all of the guest tier consists of: boots that need nothing of each other.

The newest Debian's tests are shared out among several boots, since a boot costs half a minute and
one of all tests would be what everything else waits for. Each file is in exactly one of them; each
boot ends with the look at its own audit log.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.guest import build

SHARES: Final = 3
CUTS: Final = "cuts"
# The newest Debian once more, with the policy of levels.
LEVELS: Final = "levels"
_INSIDE: Final = Path("tests/guest/inside")
_LAST: Final = "z_audit"
# Files that take long under emulation, in seconds of a processor; the others take about as long as
# `_USUAL_S`.
_USUAL_S: Final = 30
_COSTS_S: Final = {
    "b_isolation": 40,
    "c_service": 50,
    "d_switches": 80,
    "f_drift": 55,
    "i_users": 50,
    "k_matrix": 40,
    "m_goals": 75,
    "n_sharing": 60,
    "o_coexist": 150,
    "p_desk": 120,
    "p_enrolled": 170,
    "p_libvirt": 310,
    "r_resources": 50,
}
_ON_OLDER: Final = (
    *("a_policy", "b_isolation", "c_service", "h_callers", "i_users", "k_matrix", "l_types"),
    _LAST,
)


def names() -> list[str]:
    """Return the names of the boots."""
    *older, _ = build.releases()
    return [*(str(number + 1) for number in range(SHARES)), *older, LEVELS, CUTS]


def suite_of(name: str) -> str:
    """Return the Debian that a boot is of."""
    *older, newest = build.releases()
    if name == LEVELS:
        return f"{newest}-mls"
    return name if name in older else newest


def files_of(name: str) -> list[str]:
    """Return the files of tests that a boot runs."""
    if name == CUTS:
        return []
    if name == LEVELS:
        return [f"{_INSIDE}/mls", _path(_LAST)]
    if not name.isdigit():
        return [_path(one) for one in _ON_OLDER]
    return shares(sorted(build.REPO.glob(f"{_INSIDE}/test_*.py")))[int(name) - 1]


def shares(files: Sequence[Path]) -> list[list[str]]:
    """Share the files out so that each boot takes about as long; the last one is in all of them."""
    found: list[list[str]] = [[] for _ in range(SHARES)]
    taken = [0] * SHARES
    costs = {_short(path): _COSTS_S.get(_short(path), _USUAL_S) for path in files}
    for name in sorted(costs.keys() - {_LAST}, key=lambda one: (-costs[one], one)):
        least = taken.index(min(taken))
        taken[least] += costs[name]
        found[least].append(name)
    return [[_path(name) for name in (*sorted(some), _LAST)] for some in found]


def _short(path: Path) -> str:
    return path.stem.removeprefix("test_")


def _path(name: str) -> str:
    return f"{_INSIDE}/test_{name}.py"
