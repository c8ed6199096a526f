# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options that would give a VM, or the daemon, more than its caller has."""

from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.attack import INVALID, UNSUPPORTED, assert_refused
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import Account
from tests.support import resources, wait_for

LAUNCH = "sasaa{sv}a{sv}"
SLEEP = ["/bin/sleep", "1000"]

# What systemd would take, and each would say who runs, where, or under which label.
SMUGGLED: dict[str, Variant] = {
    "SELinuxContext": Variant("s", "system_u:system_r:init_t:s0"),
    "selinuxcontext": Variant("s", "system_u:system_r:init_t:s0"),
    "User": Variant("s", "root"),
    "Group": Variant("s", "root"),
    "SupplementaryGroups": Variant("as", ["root"]),
    "DynamicUser": Variant("b", True),
    "AmbientCapabilities": Variant("t", 2**40 - 1),
    "CapabilityBoundingSet": Variant("t", 2**40 - 1),
    "NoNewPrivileges": Variant("b", False),
    "PAMName": Variant("s", "login"),
    "RootDirectory": Variant("s", "/tmp"),
    "RootImage": Variant("s", "/tmp/x"),
    "BindPaths": Variant("a(ssbt)", [["/etc", "/mnt", False, 0]]),
    "ExecStartPre": Variant("a(sasb)", [["/bin/sh", ["/bin/sh"], False]]),
    "ExecStopPost": Variant("a(sasb)", [["/bin/sh", ["/bin/sh"], False]]),
    "ExecStart": Variant("a(sasb)", [["/bin/sh", ["/bin/sh"], False]]),
    "Environment": Variant("as", ["LD_PRELOAD=/tmp/x.so"]),
    "EnvironmentFiles": Variant("a(sb)", [["/etc/shadow", False]]),
    "PassEnvironment": Variant("as", ["PATH"]),
    "StandardInput": Variant("s", "file:/etc/shadow"),
    "StandardOutput": Variant("s", "append:/etc/passwd"),
    "LoadCredential": Variant("a(ss)", [["x", "/etc/shadow"]]),
    "Slice": Variant("s", "system.slice"),
    "Delegate": Variant("b", True),
    "Type": Variant("s", "forking"),
    "KillMode": Variant("s", "none"),
    "CollectMode": Variant("s", "inactive"),
    "Requires": Variant("as", ["reboot.target"]),
    "OnFailure": Variant("as", ["reboot.target"]),
    "FailureAction": Variant("s", "reboot-force"),
    "SuccessAction": Variant("s", "poweroff"),
    "DevicePolicy": Variant("s", "auto"),
    "DeviceAllow": Variant("a(ss)", [["/dev/mem", "rwm"]]),
    "CPUSchedulingPolicy": Variant("i", 1),
    "Nice": Variant("i", -20),
    "LogNamespace": Variant("s", "x"),
    "": Variant("s", ""),
}


@pytest.fixture
def stranger(arena: Arena, ann: Account) -> Stranger:
    """Ann, who may launch."""
    return arena.stranger(ann)


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_property_of_systemds(arena: Arena, stranger: Stranger, name: str) -> None:
    options = {"properties": Variant("a{sv}", {name: SMUGGLED[name]})}
    refused = stranger.error("Launch", LAUNCH, "vm", SLEEP, [], options)
    assert_refused(refused, INVALID, "may not be set")
    assert arena.root.vms() == {}


@against("only listed properties go to systemd")
def test_a_user_through_properties(arena: Arena, stranger: Stranger, ann: Account) -> None:
    """The same by what comes of it: a unit that systemd would run as somebody else."""
    options = {"properties": Variant("a{sv}", {"User": Variant("s", "root")})}
    uid = ann.uid
    if tries(stranger, "Launch", LAUNCH, "vm", SLEEP, [], options) == "":
        uid = status(stranger.properties("vm")["MainPID"], "Uid")[0]
    arena.verdict(uid == 0, "User= through properties")


@against("what takes a capability is not a caller's to have set")
def test_spared_when_memory_is_short(arena: Arena, stranger: Stranger) -> None:
    """A process needs a capability to say that of itself; systemd would say it for anybody."""
    spared = {"properties": Variant("a{sv}", {"OOMScoreAdjust": Variant("i", -1000)})}
    answer = tries(stranger, "Launch", LAUNCH, "vm", arena.idle, [], spared)
    arena.verdict(answer == "", "OOMScoreAdjust below 0")
    assert answer in {"", *DENIALS}


def status(pid: int, key: str) -> list[int]:
    """Numbers of a line of a process's status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            base = 16 if key.startswith("Cap") else 10
            return [int(one, base) for one in line.split()[1:]]
    raise AssertionError(key)


@against("only polkit lets one run as somebody else")
@pytest.mark.parametrize("user", ["root", "0", "ben"])
def test_another_user(arena: Arena, stranger: Stranger, ben: Account, user: str) -> None:
    name = ben.name if user == "ben" else user
    options = {"user": Variant("s", name)}
    if not arena.without:
        refused = stranger.error("Launch", LAUNCH, "vm", SLEEP, [], options)
        assert refused.name in DENIALS
        assert arena.root.vms() == {}
        return
    stranger.call("Launch", LAUNCH, "vm", SLEEP, [], options)
    uids = status(stranger.properties("vm")["MainPID"], "Uid")
    arena.verdict(set(uids) == {ben.uid if user == "ben" else 0}, f"user {user}")


@pytest.mark.parametrize(
    "user",
    ["", "4294967295", "-1", "65536000000", "nobody\n", "../root", "0x0", "root ", " 0", "\u0660"],
    ids=ascii,
)
def test_odd_users(arena: Arena, stranger: Stranger, ann: Account, user: str) -> None:
    """None is another spelling of root."""
    answer = tries(stranger, "Launch", LAUNCH, "vm", SLEEP, [], {"user": Variant("s", user)})
    if answer:
        assert answer in {INVALID, *DENIALS}
        assert arena.root.vms() == {}
        return
    assert status(stranger.properties("vm")["MainPID"], "Uid") == [ann.uid] * 4
    stranger.release("vm")


def test_who_the_command_runs_as(arena: Arena, stranger: Stranger, ann: Account) -> None:
    stranger.launch("vm", arena.idle)
    pid = stranger.properties("vm")["MainPID"]
    assert status(pid, "Uid") == [ann.uid] * 4
    assert status(pid, "Gid") == [ann.gid] * 4
    assert set(status(pid, "Groups")) <= {ann.gid, *ann.groups}
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status(pid, capabilities) == [0], capabilities
    stranger.release("vm")


VARIABLES = ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "DBUS_SYSTEM_BUS_ADDRESS",
             "NOTIFY_SOCKET", "LISTEN_FDS"]  # fmt: skip


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_environment_is_the_commands_alone(
    arena: Arena, stranger: Stranger, ann: Account, variable: str
) -> None:
    """systemd gives it to the command; neither the daemon nor a child of its ever has it."""
    folder = arena.home(ann)
    before = Path(f"/proc/{arena.pid}/environ").read_bytes()
    value = f"{folder}/attack.so"
    environment = {"environment": Variant("as", [f"{variable}={value}"])}
    disk = arena.disk(ann, folder=folder)
    stranger.call("Launch", LAUNCH, "vm", SLEEP, resources(disk), environment)
    pid = stranger.properties("vm")["MainPID"]
    wait_for("the command", lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    assert f"{variable}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    assert Path(f"/proc/{arena.pid}/environ").read_bytes() == before
    for child in children(arena.pid):
        assert value.encode() not in Path(f"/proc/{child}/environ").read_bytes()
    stranger.release("vm")


def children(pid: int) -> list[int]:
    """The processes of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in found.split()]


BAD_ENVIRONMENT = ["", "=x", "A", "A B=x", "1A=x", "A\n=x", "Ä=x", "A=\x1b[2J", "A=\x07"]


@pytest.mark.parametrize("assignment", BAD_ENVIRONMENT, ids=ascii)
def test_odd_assignments(arena: Arena, stranger: Stranger, assignment: str) -> None:
    options = {"environment": Variant("as", [assignment])}
    refused = stranger.error("Launch", LAUNCH, "vm", SLEEP, [], options)
    assert_refused(refused, INVALID, "environment")


def test_the_runtime_folder_is_the_daemons_to_name(arena: Arena, stranger: Stranger) -> None:
    options = {"environment": Variant("as", ["SVIRT_RUNTIME_DIR=/etc"])}
    refused = stranger.error("Launch", LAUNCH, "vm", SLEEP, [], options)
    assert "environment" in refused.text
    stranger.call("Launch", LAUNCH, "vm", SLEEP, [], {})
    shown = stranger.properties("vm")
    environment = Path(f"/proc/{shown['MainPID']}/environ").read_bytes().split(b"\0")
    named = [one for one in environment if one.startswith(b"SVIRT_RUNTIME_DIR=")]
    assert named == [f"SVIRT_RUNTIME_DIR={shown['RuntimeDirectory']}".encode()]
    stranger.release("vm")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("level", Variant("s", "s0:c0.c1023")),
        ("context", Variant("s", "system_u:system_r:init_t:s0")),
        ("type", Variant("s", "init_t")),
        ("categories", Variant("s", "c1,c2")),
        ("uid", Variant("u", 0)),
        ("owner", Variant("u", 0)),
        ("Owner", Variant("u", 0)),
        ("sender", Variant("s", ":1.0")),
        ("unit", Variant("s", "dbus.service")),
        ("slice", Variant("s", "system.slice")),
    ],
)
def test_options_that_are_not_a_callers_to_set(
    arena: Arena, stranger: Stranger, key: str, value: Any
) -> None:
    for member, signature, body in (
        ("Launch", LAUNCH, ["vm", SLEEP, [], {key: value}]),
        ("Acquire", "saa{sv}a{sv}", ["vm", [], {key: value}]),
        ("Plan", "saa{sv}a{sv}", ["vm", [], {key: value}]),
    ):
        refused = stranger.error(member, signature, *body)
        assert refused.name in {INVALID, UNSUPPORTED, *DENIALS}
    assert arena.root.vms() == {}


@pytest.mark.parametrize("what", ["setuid", "not executable", "closed", "relative", "folder"])
def test_commands(arena: Arena, stranger: Stranger, ann: Account, what: str) -> None:
    """What a caller could not execute is not executed, nor is it told whether it exists."""
    victim = arena.victim(ann)
    command = {
        "setuid": "/usr/bin/su",
        "not executable": str(victim),
        "closed": "/root/nothing-there",
        "relative": "bin/true",
        "folder": "/etc",
    }[what]
    if what == "setuid":
        # A VM gains nothing from it: no capability is in its bounding set.
        stranger.launch("vm", ["/bin/sh", "-c", "su -c id root </dev/null; exec sleep 1000"])
        pid = stranger.properties("vm")["MainPID"]
        assert status(pid, "CapBnd") == [0]
        stranger.release("vm")
        return
    refused = stranger.error("Launch", LAUNCH, "vm", [command], [], {})
    assert_refused(refused, INVALID, "command")
    assert arena.root.vms() == {}
