# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units of an administrator's own for tests, and a svirtctl that systemd finds for them."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests import svirtctl as forked
from tests.support import REPO

UNITS: Final = Path("/etc/systemd/system")
# Looked through before /usr/bin; of the sandbox's own.
_PROGRAM: Final = Path("/usr/local/sbin/svirtctl")


def install_svirtctl() -> None:
    """Have units find the svirtctl of this checkout. In the sandbox alone."""
    assert "SVIRT_SANDBOX" in os.environ
    _PROGRAM.write_text(
        f'#!/bin/sh\ncd {REPO} && exec {REPO}/.venv/bin/python -m svirtd.ctl "$@"\n', "utf-8"
    )
    _PROGRAM.chmod(0o755)


def systemctl(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip()


def show(unit: str, *names: str) -> dict[str, str]:
    out = systemctl("show", unit, "-p", ",".join(names))
    return dict(line.split("=", 1) for line in out.splitlines())


@contextlib.contextmanager
def unit_file(name: str, *lines: str) -> Iterator[str]:
    """A unit file of the administrator's; it and what lies beside it are gone afterwards."""
    path = UNITS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[Service]\n" + "".join(f"{line}\n" for line in lines), "utf-8")
    systemctl("daemon-reload")
    try:
        yield name
    finally:
        path.unlink()
        systemctl("daemon-reload")


def svirtctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run svirtctl as an administrator does, wherever it is installed, or as a tier forks it."""
    if forked.Forks.zygote is not None:
        return forked.run(*arguments, cwd=Path.cwd())
    return subprocess.run(["svirtctl", *arguments], capture_output=True, text=True, check=False)


def done(*arguments: str) -> str:
    """Run svirtctl, which has to succeed; its output."""
    found = svirtctl(*arguments)
    assert found.returncode == 0, found.stderr
    return found.stdout


def residue() -> Sequence[str]:
    """What is left of enrolled units below /etc/systemd/system."""
    return [str(path) for path in UNITS.rglob("*") if path.name.endswith((".conf", ".service.d"))]
