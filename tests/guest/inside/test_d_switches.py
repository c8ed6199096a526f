# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon restarted, SELinux switched, the policy exchanged: all of it under running VMs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.journal import MessageId
from tests.guest.build import HOLED
from tests.guest.inside.conftest import configuring, main_pid, systemctl
from tests.guest.inside.vms import Qemu, disk, qemu
from tests.support import Client, label, resources, unwrap, wait_for

NOT_ENFORCING = "org.svirt1.Error.NotEnforcing"
_POLICY = Path("/etc/selinux/default/policy")


def test_the_daemon_restarts_under_running_vms(client: Client) -> None:
    paths = [disk("a"), disk("b")]
    before = label(paths[0])
    vms = [Qemu(client, name, path) for name, path in zip("ab", paths, strict=True)]
    # As for an update, and as after a crash.
    systemctl("restart", "svirtd.service")
    pid = main_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for("svirtd is back", lambda: main_pid() not in (0, pid), 60)
    systemctl("start", "svirtd.service")
    again = Client()
    assert again.vms() == {"a": "running", "b": "running"}
    again.close()
    for vm, path in zip(vms, paths, strict=True):
        assert vm.label() == vm.context
        assert label(path) == vm.image_context
        assert vm.reads() == ""
    other = Client()
    for name in "ab":
        other.release(name)
    other.close()
    for vm in vms:
        vm.close()
    assert [label(path) for path in paths] == [before, before]


@pytest.fixture
def permissive() -> Iterator[Callable[[bool], None]]:
    """A function that switches enforcing off and on; it is on afterwards."""

    def switch(off: bool) -> None:
        subprocess.run(["setenforce", "0" if off else "1"], check=True)

    yield switch
    switch(False)


def changes(client: Client) -> list[dict[str, Any]]:
    return [
        dict(unwrap(body[1]))
        for body in client.seen("PropertiesChanged")
        if body[0] == "org.svirt1.Manager"
    ]


def test_enforcing_is_switched_off_and_on(
    client: Client, permissive: Callable[[bool], None], journal: Callable[[str], str]
) -> None:
    kept, path = Qemu(client, "kept", disk("a")), disk("b")
    client.listen()
    assert client.manager()["Enforced"] is True

    permissive(True)
    # The very next request meets it; nobody has to wait for a look.
    for member, signature, arguments in (
        ("Launch", "sasaa{sv}a{sv}", ["vm", qemu(path), resources(path), {}]),
        ("Acquire", "saa{sv}a{sv}", ["vm", resources(path), {}]),
    ):
        error = client.error(member, signature, *arguments)
        assert error.name == NOT_ENFORCING
        assert "SELinux has become permissive" in error.text
    wait_for(
        "the change is signalled",
        lambda: {"SELinuxMode": "permissive", "Enforced": False} in changes(client),
    )
    assert "SELinux is permissive now" in journal(MessageId.ENFORCEMENT.value)
    shown = subprocess.run(["svirtctl", "list"], capture_output=True, text=True, check=True)
    assert "NOT ENFORCED" in shown.stdout + shown.stderr
    assert "NOT ENFORCED" in wait_for(
        "the status line",
        lambda: text if "NOT" in (text := systemctl("show", "-P", "StatusText", "svirtd")) else "",
    )
    # What is there can be given back.
    kept.end()
    assert "virt_image_t:s0" in str(label("/srv/vm/a.img"))

    permissive(False)
    wait_for(
        "the change is signalled",
        lambda: {"SELinuxMode": "enforcing", "Enforced": True} in changes(client),
    )
    client.acquire("vm", path)
    client.release("vm")


def test_the_policy_is_loaded_again(client: Client, journal: Callable[[str], str]) -> None:
    vm = Qemu(client, "vm", disk("a"))
    before = journal(MessageId.ENFORCEMENT.value).count("\n")
    subprocess.run(["load_policy"], check=True)
    wait_for("it is recorded", lambda: journal(MessageId.ENFORCEMENT.value).count("\n") > before)
    assert client.manager()["Enforced"] is True
    assert vm.label() == vm.context
    assert vm.reads() == ""
    vm.end()
    client.acquire("vm", disk("a"))
    client.release("vm")


def test_a_policy_that_isolates_nobody_is_noticed(client: Client) -> None:
    """A module makes the VMs' domain permissive: nothing would be denied to it any more."""
    (policy,) = _POLICY.iterdir()
    whole = policy.read_bytes()
    path = disk("a")
    client.acquire("held", disk("b"))
    # In place, so that its label stays.
    policy.write_bytes(HOLED.read_bytes())
    try:
        subprocess.run(["load_policy"], check=True)
        error = client.error("Acquire", "saa{sv}a{sv}", "vm", resources(path), {})
        assert error.name == NOT_ENFORCING
        assert "svirt_t is a permissive domain in the loaded policy" in error.text
        assert client.manager()["Enforced"] is False
        assert client.manager()["SELinuxMode"] == "enforcing"
        # And the matrix sees it at the VM that is there: it may do what nobody granted.
        ((cell,),) = client.call("Matrix", "a{sv}", {})
        assert unwrap(cell["surplus"]) == ["execute", "relabel"]
    finally:
        policy.write_bytes(whole)
        subprocess.run(["load_policy"], check=True)
    assert client.manager()["Enforced"] is True
    client.acquire("vm", path)
    for name in ("vm", "held"):
        client.release(name)


@pytest.fixture(scope="module")
def misconfigure() -> Iterator[Callable[[str], None]]:
    """A function that gives the service other settings, each in place of those before.

    One for all tests of it: a start with the old settings after each would be seen by nobody.
    """
    with configuring() as write:
        yield write


@pytest.mark.parametrize(
    ("key", "context", "said"),
    [
        # Categories bind it nothing: it may use every image of the host.
        ("process", "system_u:system_r:virtd_t:s0", "does not keep VMs apart: system_u:system_r:"),
        ("process", "system_u:system_r:no_such_t:s0", "the kernel does not accept the context"),
        # Not bound by them, and so none that svirtd sees: its processes would count as ended.
        (
            "process",
            "system_u:system_r:sshd_t:s0",
            "svirtd_t may not look at processes of sshd_t",
        ),
        # Bound by categories, but not by those of its image.
        (
            "process",
            "system_u:system_r:svirt_prot_exec_t:s0",
            "svirt_prot_exec_t:s0:c0,c1 may not open, read, write its own file",
        ),
        ("image", "system_u:object_r:shadow_t:s0", "its own file system_u:object_r:shadow_t"),
    ],
    ids=["unconstrained", "unknown", "unseen", "others", "useless"],
)
def test_a_configuration_that_isolates_nobody(
    misconfigure: Callable[[str], None],
    journal: Callable[[str], str],
    key: str,
    context: str,
    said: str,
) -> None:
    misconfigure(f'[labels]\n{key}-context = "{context}"\n')
    subprocess.run(["systemctl", "restart", "svirtd.service"], capture_output=True, check=False)
    assert systemctl("show", "-P", "ExecMainStatus", "svirtd") == "3"
    # Another try would not do: systemd does not make one.
    assert systemctl("show", "-P", "ActiveState", "svirtd") == "failed"
    assert said in journal(MessageId.STOPPED.value)
