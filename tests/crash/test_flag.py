# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fail points take a flag on the command line: an environment alone does nothing to a daemon."""

from pathlib import Path

import pytest

from svirtd.failpoints import VARIABLE, Point
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label
from tests.zygote import Zygote


def test_the_environment_alone_arms_nothing(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    trace, disk = tmp_path / "trace", image(tmp_path / "a.img")
    everywhere = " ".join(f"{point}=kill" for point in Point)
    daemon = Daemon(tmp_path / "d")
    daemon.env[VARIABLE] = f"trace:{trace} {everywhere}"
    daemon.start()
    client.acquire("vm", disk)
    client.release("vm")
    assert label(disk) is None
    assert not trace.exists()
    assert daemon.stop() == 0


def test_with_the_flag_it_does(sandbox: Sandbox, zygote: Zygote, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote, failpoints="recover-before=kill")
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20) == -9


def test_the_flag_without_the_environment_does_nothing(
    sandbox: Sandbox, client: Client, zygote: Zygote, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote, failpoints=" ")
    daemon.start()
    assert client.vms() == {}
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere=kill", "'nowhere' is not a valid Point"),
        ("label-write=dance", "'dance' is not known"),
        ("label-write", "expected POINT[@N[+]]=ACTION"),
        ("trace:/nowhere/trace", "No such file"),
        ("label-write=errno:ENOTHING", "ENOTHING"),
        ("book-write=raise:sqlite3.Nothing:text", "Nothing"),
        ("book-write=raise:no.such.Module:text", "no.such"),
    ],
)
def test_a_bad_value_is_refused(
    sandbox: Sandbox, zygote: Zygote, tmp_path: Path, value: str, said: str
) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote, failpoints=value)
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20) == 2
    assert said in daemon.output()
    assert "Traceback" not in daemon.output()
