# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon relies on in systemd, the bus, journald and machined, on the real ones."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant
from systemd.journal import sendv

from tests.journal import errors_of
from tests.sandbox import Sandbox

TIMEOUT_S = 20.0
SYSTEMD = "org.freedesktop.systemd1"
MANAGER = f"{SYSTEMD}.Manager"
UNIT = f"{SYSTEMD}.Unit"
SERVICE = f"{SYSTEMD}.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
CONTEXT = "system_u:system_r:svirt_t:s0:c1,c2"
ARGUMENTS = ["a b", "$HOME", "${HOME}", "%n", "%%", r"\x41", "\\", '"', "'", "", "\n", "{x}", ";"]


class Client:
    """A subscribed client of systemd that stays on the bus, as the daemon does."""

    def __init__(self) -> None:
        self.signals: list[Message] = []
        self._loop = asyncio.new_event_loop()
        self._bus = self._loop.run_until_complete(self._connect())
        self._bus.add_message_handler(self._collect)
        rule = f"type='signal',sender='{SYSTEMD}'"
        self.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", "s", rule)
        self.manager("Subscribe")

    @staticmethod
    async def _connect() -> MessageBus:
        return await MessageBus(bus_type=BusType.SYSTEM).connect()

    def close(self) -> None:
        self._bus.disconnect()
        self._loop.run_until_complete(self._bus.wait_for_disconnect())
        # dbus-next shuts its socket down and leaves closing it to the garbage collector.
        self._bus._stream.close()
        self._bus._sock.close()
        self._loop.close()

    def _collect(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            self.signals.append(message)

    def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        """The body of the reply; an error reply raises AssertionError with its name and text."""
        message = Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        call = asyncio.wait_for(self._bus.call(message), TIMEOUT_S)
        reply = self._loop.run_until_complete(call)
        assert reply is not None
        assert reply.message_type is MessageType.METHOD_RETURN, (reply.error_name, reply.body)
        return list(reply.body)

    def manager(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        return self.call(SYSTEMD, "/org/freedesktop/systemd1", MANAGER, member, signature, *body)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Handle messages until `condition` holds; fail after a deadline."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"not seen in time: {what}"
            self._loop.run_until_complete(asyncio.sleep(0.01))

    def job_result(self, job: str) -> str:
        def result() -> list[str]:
            removed = [s.body for s in self.signals if s.member == "JobRemoved"]
            return [body[3] for body in removed if body[1] == job]

        self.wait_for(f"JobRemoved of {job}", lambda: bool(result()))
        return result()[0]

    def start(self, unit: str, argv: list[str], **properties: Variant) -> str:
        """StartTransientUnit with Type=exec; the result of the job."""
        command = Variant("a(sasas)", [[argv[0], argv, ["no-env-expand"]]])
        given = {"Type": Variant("s", "exec"), "ExecStartEx": command} | properties
        [job] = self.manager(
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
            unit,
            "fail",
            [[key, value] for key, value in given.items()],
            [],
        )
        return self.job_result(job)

    def stop(self, unit: str) -> str:
        [job] = self.manager("StopUnit", "ss", unit, "fail")
        return self.job_result(job)

    def get(self, unit: str, interface: str, name: str) -> Any:
        [path] = self.manager("LoadUnit", "s", unit)
        [value] = self.call(SYSTEMD, path, PROPERTIES, "Get", "ss", interface, name)
        return value.value

    def is_loaded(self, unit: str) -> bool:
        [units] = self.manager("ListUnitsByNames", "as", [unit])
        return bool(units[0][2] == "loaded")

    def wait_state(self, unit: str, state: str) -> None:
        self.wait_for(f"{unit} {state}", lambda: bool(self.get(unit, UNIT, "ActiveState") == state))


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


@pytest.fixture
def unit(client: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a unit for this test, stopped at its end."""
    name = f"{request.node.name.replace('_', '-')}.service"
    yield name
    client.manager("ResetFailed")
    if client.is_loaded(name):
        client.stop(name)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cgroup(client: Client, unit: str) -> Path:
    return Path("/sys/fs/cgroup" + client.get(unit, SERVICE, "ControlGroup"))


def journal(sandbox: Sandbox, *matches: str) -> list[dict[str, Any]]:
    argv = ["journalctl", f"--directory={sandbox.journal}", "--output=json", *matches]
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


# --- the sandbox itself


def test_pid_1_is_systemd_and_the_caller_is_a_unit(client: Client) -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    [path] = client.manager("GetUnitByPID", "u", os.getpid())
    assert path.endswith("/sandbox_2dcommand_2escope")


def test_busctl_finds_the_same_bus(sandbox: Sandbox) -> None:
    argv = ["busctl", "--json=short", "get-property", SYSTEMD, "/org/freedesktop/systemd1"]
    reply = subprocess.run([*argv, MANAGER, "Virtualization"], check=True, capture_output=True)
    assert json.loads(reply.stdout)["data"] == "container-other"


# --- journald, machined and polkit


def test_journald_keeps_structured_records(sandbox: Sandbox, client: Client) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as native:
        native.connect("/run/systemd/journal/socket")
        native.send(b"MESSAGE=hello\nSVIRT_TEST=structured\n")
    client.wait_for("the record", lambda: bool(journal(sandbox, "SVIRT_TEST=structured")))
    [record] = journal(sandbox, "SVIRT_TEST=structured")
    assert record["MESSAGE"] == "hello"
    assert record["_PID"] == str(os.getpid())
    assert record["_SYSTEMD_UNIT"] == "sandbox-command.scope"


def test_an_error_is_seen_at_once(sandbox: Sandbox) -> None:
    """The look that ends each attack, see tests/attacks/."""
    before = errors_of(os.getpid())
    for priority, text in ((3, f"an error {uuid.uuid4()}"), (4, "a warning"), (2, "worse")):
        sendv(f"MESSAGE={text}", f"PRIORITY={priority}")
        if priority < 4:
            before.append(text)
        assert errors_of(os.getpid()) == before
    assert errors_of(1) != before


def test_nobody_keeps_what_systemd_tells_of_itself(sandbox: Sandbox) -> None:
    """It tells more whenever it is executed anew, and stands still once a queue is full of that."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream,
        pytest.raises(ConnectionRefusedError),
    ):
        stream.connect(str(sandbox.state / "notify"))


def test_machined_registers_a_unit_and_forgets_it_with_the_unit(client: Client, unit: str) -> None:
    name, path = "org.freedesktop.machine1", "/org/freedesktop/machine1"
    interface = f"{name}.Manager"
    assert client.start(unit, ["/bin/sleep", "1000"]) == "done"
    pid = client.get(unit, SERVICE, "MainPID")
    identity = bytes(range(1, 17))
    body = ("vm-a", identity, "svirtd", "vm", pid, "")
    client.call(name, path, interface, "RegisterMachine", "sayssus", *body)
    [machine] = client.call(name, path, interface, "GetMachineByPID", "u", pid)
    [value] = client.call(name, machine, PROPERTIES, "Get", "ss", f"{name}.Machine", "Unit")
    assert value.value == unit
    client.stop(unit)

    def machines() -> list[str]:
        [found] = client.call(name, path, interface, "ListMachines")
        return [machine[0] for machine in found]

    client.wait_for("machined forgets vm-a", lambda: machines() == [".host"])


def test_a_service_is_started_as_often_as_tests_want(sandbox: Sandbox) -> None:
    for _ in range(8):
        subprocess.run(["systemctl", "restart", "polkit.service"], check=True)


def test_polkit_follows_rules_that_a_test_writes(sandbox: Sandbox) -> None:
    rule = Path("/etc/polkit-1/rules.d/50-test.rules")
    rule.write_text(
        "polkit.addRule(function(action, subject) {"
        f'  if (action.id == "{SYSTEMD}.manage-units" && subject.user == "nobody")'
        "     return polkit.Result.YES; });"
    )
    # polkit reads its rules when they change, some time later: a restart is sure.
    subprocess.run(["systemctl", "restart", "polkit.service"], check=True)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
    codes = [
        subprocess.run(
            [*as_nobody, f"pkcheck --process $$ --action-id {SYSTEMD}.{action}"],
            check=False,
            capture_output=True,
        ).returncode
        for action in ("manage-units", "manage-unit-files")
    ]
    rule.unlink()
    assert codes == [0, 2]


# --- transient units


def test_selinux_context_and_slice_are_accepted(client: Client, unit: str) -> None:
    result = client.start(
        unit,
        ["/bin/sleep", "1000"],
        SELinuxContext=Variant("s", CONTEXT),
        Slice=Variant("s", "machine.slice"),
    )
    assert result == "done"
    assert client.get(unit, SERVICE, "SELinuxContext") == [False, CONTEXT]
    assert client.get(unit, SERVICE, "ControlGroup") == f"/machine.slice/{unit}"


def test_user_and_privileges_are_dropped(client: Client, unit: str) -> None:
    result = client.start(
        unit,
        ["/bin/sleep", "1000"],
        User=Variant("s", "nobody"),
        NoNewPrivileges=Variant("b", True),
        CapabilityBoundingSet=Variant("t", 0),
    )
    assert result == "done"
    process = status(client.get(unit, SERVICE, "MainPID"))
    assert process["Uid"].split() == ["65534"] * 4
    assert process["NoNewPrivs"] == "1"
    assert {process[key] for key in ("CapBnd", "CapPrm", "CapEff")} == {"0" * 16}


def test_arguments_arrive_verbatim(client: Client, unit: str) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(1000)", *ARGUMENTS]
    assert client.start(unit, argv) == "done"
    pid = client.get(unit, SERVICE, "MainPID")
    assert Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1] == argv


def test_unit_is_found_by_pid(client: Client, unit: str) -> None:
    assert client.start(unit, ["/bin/sleep", "1000"]) == "done"
    [by_name] = client.manager("GetUnit", "s", unit)
    pid = client.get(unit, SERVICE, "MainPID")
    assert client.manager("GetUnitByPID", "u", pid) == [by_name]


def test_property_changes_are_signalled(client: Client, unit: str) -> None:
    assert client.start(unit, ["/bin/sleep", "1000"]) == "done"
    [path] = client.manager("GetUnit", "s", unit)
    client.signals.clear()
    os.kill(client.get(unit, SERVICE, "MainPID"), 9)

    def states() -> list[Any]:
        changed = [s for s in client.signals if s.path == path and s.member == "PropertiesChanged"]
        unit_changes = [s.body[1] for s in changed if s.body[0] == UNIT]
        return [c["ActiveState"].value for c in unit_changes if "ActiveState" in c]

    client.wait_for("PropertiesChanged: failed", lambda: "failed" in states())
    assert client.get(unit, SERVICE, "Result") == "signal"


def test_missing_binary_fails_the_job(client: Client, unit: str) -> None:
    assert client.start(unit, ["/nonexistent/program"]) == "failed"
    assert client.get(unit, SERVICE, "Result") == "exit-code"
    assert client.get(unit, SERVICE, "ExecMainStatus") == 203


def test_a_reference_keeps_a_failed_unit_until_it_is_dropped(client: Client, unit: str) -> None:
    result = client.start(
        unit,
        ["/nonexistent/program"],
        AddRef=Variant("b", True),
        CollectMode=Variant("s", "inactive-or-failed"),
    )
    assert result == "failed"
    assert client.is_loaded(unit)
    assert client.get(unit, SERVICE, "Result") == "exit-code"
    client.manager("UnrefUnit", "s", unit)
    client.wait_for("the unit is gone", lambda: not client.is_loaded(unit))


def test_without_a_reference_a_failed_unit_is_collected(client: Client, unit: str) -> None:
    mode = Variant("s", "inactive-or-failed")
    assert client.start(unit, ["/nonexistent/program"], CollectMode=mode) == "failed"
    client.wait_for("the unit is gone", lambda: not client.is_loaded(unit))


def test_memory_limit(sandbox: Sandbox, client: Client, unit: str) -> None:
    """Without the controller systemd keeps the value, says nothing, and nothing is limited."""
    limit = 32 * 2**20
    hog = f"import time; x = bytearray({4 * limit}); time.sleep(1000)"
    limits = {"MemoryMax": Variant("t", limit), "MemorySwapMax": Variant("t", 0)}
    client.start(unit, [sys.executable, "-c", hog], **limits)
    if "memory" in sandbox.controllers:
        client.wait_state(unit, "failed")
        assert client.get(unit, SERVICE, "Result") == "oom-kill"
    else:
        assert client.get(unit, SERVICE, "MemoryMax") == limit
        assert not (cgroup(client, unit) / "memory.max").exists()


def test_task_limit(sandbox: Sandbox, client: Client, unit: str) -> None:
    """The same as for memory."""
    assert client.start(unit, ["/bin/sleep", "1000"], TasksMax=Variant("t", 3)) == "done"
    assert client.get(unit, SERVICE, "TasksMax") == 3
    applied = cgroup(client, unit) / "pids.max"
    if "pids" in sandbox.controllers:
        assert applied.read_text() == "3\n"
    else:
        assert not applied.exists()
