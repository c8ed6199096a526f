# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other programs that svirtctl runs: the only place that starts one."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from svirtd.ctl.failures import IO_ERROR, Exit, Failure

ENDED_BADLY: Final = "org.svirt1.Error.Failed"


def run(
    argv: Sequence[str],
    *,
    limit_s: float,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    missing: str = "",
) -> str:
    """Run a program with `text` as its input and return what it prints.

    Raises Failure: with what it said if it fails, if it takes longer, or if it cannot be run;
    `missing` says then what to do where there is no such program.
    """
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            timeout=limit_s,
            check=False,
        )
    except OSError as error:
        why = f"{argv[0]} cannot be run: {error.strerror}"
        if isinstance(error, FileNotFoundError) and missing:
            why += f"; {missing}"
        raise Failure(IO_ERROR, why, Exit.REFUSED) from error
    except subprocess.TimeoutExpired as error:
        why = f"{argv[0]} has not ended within {limit_s:.0f} s"
        raise Failure(IO_ERROR, why, Exit.REFUSED) from error
    if done.returncode:
        said = done.stderr.strip() or f"{argv[0]} failed with exit status {done.returncode}"
        raise Failure(ENDED_BADLY, said, Exit.REFUSED)
    return done.stdout


def begin(argv: Sequence[str], *, passed_fd: int) -> subprocess.Popen[bytes]:
    """Start a program that shares this terminal and gets one descriptor. Raises OSError."""
    return subprocess.Popen(argv, pass_fds=[passed_fd])


def stop(process: subprocess.Popen[bytes], *, limit_s: float) -> None:
    """End a program that runs on by itself, by force if it does not obey."""
    process.terminate()
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
