# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arguments that cannot be meant: each is refused by name, and nothing changes."""

import os
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.attack import INVALID, LIMITS, UNSUPPORTED, assert_refused, nothing_changes
from tests.support import Client, Daemon, image, resources

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
TRUE = ["/bin/true"]

BAD_NAMES = [
    "", " ", "a ", " a", "-a", ".a", "_a", "..", "a/b", "../a", "/", "a\nb", "a\tb", "a\x1b[31mb",
    "ä", "a\u202eb", "a" * 61, "a" * 100_000, "a\\b", "a%i", "a$b", "a\u00a0b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:12]))
def test_names(daemon: Daemon, client: Client, tmp_path: Path, name: str) -> None:
    disk = image(tmp_path / "a.img")
    with nothing_changes(client, tmp_path):
        for refused in (
            client.error("Acquire", ACQUIRE, name, resources(disk), {}),
            client.error("Launch", LAUNCH, name, TRUE, resources(disk), {}),
            client.error("Plan", ACQUIRE, name, resources(disk), {}),
        ):
            assert_refused(refused, INVALID, "is not a VM name", "1 to 60")
        for refused in (
            client.error("Release", "sa{sv}", name, {}),
            client.error("Forget", "sa{sv}", name, {}),
            client.error("GetVM", "s", name),
        ):
            assert_refused(refused, "org.svirt1.Error.NoSuchVM", "no VM is named")


LABEL = "org.svirt1.Error.LabelRefused"


def v(signature: str, value: Any) -> Variant:
    return Variant(signature, value)


BAD_OPTIONS: list[tuple[str, dict[str, Variant], str, str]] = [
    ("unknown key", {"color": v("s", "red")}, INVALID, "unknown key 'color'; known keys:"),
    ("long key", {"x" * 100_000: v("s", "")}, INVALID, "unknown key 'xxx"),
    ("odd key", {"a\nb": v("s", "")}, INVALID, "unknown key 'a\\nb'"),
    ("groups", {"groups": v("as", ["g", "no group"])}, INVALID, "not a group name"),
    ("groups twice", {"groups": v("as", ["g", "h", "g"])}, INVALID, "names 'g' twice"),
    ("groups type", {"groups": v("s", "g")}, INVALID, "'groups' has type 's'"),
    ("level type", {"level": v("u", 0)}, INVALID, "'level' has type 'u'"),
    ("level", {"level": v("s", "secret")}, INVALID, "bad level 'secret': expected sN"),
    ("level long", {"level": v("s", "s" * 100_000)}, INVALID, "bad level"),
    ("level of categories", {"level": v("s", "s0:c1")}, INVALID, "names categories, which svirtd"),
    ("level backwards", {"level": v("s", "s3-s1")}, INVALID, "does not dominate"),
    ("level here", {"level": v("s", "s1")}, LABEL, "level s1: this kernel has no SELinux"),
    ("range here", {"level": v("s", "s0-s1")}, LABEL, "level s0-s1: this kernel has no SELinux"),
    ("context", {"context": v("s", "a:b:c:s0")}, INVALID, "unknown key 'context'"),
    ("uuid type", {"uuid": v("u", 1)}, INVALID, "'uuid' has type 'u', expected 's'"),
    ("uuid form", {"uuid": v("s", "1234")}, INVALID, "is not a UUID"),
    ("uuid braces", {"uuid": v("s", "{" + "0" * 36 + "}")}, INVALID, "is not a UUID"),
    ("uuid long", {"uuid": v("s", "0" * 100_000)}, INVALID, "is not a UUID"),
    ("uuid newline", {"uuid": v("s", "12345678-1234-1234-1234-123456789abc\n")}, INVALID, "UUID"),
    ("goal type", {"goal": v("b", True)}, INVALID, "'goal' has type 'b'"),
    ("goal", {"goal": v("s", "secret")}, INVALID, "goal 'secret' is not known; known goals"),
    ("goal empty", {"goal": v("s", "")}, INVALID, "goal '' is not known"),
    ("goal long", {"goal": v("s", "g" * 100_000)}, INVALID, "is not known"),
    ("goal cased", {"goal": v("s", "Isolated")}, INVALID, "is not known"),
    ("lifetime type", {"lifetime": v("i", 1)}, INVALID, "'lifetime' has type 'i'"),
    ("lifetime", {"lifetime": v("s", "forever")}, INVALID, "expected 'release' or 'caller'"),
    ("lifetime odd", {"lifetime": v("s", "a\n" * 9000)}, INVALID, "expected 'release'"),
    ("persistent type", {"persistent": v("s", "yes")}, INVALID, "expected 'b'"),
    ("variant in it", {"goal": v("v", v("s", "isolated"))}, INVALID, "has type 'v'"),
    ("struct", {"persistent": v("(b)", [True])}, INVALID, "has type '(b)'"),
]


@pytest.mark.parametrize(("options", "name", "text"), [c[1:] for c in BAD_OPTIONS],
                         ids=[c[0] for c in BAD_OPTIONS])  # fmt: skip
def test_options(
    daemon: Daemon, client: Client, tmp_path: Path, options: Any, name: str, text: str
) -> None:
    disk = image(tmp_path / "a.img")
    with nothing_changes(client, tmp_path):
        for member, signature, body in (
            ("Acquire", ACQUIRE, ["vm", resources(disk), options]),
            ("Launch", LAUNCH, ["vm", TRUE, resources(disk), options]),
            ("Plan", ACQUIRE, ["vm", resources(disk), options]),
        ):
            assert_refused(client.error(member, signature, *body), name, text)


@pytest.mark.parametrize("key", ["user", "environment", "working-directory", "properties"])
def test_options_of_launch_are_no_options_of_acquire(
    daemon: Daemon, client: Client, tmp_path: Path, key: str
) -> None:
    with nothing_changes(client, tmp_path):
        for member in ("Acquire", "Plan"):
            refused = client.error(member, ACQUIRE, "vm", [], {key: v("s", "")})
            assert_refused(refused, INVALID, f"unknown key {key!r}")


def test_methods_on_a_vm_take_its_id(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    client.acquire("vm", image(tmp_path / "a.img"))
    force = {"force": v("b", True)}
    on_vm = {"path": "/org/svirt1/vm/vm", "interface": "org.svirt1.VM"}
    with nothing_changes(client, tmp_path):
        for refused in (
            client.error("Release", "sa{sv}", "vm", force),
            client.error("Forget", "sa{sv}", "vm", force),
            client.error("Release", "a{sv}", force, **on_vm),
            client.error("OpenChannel", "sa{sv}", "qmp", force, **on_vm),
        ):
            assert_refused(refused, INVALID, "unknown key 'force'; known keys: id")
        # A name is used again: the Id of an earlier VM does not reach the later one.
        for refused in (
            client.error("Release", "sa{sv}", "vm", {"id": v("s", "0" * 16)}),
            client.error("Forget", "sa{sv}", "vm", {"id": v("s", "0" * 16)}),
        ):
            assert_refused(refused, "org.svirt1.Error.NoSuchVM", "not the one that is meant")
        other = client.error("OpenChannel", "sa{sv}", "qmp", {"id": v("s", "0" * 16)}, **on_vm)
        assert_refused(other, "org.freedesktop.DBus.Error.UnknownObject", "not the one that is")
    client.call("Release", "sa{sv}", "vm", {"id": v("s", client.properties("vm")["Id"])})


def bad_resource(number: int, **keys: Variant) -> dict[str, Variant]:
    return {key.replace("_", "-"): value for key, value in keys.items()}


PATH = "/nowhere/disk.img"
BAD_RESOURCES: list[tuple[str, dict[str, Variant], str, str]] = [
    ("empty", {}, INVALID, "resource 1: expected exactly one of 'path' and 'fd'"),
    ("both", {"path": v("s", PATH), "fd": v("h", 0)}, INVALID, "exactly one of"),
    ("unknown key", {"path": v("s", PATH), "colour": v("s", "")}, INVALID, "unknown key 'colour'"),
    ("context", {"path": v("s", PATH), "context": v("s", "a:b:c:s0")}, INVALID, "'context'"),
    ("path type", {"path": v("ay", PATH.encode())}, INVALID, "'path' has type 'ay'"),
    ("path as object", {"path": v("o", "/a")}, INVALID, "'path' has type 'o'"),
    ("path empty", {"path": v("s", "")}, INVALID, "is not absolute"),
    ("path relative", {"path": v("s", "disk.img")}, INVALID, "is not absolute"),
    ("path home", {"path": v("s", "~/disk.img")}, INVALID, "is not absolute"),
    ("path url", {"path": v("s", "file:///disk.img")}, INVALID, "is not absolute"),
    ("path newline", {"path": v("s", "/a\nb")}, INVALID, "has control characters"),
    ("path escape", {"path": v("s", "/a\x1b]0;x\x07")}, INVALID, "has control characters"),
    ("path bidi", {"path": v("s", "/a\u202egmi.b")}, INVALID, "has control characters"),
    ("path dots", {"path": v("s", "/var/../etc/shadow")}, INVALID, "has '..' in it"),
    ("path dots end", {"path": v("s", "/var/..")}, INVALID, "has '..' in it"),
    ("path long", {"path": v("s", "/" + "a/" * 2500)}, INVALID, "longer than 4095 bytes"),
    ("path long, wide", {"path": v("s", "/" + "é" * 2500)}, INVALID, "longer than 4095 bytes"),
    ("fd type", {"fd": v("u", 0)}, INVALID, "'fd' has type 'u'"),
    ("fd out of range", {"fd": v("h", 0)}, INVALID, "'fd' names no descriptor"),
    ("fd far out", {"fd": v("h", 4294967295)}, INVALID, "'fd' names no descriptor"),
    ("access type", {"path": v("s", PATH), "access": v("u", 1)}, INVALID, "'access' has type"),
    ("access", {"path": v("s", PATH), "access": v("s", "rw")}, INVALID, "expected 'exclusive'"),
    ("access empty", {"path": v("s", PATH), "access": v("s", "")}, INVALID, "access ''"),
    ("access long", {"path": v("s", PATH), "access": v("s", "x" * 99999)}, INVALID, "access 'x"),
    ("group access", {"path": v("s", PATH), "access": v("s", "group")}, INVALID, "needs 'group'"),
    ("host-shared", {"path": v("s", PATH), "access": v("s", "host-shared")}, UNSUPPORTED, "host-"),
    ("group key", {"path": v("s", PATH), "group": v("s", "g")}, INVALID, "goes with access"),
    ("level long", {"path": v("s", PATH), "level": v("s", "s" * 9999)}, INVALID, "bad level 'sss"),
    ("level of more", {"path": v("s", PATH), "level": v("s", "s0:c1")}, INVALID, "names cat"),
    ("level range", {"path": v("s", PATH), "level": v("s", "s0-s1")}, INVALID, "only a VM has one"),
    ("level here", {"path": v("s", PATH), "level": v("s", "s1")}, LABEL, "resource 1: level s1"),
    ("backing", {"path": v("s", PATH), "backing": v("s", "public")}, INVALID, "format 'qcow2'"),
    ("backing of none", {"path": v("s", PATH), "backing": v("s", "x")}, INVALID, "backing 'x'"),
    (
        "backing of no group",
        {"path": v("s", PATH), "format": v("s", "qcow2"), "backing": v("s", "group")},
        INVALID,
        "needs 'group'",
    ),
    ("format", {"path": v("s", PATH), "format": v("s", "vmdk")}, INVALID, "'raw' or 'qcow2'"),
    ("format long", {"path": v("s", PATH), "format": v("s", "q" * 9999)}, INVALID, "format"),
    ("format type", {"path": v("s", PATH), "format": v("b", True)}, INVALID, "'format' has type"),
    ("recursive format", {"path": v("s", PATH), "recursive": v("b", True),
                          "format": v("s", "qcow2")}, INVALID, "'recursive' is for directories"),
    ("recursive type", {"path": v("s", PATH), "recursive": v("s", "")}, INVALID, "'recursive'"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "name", "text"), [c[1:] for c in BAD_RESOURCES],
                         ids=[c[0] for c in BAD_RESOURCES])  # fmt: skip
def test_resources(
    daemon: Daemon, client: Client, tmp_path: Path, bad: Any, name: str, text: str
) -> None:
    disk = image(tmp_path / "a.img")
    with nothing_changes(client, tmp_path):
        for member, signature, body in (
            ("Acquire", ACQUIRE, ["vm", [bad], {}]),
            ("Launch", LAUNCH, ["vm", TRUE, [bad], {}]),
            ("Plan", ACQUIRE, ["vm", [bad], {}]),
        ):
            assert_refused(client.error(member, signature, *body), name, text)
        # The fault is found wherever it stands, and said where.
        refused = client.error("Acquire", ACQUIRE, "vm", [*resources(disk), bad], {})
        assert_refused(refused, name, text.replace("resource 1", "resource 2"), "resource 2")


def test_both_path_and_fd_with_a_real_fd(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    with open(disk, "r+b") as file, nothing_changes(client, tmp_path):
        both = [{"fd": v("h", 0), "path": v("s", str(disk))}]
        refused = client.error("Acquire", ACQUIRE, "vm", both, {}, fds=[file.fileno()])
        assert_refused(refused, INVALID, "exactly one of")
        beyond = [{"fd": v("h", 1)}]
        refused = client.error("Acquire", ACQUIRE, "vm", beyond, {}, fds=[file.fileno()])
        assert_refused(refused, INVALID, "names no descriptor")
        twice = [{"fd": v("h", 0)}, {"fd": v("h", 0)}]
        refused = client.error("Acquire", ACQUIRE, "vm", twice, {}, fds=[file.fileno()])
        assert_refused(refused, INVALID, "same file")


def test_descriptors_nobody_asked_for_are_closed(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    with open(disk, "rb") as file, nothing_changes(client, tmp_path):
        for _ in range(20):
            client.call("ListVMs", fds=[file.fileno()] * 10)
            client.error("Acquire", "s", "vm", fds=[file.fileno()] * 10)
            client.error("Nonsense", "", fds=[file.fileno()] * 10)
        assert str(disk) not in daemon.fds()


def test_too_many_resources(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    many = resources(*(f"/nowhere/{n}" for n in range(257)))
    with nothing_changes(client, tmp_path):
        for refused in (
            client.error("Acquire", ACQUIRE, "vm", many, {}),
            client.error("Launch", LAUNCH, "vm", TRUE, many, {}),
            client.error("Plan", ACQUIRE, "vm", many, {}),
        ):
            assert_refused(refused, LIMITS, "257 resources", "[limits] resources allows 256")


BAD_COMMANDS: list[tuple[str, list[str], str, str]] = [
    ("none", [], INVALID, "command: empty"),
    ("empty", [""], INVALID, "is not an absolute path"),
    ("relative", ["true"], INVALID, "'true' is not an absolute path"),
    ("dots", ["/bin/../bin/true"], INVALID, "'..'"),
    ("newline", ["/bin/true\n"], INVALID, "control characters"),
    ("missing", ["/nowhere/qemu"], INVALID, "no such file"),
    ("a folder", ["/tmp"], INVALID, "it is not an executable file"),
    ("a folder's file", ["/etc/passwd/x"], INVALID, "Not a directory"),
    ("not executable", ["/etc/passwd"], INVALID, "it is not an executable file"),
    ("a device", ["/dev/null"], INVALID, "it is not an executable file"),
    ("path too long", ["/" + "a" * 5000], INVALID, "longer than 4095 bytes"),
    ("too long", ["/bin/true", "x" * 131_072], LIMITS, "[limits] command-bytes = 131072"),
    ("too many", ["/bin/true", *[""] * 131_072], LIMITS, "[limits] command-bytes = 131072"),
]


@pytest.mark.parametrize(("argv", "name", "text"), [c[1:] for c in BAD_COMMANDS],
                         ids=[c[0] for c in BAD_COMMANDS])  # fmt: skip
def test_commands(
    daemon: Daemon, client: Client, tmp_path: Path, argv: list[str], name: str, text: str
) -> None:
    disk = image(tmp_path / "a.img")
    with nothing_changes(client, tmp_path):
        refused = client.error("Launch", LAUNCH, "vm", argv, resources(disk), {})
        assert_refused(refused, name, text)


def props(**values: Variant) -> dict[str, Variant]:
    return {"properties": v("a{sv}", values)}


BAD_LAUNCHES: list[tuple[str, dict[str, Variant], str, str]] = [
    ("environment type", {"environment": v("s", "A=1")}, INVALID, "expected 'as'"),
    ("no equals", {"environment": v("as", ["A"])}, INVALID, "'A' is not NAME=value"),
    ("no name", {"environment": v("as", ["=x"])}, INVALID, "is not NAME=value"),
    ("empty", {"environment": v("as", [""])}, INVALID, "is not NAME=value"),
    ("digit first", {"environment": v("as", ["1A=x"])}, INVALID, "is not NAME=value"),
    ("odd name", {"environment": v("as", ["A-B=x"])}, INVALID, "is not NAME=value"),
    ("wide name", {"environment": v("as", ["É=x"])}, INVALID, "is not NAME=value"),
    ("escape", {"environment": v("as", ["A=\x1b"])}, INVALID, "'A' has control characters"),
    ("long name", {"environment": v("as", ["A" * 9999 + "=\x1b"])}, INVALID, "control"),
    ("long value", {"environment": v("as", ["A=" + "x" * 131_072])}, LIMITS, "environment: more"),
    ("folder type", {"working-directory": v("ay", b"/")}, INVALID, "expected 's'"),
    ("folder relative", {"working-directory": v("s", "tmp")}, INVALID, "is not absolute"),
    ("folder dash", {"working-directory": v("s", "-/tmp")}, INVALID, "is not absolute"),
    ("folder dots", {"working-directory": v("s", "/tmp/..")}, INVALID, "'..'"),
    ("folder home", {"working-directory": v("s", "~")}, INVALID, "is not absolute"),
    ("folder long", {"working-directory": v("s", "/" * 5000)}, INVALID, "longer than"),
    ("user type", {"user": v("u", 0)}, INVALID, "'user' has type 'u'"),
    ("user", {"user": v("s", "no-such-user")}, INVALID, "is not known on this host"),
    ("user number", {"user": v("s", "4294967294")}, INVALID, "is not known on this host"),
    ("user minus", {"user": v("s", "-1")}, INVALID, "is not known on this host"),
    ("user huge", {"user": v("s", "9" * 60)}, INVALID, "is not known on this host"),
    ("user long", {"user": v("s", "a" * 65)}, INVALID, "at most 64 printable"),
    ("user newline", {"user": v("s", "root\n")}, INVALID, "at most 64 printable"),
    ("properties type", {"properties": v("a(sv)", [])}, INVALID, "expected 'a{sv}'"),
    *(
        (name, props(**{name: v("s", "x")}), INVALID, f"properties: '{name}' may not be set")
        for name in ("SELinuxContext", "User", "ExecStartPre", "ExecStart", "Slice", "Type", "",
                     "memorymax", "Environment", "DeviceAllow", "BindPaths", "AddRef")
    ),
    ("odd property", props(**{"a\n" * 9000: v("s", "x")}), INVALID, "may not be set"),
    ("property type", props(MemoryMax=v("s", "1G")), INVALID, "has type 's', expected 't'"),
    ("MemoryMax 0", props(MemoryMax=v("t", 0)), INVALID, "MemoryMax is 0; expected 1 to"),
    ("CPUWeight 0", props(CPUWeight=v("t", 0)), INVALID, "expected 1 to 10000"),
    ("CPUWeight high", props(CPUWeight=v("t", 10_001)), INVALID, "expected 1 to 10000"),
    ("OOM low", props(OOMScoreAdjust=v("i", -1001)), INVALID, "expected -1000 to 1000"),
    ("OOM type", props(OOMScoreAdjust=v("t", 0)), INVALID, "expected 'i'"),
    ("CPUs empty", props(AllowedCPUs=v("ay", b"")), INVALID, "has 0 bytes; expected a bit mask"),
    ("CPUs long", props(AllowedCPUs=v("ay", b"\1" * 1025)), INVALID, "has 1025 bytes"),
    ("Description", props(Description=v("s", "a\nb")), INVALID, "printable characters"),
    ("Description long", props(Description=v("s", "a" * 257)), INVALID, "at most 256"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "name", "text"), [c[1:] for c in BAD_LAUNCHES],
                         ids=[c[0][:20] for c in BAD_LAUNCHES])  # fmt: skip
def test_launch_options(
    daemon: Daemon, client: Client, tmp_path: Path, options: Any, name: str, text: str
) -> None:
    disk = image(tmp_path / "a.img")
    with nothing_changes(client, tmp_path):
        refused = client.error("Launch", LAUNCH, "vm", TRUE, resources(disk), options)
        assert_refused(refused, name, text)


def test_a_working_directory_that_is_missing(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    nowhere = {"working-directory": v("s", "/nowhere")}
    with nothing_changes(client, tmp_path):
        refused = client.error("Launch", LAUNCH, "vm", TRUE, resources(disk), nowhere)
        assert_refused(refused, "org.svirt1.Error.UnitFailed", "exit status 200")


def test_a_script_without_its_interpreter(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    script = tmp_path / "vm.sh"
    script.write_text("#!/nowhere/sh\n")
    os.chmod(script, 0o755)
    with nothing_changes(client, tmp_path):
        refused = client.error("Launch", LAUNCH, "vm", [str(script)], resources(disk), {})
        assert_refused(refused, "org.svirt1.Error.UnitFailed", "203/EXEC")
