# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon that was forked from a zygote is what one that was executed is."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.sandbox import Sandbox
from tests.support import Client, Daemon, wait_for
from tests.zygote import Zygote

# What the kernel says of signals, privileges and limits of a process.
_SAME = re.compile(r"(Sig(Pnd|Blk|Ign|Cgt)|ShdPnd|Cap\w+|NoNewPrivs|Umask|Threads|Uid|Gid|PPid):.*")

# Looks in a row that show the same before it counts as what it is.
_SAME_LOOKS = 25


def of_kernel(daemon: Daemon) -> dict[str, object]:
    """What the kernel knows of a daemon, beyond what differs from one run to the next."""
    proc = Path(f"/proc/{daemon.pid}")
    status = [line for line in (proc / "status").read_text().splitlines() if _SAME.fullmatch(line)]
    fds = sorted(re.sub(r"\[\d+\]", "", fd) for fd in daemon.fds())
    own, process = str(daemon.folder), f"/proc/{daemon.pid}/"
    return {
        "status": status,
        "fds": [fd.replace(own, "").replace(process, "") for fd in fds],
        "cwd": os.readlink(proc / "cwd"),
        "limits": (proc / "limits").read_text(),
        "cgroup": (proc / "cgroup").read_text(),
        "session": (proc / "stat").read_text().rpartition(")")[2].split()[2:5],
    }


def settled(daemon: Daemon) -> dict[str, object]:
    """What the kernel knows of a daemon once it does not change any more: the check of the book has
    a thread and descriptors of its own, and ends some time after the start."""
    seen: list[dict[str, object]] = []

    def same() -> dict[str, object] | None:
        now = of_kernel(daemon)
        if seen and seen[-1] != now:
            seen.clear()
        seen.append(now)
        return now if len(seen) >= _SAME_LOOKS and is_checked(daemon) else None

    return wait_for("nothing changes any more", same)


def is_checked(daemon: Daemon) -> bool:
    """Whether the check of the whole book has ended: its log is closed, and its database as SQLite
    closes it beside other connections of one process, later."""
    fds = daemon.fds()
    return (fds.count(str(daemon.book)), fds.count(f"{daemon.book}-wal")) == (3, 2)


def test_the_kernel_sees_no_difference(sandbox: Sandbox, zygote: Zygote, tmp_path: Path) -> None:
    found = []
    for name, how in (("executed", None), ("forked", zygote)):
        daemon = Daemon(tmp_path / name, zygote=how)
        daemon.start()
        found.append(settled(daemon))
        assert daemon.stop() == 0
    assert found[0] == found[1]


def test_its_environment_is_the_one_given(sandbox: Sandbox, zygote: Zygote, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    # The bus is the one of the environment: an address where nobody listens ends the daemon.
    daemon.env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp_path}/nobody"
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1
    assert "cannot connect to the bus" in daemon.output()


def test_its_end_is_told_as_a_childs_end_is(
    sandbox: Sandbox, zygote: Zygote, client: Client, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    daemon.start()
    process = daemon.process
    assert process is not None
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    daemon.kill()
    assert process.returncode == -signal.SIGKILL
    daemon.config.write_text("[nonsense]\n")
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(20) == 2
    wait_for("its name has no owner", lambda: not client.runner.run(_owned(client)))


async def _owned(client: Client) -> bool:
    return await client.connection.has_owner("org.svirt1")


def test_it_is_a_child_of_the_test(sandbox: Sandbox, zygote: Zygote, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    daemon.start()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert str(daemon.pid) in children
    assert daemon.stop() == 0
