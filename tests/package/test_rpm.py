# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rpm spec, as its checkers see it."""

import subprocess
from typing import Final

import svirtd
from tests.guest import build

_SPEC: Final = build.REPO / "packaging/svirtd.spec"


def test_rpmlint_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["rpmlint", "--config", _SPEC.with_name("rpmlint.toml"), _SPEC],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout, done.stdout


def test_it_is_of_this_version() -> None:
    queried = build.run(["rpmspec", "--query", "--qf", "%{name} %{version}\n", str(_SPEC)])
    assert queried.splitlines() == [f"svirtd {svirtd.__version__}"]
