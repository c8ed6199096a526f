# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl as a process of its own, forked from one that has made its imports.

Who needs it as it is executed, on a terminal or beside the test, starts `CTL`.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support import REPO
from tests.zygote import Zygote

CTL: Final = (sys.executable, "-m", "svirtd.ctl")
_DEADLINE_S: Final = 60.0
# A pipe takes this much, whoever reads.
_GIVEN_BYTES: Final = 4096


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
    argv = [str(one) for one in arguments]
    stdin, gives = os.pipe()
    with (
        open(stdin, "rb") as reads,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        with open(gives, "w") as writes:
            assert len(given) <= _GIVEN_BYTES
            writes.write(given)
        process = Forks.zygote.spawn(
            argv,
            env=os.environ if env is None else env,
            cwd=cwd,
            streams=(reads.fileno(), out.fileno(), err.fileno()),
            user=user,
        )
        try:
            code = process.wait(_DEADLINE_S)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                process.wait(_DEADLINE_S)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(["svirtctl", *argv], code, *texts)
