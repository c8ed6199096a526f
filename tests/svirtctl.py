# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl as a process of its own, forked from one that has made its imports.

Who needs it as it is executed, on a terminal or beside the test, starts `CTL`.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support import REPO
from tests.zygote import Zygote

CTL: Final = (sys.executable, "-m", "svirtd.ctl")
_DEADLINE_S: Final = 60.0


class Forks:
    """The zygote of a tier; set by its fixture."""

    zygote: Zygote | None = None


def run(
    *arguments: str | Path,
    given: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path = REPO,
    user: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run it with `given` on its standard input; returns how it ended and what it wrote."""
    assert Forks.zygote is not None
    return Forks.zygote.run(
        [str(one) for one in arguments],
        env=os.environ if env is None else env,
        cwd=cwd,
        given=given,
        user=user,
        timeout=_DEADLINE_S,
    )
