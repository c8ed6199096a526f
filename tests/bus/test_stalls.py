# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd or the bus stands still, or is executed anew, while requests are under way."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError
from tests.attack import OWN, assert_refused
from tests.bus.faults import (
    bus_stopped,
    ended,
    held,
    in_background,
    reached,
    restarted,
    running,
    systemd_stopped,
)
from tests.sandbox import Sandbox
from tests.support import (
    MANAGER,
    NAME,
    ROOT,
    Client,
    Daemon,
    image,
    label,
    resources,
    svirt_units,
    wait_for,
)

LAUNCH = "sasaa{sv}a{sv}"
SLEEP = ["/bin/sleep", "1000"]
# Of one call to systemd: what these tests wait for.
SHORT = "[launch]\nanswer-timeout = 1\n"


@pytest.fixture
def daemon(sandbox: Sandbox, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that waits for systemd as long as it does by default."""
    with running(tmp_path / "d") as daemon:
        yield daemon


def test_a_launch_waits_for_a_systemd_that_is_slow(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    with contextlib.ExitStack() as stopped:
        stopped.enter_context(systemd_stopped())
        with in_background(lambda c: c.launch("vm", SLEEP, disk)) as launch:
            wait_for("the label", lambda: label(disk))
            # Others are served meanwhile.
            client.acquire("other", image(tmp_path / "b.img"))
            client.release("other")
            assert not launch.done()
            # It goes on before the launch is waited for.
            stopped.close()
        launch.result()
    assert client.vms() == {"vm": "running"}
    assert os.path.exists(f"/proc/{client.properties('vm')['MainPID']}")
    client.release("vm")
    assert label(disk) is None


def refused_launch(name: str, argv: list[str], disk: Path) -> BusError:
    client = Client()
    try:
        return client.error("Launch", LAUNCH, name, argv, resources(disk), {})
    finally:
        client.close()


@pytest.mark.parametrize("kill", [False, True], ids=["the daemon stays", "the daemon is killed"])
def test_a_launch_that_systemd_does_not_answer(
    sandbox: Sandbox, client: Client, tmp_path: Path, kill: bool
) -> None:
    """It may start the unit once it goes on: nothing of the VM's label is given away before."""
    disk = image(tmp_path / "a.img")
    with running(tmp_path / "d", extra=SHORT) as daemon:
        with systemd_stopped():
            refused = refused_launch("vm", SLEEP, disk)
            assert_refused(refused, OWN + "UnitFailed", "may still start", "did not answer GetUnit")
            vm = client.properties("vm")
            assert (vm["State"], label(disk)) == ("failed", vm["ImageContext"])
            assert "did not answer" in vm["StateReason"]
            if kill:
                daemon.kill()
        if kill:
            restarted(daemon)  # to meet what systemd has made of the call of the one before
        wait_for("the end of it", lambda: client.vms() == {})
        assert label(disk) is None
        wait_for("its unit is gone", lambda: not svirt_units())
        # The name is free, in the book and in systemd.
        client.launch("vm", SLEEP, disk)
        client.release("vm")


def test_somebody_elses_unit_is_not_ended_for_a_start_without_answer(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    argv = ["systemd-run", "-q", "--collect", "--unit=svirt-vm", *SLEEP]
    subprocess.run(argv, check=True)
    try:
        with running(tmp_path / "d", extra=SHORT):
            with systemd_stopped():
                refused = refused_launch("vm", SLEEP, disk)
                assert_refused(refused, OWN + "UnitFailed", "may still start")
                assert client.vms() == {"vm": "failed"}
            wait_for("the release", lambda: client.vms() == {})
            assert label(disk) is None
            assert svirt_units() == ["svirt-vm.service"]
    finally:
        subprocess.run(["systemctl", "stop", "svirt-vm"], check=True)


@pytest.mark.parametrize("asked", [False, True], ids=["for its state", "for the stop"])
def test_a_release_that_systemd_does_not_answer(
    sandbox: Sandbox, client: Client, tmp_path: Path, asked: bool
) -> None:
    disk, trace, hold = image(tmp_path / "a.img"), tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} stop-before=hold:{hold}"
    with running(tmp_path / "d", extra=SHORT, failpoints=points):
        client.launch("vm", SLEEP, disk)
        with contextlib.ExitStack() as stopped, held(hold) as let_go:
            if not asked:
                stopped.enter_context(systemd_stopped())
                let_go()
            with in_background(lambda c: c.error("Release", "sa{sv}", "vm", {})) as release:
                if asked:
                    wait_for("the point", lambda: reached(trace, "stop-before"))
                    stopped.enter_context(systemd_stopped())
                    let_go()
                refused = release.result()
            member = "StopUnit" if asked else "GetUnit"
            assert_refused(refused, OWN + "Failed", f"did not answer {member} within 1 s")
            vm = client.properties("vm")
            assert (vm["State"], label(disk)) == ("running", vm["ImageContext"])
            assert os.path.exists(f"/proc/{vm['MainPID']}")
        if not asked:
            client.release("vm")
        # Or: the stop was asked for, and happens late.
        wait_for("the release", lambda: client.vms() == {})
        assert label(disk) is None


def test_an_end_that_is_noticed_while_systemd_stands_still(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """The look fails, and is made again: nobody else would."""
    disk, trace, hold = image(tmp_path / "a.img"), tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} stop-before=hold:{hold}"
    with running(tmp_path / "d", extra=SHORT, failpoints=points) as daemon, held(hold) as let_go:
        client.launch("vm", SLEEP, disk)
        os.kill(client.properties("vm")["MainPID"], signal.SIGKILL)
        wait_for("the release begins", lambda: reached(trace, "stop-before"))
        with systemd_stopped():
            let_go()
            warned = "did not answer StopUnit within 1 s; see whether it is stuck"
            wait_for("the failed try", lambda: warned in journal_of(daemon))
            assert client.vms() == {"vm": "running"}
        wait_for("the release", lambda: client.vms() == {})
        assert label(disk) is None


def journal_of(daemon: Daemon) -> str:
    """What a running daemon has recorded."""
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = ["journalctl", "--no-pager", "--output=cat", f"_PID={daemon.pid}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("point", ["recover-before", "units-before"])
def test_a_start_while_systemd_stands_still(
    sandbox: Sandbox, client: Client, tmp_path: Path, point: str
) -> None:
    """No VM can be judged: the start fails, changes nothing, and the next one does it."""
    disks = [image(tmp_path / f"{name}.img") for name in "ab"]
    with running(tmp_path / "d", extra=SHORT) as daemon:
        client.launch("stays", SLEEP, disks[0])
        client.launch("ends", SLEEP, disks[1])
        pids = [client.properties(name)["MainPID"] for name in ("stays", "ends")]
        daemon.kill()
        os.kill(pids[1], signal.SIGKILL)
        wait_for("the unit's end", lambda: svirt_units() == ["svirt-stays.service"])
        trace, hold = tmp_path / "trace", tmp_path / "hold"
        daemon.failpoints = f"trace:{trace} {point}=hold:{hold}"
        with held(hold) as let_go:
            daemon.spawn()
            wait_for("the point", lambda: reached(trace, point))
            with systemd_stopped():
                let_go()
                assert ended(daemon) == 1
                assert None not in [label(disk) for disk in disks]
        said = journal_since(daemon)
        assert "systemd did not answer" in said
        restarted(daemon)
        assert client.vms() == {"stays": "running"}
        assert label(disks[1]) is None
        assert client.properties("stays")["MainPID"] == pids[0]
        client.release("stays")


def journal_since(daemon: Daemon) -> str:
    """What was recorded or written by any run of a daemon."""
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = ["journalctl", "--no-pager", "--output=cat", "SYSLOG_IDENTIFIER=svirtd"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout + daemon.output()


def test_a_stop_during_a_start_that_systemd_holds_up(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    disk, trace, hold = image(tmp_path / "a.img"), tmp_path / "trace", tmp_path / "hold"
    with running(tmp_path / "d") as daemon:
        client.launch("vm", SLEEP, disk)
        daemon.kill()
        daemon.failpoints = f"trace:{trace} units-before=hold:{hold}"
        with held(hold) as let_go:
            daemon.spawn()
            wait_for("the point", lambda: reached(trace, "units-before"))
            with systemd_stopped():
                let_go()
                assert daemon.end(signal.SIGTERM) == 0  # and not after the 25 s of a call
        restarted(daemon)
        assert client.vms() == {"vm": "running"}
        client.release("vm")


def execute_systemd_anew() -> None:
    """Order it. While it obeys the order before, it may hang up on the next one."""

    def taken() -> bool:
        argv = ["systemctl", "daemon-reexec"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "endpoint is not connected" in done.stderr, done.stderr
        return done.returncode == 0

    wait_for("systemd takes the order", taken)


def test_systemd_is_executed_anew(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """It leaves the bus for that, and comes back under another name."""
    disks = {name: image(tmp_path / f"{name}.img") for name in ("before", "after")}
    client.launch("before", SLEEP, disks["before"])
    for _ in range(2):
        execute_systemd_anew()
    client.launch("after", SLEEP, disks["after"])
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    for name in ("before", "after"):
        os.kill(client.properties(name)["MainPID"], signal.SIGKILL)
    wait_for("both ends are noticed", lambda: client.vms() == {})
    assert [label(disk) for disk in disks.values()] == [None, None]


def test_launches_while_systemd_is_executed_anew(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Each is done or undone, and its caller is told which."""
    disks = [image(tmp_path / f"{number}.img") for number in range(60)]

    def launch_all(caller: Client) -> dict[int, BusError]:
        failed = {}
        for number, disk in enumerate(disks):
            try:
                caller.launch(f"vm{number}", SLEEP, disk)
            except BusError as error:
                failed[number] = error
        return failed

    with in_background(launch_all) as launches:
        for number in (5, 20, 35):
            await_one(launches, disks[number])
            execute_systemd_anew()
    failed = launches.result()
    for refusal in failed.values():
        assert_refused(refusal, OWN + "UnitFailed")
    for number, disk in enumerate(disks):
        if number in failed:
            continue
        vm = client.properties(f"vm{number}")
        assert (vm["State"], label(disk)) == ("running", vm["ImageContext"])
        assert os.path.exists(f"/proc/{vm['MainPID']}")
    done = {f"vm{number}" for number in range(len(disks)) if number not in failed}
    wait_for("only those are left", lambda: set(client.vms()) == done)
    assert all(label(disks[number]) is None for number in failed)
    wait_for("only their units run", lambda: len(svirt_units()) == len(done))
    for name in done:
        client.release(name)


def await_one(launches: Future[Any], disk: Path) -> None:
    """Wait until a launch has come to this disk."""
    wait_for("the label", lambda: label(disk) is not None or launches.done())


def test_a_bus_that_stands_still_loses_and_repeats_nothing(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """Calls, replies and signals wait on both sides of it."""
    count = 100
    points = "commit-before=sleep:0.3"
    with running(tmp_path / "d", failpoints=points):
        client.listen()

        async def acquire_all() -> list[str]:
            async def acquire(number: int) -> str:
                body = [f"vm{number}", [], {}]
                reply = await client.connection.call(
                    NAME, ROOT, MANAGER, "Acquire", "saa{sv}a{sv}", body, timeout_s=20.0
                )
                return str(reply.body[0])

            first = [asyncio.ensure_future(acquire(number)) for number in range(count // 2)]
            await asyncio.sleep(0.1)  # svirtd has these, and answers while nobody reads
            with bus_stopped():
                last = [asyncio.ensure_future(acquire(n)) for n in range(count // 2, count)]
                await asyncio.sleep(1.5)
            return await asyncio.gather(*first, *last)

        paths = client.runner.run(acquire_all())
        assert len(set(paths)) == count
        assert len(client.vms()) == count
        added = wait_for("every signal", lambda: at_least(client.seen("VMAdded"), count))
        assert sorted(name for name, _ in added) == sorted(f"vm{n}" for n in range(count))
        assert client.manager()["PairsInUse"] == count
        release_all(client, [f"vm{number}" for number in range(count)])


def at_least(found: list[list[Any]], count: int) -> list[list[Any]]:
    return found if len(found) >= count else []


def release_all(client: Client, names: list[str]) -> None:
    """Release many at once."""

    async def every() -> None:
        await asyncio.gather(
            *(
                client.connection.call(
                    NAME, ROOT, MANAGER, "Release", "sa{sv}", [name, {}], timeout_s=20.0
                )
                for name in names
            )
        )

    client.runner.run(every())


def test_a_bus_that_does_not_answer_for_long_ends_the_daemon(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    daemon = Daemon(tmp_path / "d")
    daemon.env |= {"WATCHDOG_USEC": "6000000"}
    daemon.start()
    client.launch("vm", SLEEP, disk)
    vm = client.properties("vm")
    with bus_stopped():
        assert ended(daemon) == 1
    assert "did not answer GetId within 2 s" in journal_since(daemon)
    daemon.env.pop("WATCHDOG_USEC")
    daemon.start()
    try:
        assert client.properties("vm") == vm
        client.release("vm")
    finally:
        assert daemon.stop() == 0


def test_thousands_of_signals_to_one_who_does_not_read(
    daemon: Daemon, client: Client, sandbox: Sandbox
) -> None:
    """The bus keeps them for him; svirtd serves the others meanwhile, and keeps nothing."""
    rounds, at_once = 50, 50  # four signals for each VM
    deaf = Client()
    deaf.listen()
    try:
        churn(client, at_once)
        before = resident_bytes(daemon)
        for _ in range(rounds - 1):
            churn(client, at_once)
        assert client.vms() == {}
        assert resident_bytes(daemon) - before < 32 << 20
        count = rounds * at_once
        added = wait_for("his signals", lambda: at_least(deaf.seen("VMAdded"), count))
        removed = wait_for("his signals", lambda: at_least(deaf.seen("VMRemoved"), count))
        assert len(added) == len(removed) == count
        assert len(deaf.signals) >= 10_000
    finally:
        deaf.close()


def churn(client: Client, count: int) -> None:
    """Acquire and release many VMs that hold nothing, at once."""

    async def one(number: int) -> None:
        for member, signature, *rest in (("Acquire", "saa{sv}a{sv}", []), ("Release", "sa{sv}")):
            body = [f"vm{number}", *rest, {}]
            await client.connection.call(
                NAME, ROOT, MANAGER, member, signature, body, timeout_s=20.0
            )

    async def every() -> None:
        await asyncio.gather(*(one(number) for number in range(count)))

    client.runner.run(every())


def resident_bytes(daemon: Daemon) -> int:
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
