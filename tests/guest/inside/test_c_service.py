# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed service on an enforcing kernel: labels given and taken back, users, mistakes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, BusLost, Variant
from tests.guest.inside import devices
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import ORIGINAL, Captive, Qemu, disk, qemu
from tests.support import (
    XATTR,
    Client,
    label,
    resources,
    set_label,
    svirt_units,
    unwrap,
    wait_for,
)

DAEMON = "system_u:system_r:svirtd_t:s0-s0:c0.c1023"


@pytest.mark.parametrize(
    "original",
    [
        "system_u:object_r:virt_image_t:s0",
        "unconfined_u:object_r:virt_content_t:s0",
        "staff_u:object_r:virt_var_lib_t:s0",
        "unconfined_u:object_r:user_home_t:s0",
        "unconfined_u:object_r:user_tmp_t:s0",
        "system_u:object_r:unlabeled_t:s0",
    ],
)
def test_the_original_label_comes_back_byte_for_byte(client: Client, original: str) -> None:
    path = disk("a", original)
    before = os.getxattr(path, XATTR)
    assert before == original.encode() + b"\0"
    for access, kind in (("exclusive", "svirt_image_t"), ("readonly", "virt_content_t")):
        client.acquire("vm", path, access=access)
        assert f":{kind}:" in str(label(path))
        client.release("vm")
        assert os.getxattr(path, XATTR) == before


@pytest.mark.parametrize("level", ["s1", "s15", "s0-s1"])
def test_a_level_takes_a_policy_with_levels(client: Client, level: str) -> None:
    path = disk("a")
    before = label(path)
    options = {"level": Variant("s", level)}
    for member in ("Acquire", "Plan"):
        error = client.error(member, "saa{sv}a{sv}", "vm", resources(path), options)
        assert error.name == "org.svirt1.Error.LabelRefused"
        assert "has categories and no levels (MCS)" in error.text
    assert label(path) == before
    assert client.vms() == {}
    # The lowest is everybody's.
    client.call("Acquire", "saa{sv}a{sv}", "vm", resources(path), {"level": Variant("s", "s0")})
    assert str(label(path)).endswith(":" + client.properties("vm")["Categories"])
    client.release("vm")


@pytest.mark.parametrize("kind", ["etc_t", "bin_t", "shadow_t", "svirt_image_t"])
def test_other_types_are_refused_by_the_daemon(client: Client, audit: Audit, kind: str) -> None:
    context = f"system_u:object_r:{kind}:s0"
    path = disk("odd", context)
    if kind == "svirt_image_t":
        error = client.error("Acquire", "saa{sv}a{sv}", "vm", resources(path), {})
    else:
        # It may not even be opened.
        with audit.denied("read write open", DAEMON, context):
            error = client.error("Acquire", "saa{sv}a{sv}", "vm", resources(path), {})
    assert error.name == "org.svirt1.Error.ResourceRefused"
    assert kind in error.text
    assert label(path) == context


def test_what_the_daemon_forgets_is_refused_by_the_kernel(
    client: Client, audit: Audit, configure: Callable[[str], None]
) -> None:
    """An administrator lists a type of the host: the module does not, it stays out of reach."""
    configure('[labels]\nrelabel-from = ["virt_image_t", "etc_t"]\n')
    systemctl("restart", "svirtd.service")
    path = disk("odd", "system_u:object_r:etc_t:s0")
    with audit.denied("relabelfrom", DAEMON, "system_u:object_r:etc_t:s0"):
        wanted = resources(path, access="readonly")
        error = client.error("Acquire", "saa{sv}a{sv}", "vm", wanted, {})
    assert error.name == "org.svirt1.Error.LabelRefused"
    assert label(path) == "system_u:object_r:etc_t:s0"


def test_a_label_that_an_administrator_has_put_out_of_reach(client: Client) -> None:
    """Changed meanwhile to what svirtd may not even open: left alone and told, nothing stuck."""
    path, theirs = disk("a"), "system_u:object_r:bin_t:s0"
    client.acquire("vm", path)
    client.listen()
    set_label(path, theirs)
    wait_for("the watch tells of it", lambda: client.seen("DriftFound"))
    client.release("vm")
    # And the release once more: that it is left as it is, for good.
    findings = [dict(unwrap(body[0])) for body in client.seen("DriftFound")]
    assert len(findings) == 2
    for finding in findings:
        assert (finding["kind"], finding["found"], finding["path"]) == (
            "changed",
            theirs,
            str(path),
        )
        assert not finding["repaired"]
    assert label(path) == theirs
    assert client.manager()["PairsQuarantined"] == 0


def test_as_an_ordinary_user(client: Client) -> None:
    path = disk("a")
    os.chown(path, 65534, 65534)
    path.chmod(0o600)
    vm = Qemu(client, "a", path, user=Variant("s", "nobody"))
    assert vm.status("Uid").split() == ["65534"] * 4
    assert vm.label() == vm.context
    assert os.stat(vm.runtime).st_uid == 65534
    assert vm.reads() == vm.writes() == ""
    vm.end()
    assert os.stat(path).st_uid == 65534


def test_a_block_device(client: Client, audit: Audit) -> None:
    """A volume's node is labelled, and kept from other VMs, as a file is."""
    with devices.volume(disk("backing")) as volume:
        set_label(volume, ORIGINAL)
        vm, other = Captive(client, "vm", volume), Captive(client, "other")
        assert label(volume) == vm.image_context
        assert vm.do(f"read('{volume}')") == 512
        assert vm.do(f"write('{volume}')") == 5
        with audit.denied("read open", other.context, vm.image_context, "blk_file"):
            assert other.fails(f"read('{volume}')") == "EACCES"
        vm.end()
        other.end()
        assert label(volume) == ORIGINAL


def test_every_vm_answers_through_its_channel(client: Client) -> None:
    vms = [
        Qemu(client, "root", disk("a")),
        Qemu(client, "user", user=Variant("s", "nobody")),
    ]
    for vm in vms:
        assert vm.command("query-status")["return"]["running"] is True
    for vm in vms:
        vm.end()


def test_a_process_under_another_label_is_killed(client: Client, audit: Audit) -> None:
    """An administrator's drop-in gives the unit another context: the launch is undone."""
    wrong = "system_u:system_r:svirt_t:s0:c766,c767"
    drop_in = Path("/run/systemd/system/svirt-wrong.service.d/context.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(f"[Service]\nSELinuxContext={wrong}\n", "utf-8")
    systemctl("daemon-reload")
    path = disk("a")
    before = label(path)
    try:
        # Without a monitor, whose folder it could not use: it would run on.
        command = [argument for argument in qemu() if "qmp" not in argument]
        error = client.error("Launch", "sasaa{sv}a{sv}", "wrong", command, resources(path), {})
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        systemctl("daemon-reload")
    assert error.name == "org.svirt1.Error.LabelRefused"
    assert f"svirt-wrong.service runs as {wrong} instead of system_u:" in error.text
    assert label(path) == before
    wait_for("the unit is gone", lambda: not svirt_units())
    found = subprocess.run(["ps", "-eo", "label"], capture_output=True, text=True, check=True)
    assert "svirt_t" not in found.stdout


def test_a_command_that_is_no_vm_is_not_started(client: Client) -> None:
    """The policy lets a VM's domain be entered through QEMU alone, which is asked before."""
    path = disk("a")
    before = label(path)
    error = client.error(
        "Launch", "sasaa{sv}a{sv}", "vm", ["/usr/bin/sleep", "1000"], resources(path), {}
    )
    assert error.name == "org.svirt1.Error.LabelRefused"
    assert "has type bin_t" in error.text
    assert "such as qemu_exec_t" in error.text
    assert label(path) == before


def test_the_vm_is_shown_by_machined(client: Client) -> None:
    vm = Qemu(client, "shown", disk("a"))
    listed = subprocess.run(
        ["machinectl", "list", "--no-legend"], capture_output=True, text=True, check=True
    )
    assert "shown" in listed.stdout
    vm.end()


def test_descriptors_of_images_over_the_bus(client: Client, audit: Audit) -> None:
    """The bus daemon may not carry them unless the administrator's switch is on."""
    path = disk("a")
    bus = "system_u:system_r:system_dbusd_t:*"
    # Of the file, or, where the policy is as strict as that, of the descriptor.
    kinds = "read write use", bus, "*", "file fd"
    passing = [{"fd": Variant("h", 0), "access": Variant("s", "exclusive")}]
    fd = os.open(path, os.O_RDWR)
    other = Client()
    try:
        with audit.denied(*kinds), pytest.raises((BusError, BusLost)):
            other.call("Acquire", "saa{sv}a{sv}", "vm", passing, {}, fds=[fd])
        subprocess.run(["setsebool", "svirtd_bus_image_fds", "on"], check=True)
        client.call("Acquire", "saa{sv}a{sv}", "vm", passing, {}, fds=[fd])
        assert ":svirt_image_t:" in str(label(path))
        client.release("vm")
    finally:
        subprocess.run(["setsebool", "svirtd_bus_image_fds", "off"], check=True)
        os.close(fd)
        other.close()
