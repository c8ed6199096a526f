# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus policy: against the XML, and as a real dbus-daemon applies it to root and to others."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from svirtd.host.bus import Connection, error_reply
from tests.contract import sources

_POLICY: Final = sources.DBUS / "org.svirt1.conf"
_NOBODY: Final = 65534
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
# Standard interfaces: a member, or None for the whole interface.
_READING: Final = {
    ("org.freedesktop.DBus.Introspectable", None),
    ("org.freedesktop.DBus.Peer", None),
    (_PROPERTIES, "Get"),
    (_PROPERTIES, "GetAll"),
    ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
}
_BUS: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""
# What the owner of the name answers to whatever reaches it.
_REACHED: Final = "org.svirt1.Error.Failed"

Call = tuple[str, str]


def _rules(context: str) -> list[tuple[str, dict[str, str]]]:
    tree = ElementTree.parse(_POLICY).getroot()
    (policy,) = tree.findall(f"policy[@{context}]")
    return [(rule.tag, dict(rule.attrib)) for rule in policy]


def test_only_root_may_own_the_name() -> None:
    owners = [
        dict(policy.attrib)
        for policy in ElementTree.parse(_POLICY).getroot().iter("policy")
        for rule in policy
        if "own" in rule.attrib or "own_prefix" in rule.attrib
    ]
    assert owners == [{"user": "root"}]
    assert ("allow", {"own": sources.NAME}) in _rules("user='root'")


def test_everything_is_denied_first() -> None:
    assert _rules("context='default'")[0] == ("deny", {"send_destination": sources.NAME})


def test_exactly_the_members_of_the_contract_are_allowed() -> None:
    allowed = [
        (rule["send_interface"], rule.get("send_member"))
        for tag, rule in _rules("context='default'")
        if tag == "allow" and rule.get("send_destination") == sources.NAME
    ]
    assert len(allowed) == len(set(allowed))
    assert set(allowed) == _READING | set(sources.own_members("method"))


def test_activation_is_left_to_systemd() -> None:
    text = (sources.DBUS / "org.svirt1.service").read_text("utf-8")
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    assert settings == {
        "Name": sources.NAME,
        "Exec": "/bin/false",
        "User": "root",
        "SystemdService": "svirtd.service",
    }
    assert (sources.UNITS / settings["SystemdService"]).is_file()


@dataclass(frozen=True, slots=True)
class _Bus:
    address: str


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Bus]:
    """A bus of the test's own, with the project's policy beside a system bus's basic rules."""
    if os.geteuid() != 0:
        pytest.fail("the policy is about root and others: run this as root")
    folder = tmp_path_factory.mktemp("bus")
    config = folder / "bus.conf"
    # Others must be able to reach the socket; pytest's folders are for their owner alone.
    socket = Path(f"/tmp/svirtd-contract-{os.getpid()}.bus")
    config.write_text(_BUS.format(socket=socket, policy=_POLICY), encoding="utf-8")
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    assert daemon.stderr is not None
    address = daemon.stdout.readline().strip()
    if not address:
        pytest.fail(f"dbus-daemon does not take the policy: {daemon.stderr.read()}")
    try:
        yield _Bus(address)
    finally:
        daemon.terminate()
        daemon.communicate()
        socket.unlink(missing_ok=True)


async def _busctl(bus: _Bus, uid: int, *arguments: str) -> str:
    """Run busctl as a user; returns what it says of a refusal, "" if there was none."""
    process = await asyncio.create_subprocess_exec(
        "busctl",
        f"--address={bus.address}",
        "--timeout=5",
        *arguments,
        user=uid,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    return stderr.decode()


async def _call_all(
    bus: _Bus, uid: int, calls: list[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Own the name as root, make each call as `uid`; returns what became of each."""
    owner = await Connection.open(bus.address)
    try:
        owner.handle_methods(
            lambda msg: owner.send(error_reply(msg, _REACHED, "reached the owner"))
        )
        assert await owner.request_name(sources.NAME)
        said = {}
        for interface, member in calls:
            answer = await _busctl(bus, uid, "call", sources.NAME, "/org/svirt1", interface, member)
            said[interface, member] = "reached" if "reached the owner" in answer else answer.strip()
        return said
    finally:
        owner.close()


def test_others_reach_every_member_of_the_contract(bus: _Bus) -> None:
    calls = [(interface, member or "Ping") for interface, member in _READING]
    calls += sources.own_members("method")
    said = asyncio.run(_call_all(bus, _NOBODY, calls))
    assert {call: what for call, what in said.items() if what != "reached"} == {}


def test_others_reach_nothing_else(bus: _Bus) -> None:
    calls = [
        (_PROPERTIES, "Set"),
        (f"{sources.NAME}.Manager", "Unknown"),
        (f"{sources.NAME}.VM", "Launch"),
        (f"{sources.NAME}.Unknown", "Launch"),
    ]
    said = asyncio.run(_call_all(bus, _NOBODY, calls))
    assert set(said) == set(calls)
    assert {call: what for call, what in said.items() if "denied" not in what} == {}


def test_root_reaches_everything(bus: _Bus) -> None:
    calls = [(_PROPERTIES, "Set"), (f"{sources.NAME}.Manager", "Unknown")]
    said = asyncio.run(_call_all(bus, 0, calls))
    assert set(said.values()) == {"reached"}


def test_others_may_not_own_the_name(bus: _Bus) -> None:
    said = asyncio.run(
        _busctl(
            bus,
            _NOBODY,
            "call",
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "RequestName",
            "su",
            sources.NAME,
            "4",
        )
    )
    assert "Access denied" in said
