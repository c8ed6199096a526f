# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service manager that does not answer, or answers other than expected, on a real bus."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.errors import NoAnswer, SvirtError, UnitFailed, UnitStuck
from svirtd.host.bus import Connection, Message, MessageType, Variant, error_reply, method_return
from svirtd.host.systemd import Systemd
from svirtd.host.unit import UnitSpec

_CONFIG = """<busconfig><type>custom</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
<allow user="*"/></policy></busconfig>"""
NAME = "org.freedesktop.systemd1"
JOB = "/org/freedesktop/systemd1/job/1"
OURS = "system_u:system_r:svirt_t:s0:c1,c2"
SPEC = UnitSpec("svirt-vm.service", "", ("/bin/true",), OURS, "", "machine.slice", (), "", ())
# Of calls that nobody answers; others of the same test must be answered by then.
SHORT_S = 1.0
LONG_S = 20.0


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "bus.conf"
    config.write_text(_CONFIG.replace("{socket}", str(tmp_path / "s")))
    argv = ["dbus-daemon", f"--config-file={config}", "--print-address", "--nofork"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().partition(",")[0]
        process.kill()


class Manager:
    """Answers for systemd: `answers` by member, those of `silent` never."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.asked: list[str] = []
        self.silent: set[str] = set()
        self.refused: dict[str, str] = {}
        self.context = OURS
        self.state = "active"
        connection.handle_methods(self._on_call)

    def _on_call(self, msg: Message) -> None:
        self.asked.append(msg.member)
        if msg.member in self.silent:
            return
        if msg.member in self.refused:
            answer = error_reply(msg, self.refused[msg.member], "as the test wants it")
        else:
            answer = method_return(msg, *self._answer(msg), [])
        self.connection.send(answer)

    def _answer(self, msg: Message) -> tuple[str, list[Any]]:
        match msg.member:
            case "StartTransientUnit" | "StopUnit":
                if msg.member == "StopUnit":
                    self.state = "inactive"
                self.tell("JobRemoved", "uoss", 1, JOB, SPEC.name, "done")
                return "o", [JOB]
            case "GetUnit":
                return "o", ["/org/freedesktop/systemd1/unit/x"]
            case "GetAll":
                return "a{sv}", [
                    {
                        "ActiveState": Variant("s", self.state),
                        "SubState": Variant("s", "running"),
                        "Result": Variant("s", "success"),
                        "MainPID": Variant("u", 7),
                        "ExecMainCode": Variant("i", 0),
                        "ExecMainStatus": Variant("i", 0),
                        "SELinuxContext": Variant("(bs)", [False, self.context]),
                    }
                ]
            case "ListUnitsByPatterns":
                return "a(ssssssouso)", [[]]
            case _:
                return "", []

    def tell(self, member: str, signature: str, *body: Any) -> None:
        self.connection.send(
            Message(
                MessageType.SIGNAL,
                path="/org/freedesktop/systemd1",
                interface=NAME + ".Manager",
                member=member,
                signature=signature,
                body=list(body),
            )
        )


def run(bus: str, answer_s: float, test: Callable[[Manager, Systemd], Awaitable[None]]) -> None:
    async def main() -> None:
        theirs, ours = await Connection.open(bus), await Connection.open(bus)
        try:
            manager = Manager(theirs)
            assert await theirs.request_name(NAME)
            async with asyncio.timeout(LONG_S):
                await test(manager, Systemd(ours, lambda: answer_s))
        finally:
            theirs.close()
            ours.close()

    asyncio.run(main())


def test_a_start_that_nobody_answers_is_stuck_and_not_failed(bus: str) -> None:
    """Whether a process runs is not known: what its label stands for may not be given away."""

    async def test(manager: Manager, systemd: Systemd) -> None:
        manager.silent = {"Subscribe", "StartTransientUnit", "GetUnit"}
        with pytest.raises(NoAnswer, match="did not answer Subscribe"):
            await systemd.open()
        with pytest.raises(UnitStuck, match="may still start") as caught:
            await systemd.start(SPEC, timeout_s=SHORT_S)
        assert caught.value.name == UnitFailed.name
        assert list(systemd._watched.values()) == [SPEC.name]

    run(bus, SHORT_S, test)


@pytest.mark.parametrize("how", ["late", "other", "none"])
def test_a_start_whose_answer_is_lost_ends_its_own_unit_only(bus: str, how: str) -> None:
    """It was started after all, or was refused since somebody else's unit has the name, or is not
    there."""

    async def test(manager: Manager, systemd: Systemd) -> None:
        await systemd.open()
        manager.refused["StartTransientUnit"] = "org.freedesktop.DBus.Error.NoReply"
        if how == "other":
            manager.context = "system_u:system_r:svirt_t:s0:c3,c4"
        if how == "none":
            manager.refused["GetUnit"] = "org.freedesktop.systemd1.NoSuchUnit"
        with pytest.raises(UnitFailed, match="was not started: systemd left the bus") as caught:
            await systemd.start(SPEC, timeout_s=LONG_S)
        assert not isinstance(caught.value, UnitStuck)
        ended = [member for member in manager.asked if member in ("KillUnit", "StopUnit")]
        assert ended == (["KillUnit", "StopUnit"] if how == "late" else [])
        assert systemd._watched == {}
        assert systemd._referenced == set()

    run(bus, LONG_S, test)


def test_a_refused_start_touches_nothing(bus: str) -> None:
    async def test(manager: Manager, systemd: Systemd) -> None:
        await systemd.open()
        manager.refused["StartTransientUnit"] = "org.freedesktop.systemd1.UnitExists"
        with pytest.raises(UnitFailed, match="systemd refused"):
            await systemd.start(SPEC, timeout_s=LONG_S)
        assert "StopUnit" not in manager.asked
        assert "KillUnit" not in manager.asked

    run(bus, LONG_S, test)


@pytest.mark.parametrize("silent", [set(), {"KillUnit"}], ids=["ended", "stuck"])
def test_a_unit_whose_state_is_not_told_is_ended(bus: str, silent: set[str]) -> None:
    """It was started; whether under which label nobody says."""

    async def test(manager: Manager, systemd: Systemd) -> None:
        await systemd.open()
        manager.refused["GetAll"] = "org.freedesktop.DBus.Error.Failed"

        def once_stopped(msg: Message) -> None:
            if msg.member == "KillUnit" and not silent:
                del manager.refused["GetAll"]
            manager._on_call(msg)

        manager.connection.handle_methods(once_stopped)
        manager.silent = silent
        with pytest.raises(UnitFailed) as caught:
            await systemd.start(SPEC, timeout_s=SHORT_S)
        assert isinstance(caught.value, UnitStuck) is bool(silent)
        assert "KillUnit" in manager.asked

    run(bus, SHORT_S if silent else LONG_S, test)


def test_a_reference_that_cannot_be_dropped_is_no_failure(bus: str) -> None:
    """The unit runs: taking its labels back for that would be worse than a rule on the bus."""

    async def test(manager: Manager, systemd: Systemd) -> None:
        await systemd.open()
        manager.silent = {"UnrefUnit"}
        state = await systemd.start(SPEC, timeout_s=SHORT_S)
        assert (state.main_pid, state.active) == (7, "active")
        assert systemd._referenced == {SPEC.name}
        manager.silent = set()
        await systemd.stop(SPEC.name, timeout_s=SHORT_S)
        assert systemd._referenced == set()

    run(bus, SHORT_S, test)


def test_what_a_renewed_manager_did_not_tell_is_looked_for(bus: str) -> None:
    """Its job's result and its units' ends went out while it was not on the bus."""

    async def test(manager: Manager, systemd: Systemd) -> None:
        changed: list[str] = []
        renewed: list[str] = []
        systemd.on_change = changed.append
        systemd.on_renewed = lambda: renewed.append("renewed")
        await systemd.open()
        systemd.watch("svirt-old.service")
        manager.tell = lambda *_: None  # type: ignore[method-assign]
        starting = asyncio.ensure_future(systemd.start(SPEC, timeout_s=LONG_S))
        while not systemd._jobs:  # noqa: ASYNC110 -- what is looked at belongs to the other side
            await asyncio.sleep(0.005)
        manager.refused["Get"] = "org.freedesktop.DBus.Error.UnknownObject"
        await manager.connection.call_bus("ReleaseName", "s", [NAME])
        assert await manager.connection.request_name(NAME)
        while not renewed:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.005)
        manager.asked.clear()
        await systemd.resume()
        assert manager.asked[0] == "Subscribe"
        assert (await starting).active == "active"
        assert changed == ["svirt-old.service", SPEC.name]

    run(bus, LONG_S, test)


def test_a_manager_that_cannot_be_asked_says_so(bus: str) -> None:
    async def test(manager: Manager, systemd: Systemd) -> None:
        await systemd.open()
        manager.refused["ListUnitsByPatterns"] = "org.freedesktop.DBus.Error.AccessDenied"
        with pytest.raises(SvirtError, match="does not say what it runs"):
            await systemd.resume()

    run(bus, LONG_S, test)
