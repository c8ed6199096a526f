# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two VMs, and the kernel between them. Nothing in here asks svirtd to prevent anything."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import Captive, Qemu, categories, disk, node, qemu
from tests.support import Client, label, set_label, wait_for

DENIED: Final = {"EACCES", "EPERM"}


def test_each_opens_its_own_disk_and_is_denied_the_others(client: Client, audit: Audit) -> None:
    disks = [disk("a"), disk("b")]
    vms = [Qemu(client, name, one, machine="pc") for name, one in zip("ab", disks, strict=True)]
    assert vms[0].context != vms[1].context
    for vm, own, others in zip(vms, disks, reversed(disks), strict=True):
        assert vm.label() == vm.context
        assert label(own) == vm.image_context
        assert vm.reads() == vm.writes() == ""
        with audit.denied("read open", vm.context, str(label(others))):
            answer = vm.command("blockdev-add", **node(others, "stolen"))
        assert answer["error"]["desc"] == f"Could not open '{others}': Permission denied"
    for vm in vms:
        vm.end()


def test_the_administrators_slip(client: Client, audit: Audit) -> None:
    """A's context on B's disk, past the daemon: the kernel stops it, not svirtd."""
    disks = [disk("a"), disk("b")]
    for name, one in zip("ab", disks, strict=True):
        client.acquire(name, one)
    context = client.properties("a")["ProcessContext"]

    def run(unit: str, path: Path) -> None:
        argv = [arg.replace("{runtime}/qmp", "/run/svirtd/none") for arg in qemu(path)]
        argv = [arg for arg in argv if "qmp" not in arg and "/none" not in arg]
        subprocess.run(
            ["systemd-run", "-q", f"--unit={unit}", f"-pSELinuxContext={context}", *argv],
            check=True,
        )

    with audit.denied("read open", context, str(label(disks[1]))):
        run("slip", disks[1])
        wait_for("it failed", lambda: systemctl("show", "-P", "Result", "slip") == "exit-code")
    said = subprocess.run(
        ["journalctl", "-b", "-u", "slip", "-o", "cat"], capture_output=True, text=True, check=True
    )
    assert f"Could not open '{disks[1]}': Permission denied" in said.stdout
    systemctl("reset-failed", "slip")
    # The same with its own disk runs: it was the label, and nothing else.
    run("right", disks[0])
    assert systemctl("is-active", "right") == "active"
    systemctl("stop", "right")
    for name in "ab":
        client.release(name)


@pytest.fixture
def pair(client: Client) -> Iterator[tuple[Captive, Qemu]]:
    """One VM that was broken out of, and one that was not; both root by uid."""
    taken, victim = Captive(client, "taken", disk("a")), Qemu(client, "victim", disk("b"))
    assert taken.do("os.getuid()") == 0 == int(victim.status("Uid").split()[0])
    yield taken, victim
    taken.end()
    victim.end()


def test_a_vm_that_was_broken_out_of(
    pair: tuple[Captive, Qemu], client: Client, audit: Audit
) -> None:
    taken, victim = pair
    # Yama, where it is on, would refuse before SELinux is asked.
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists():
        yama.write_text("0", "utf-8")
    own, others = "/srv/vm/a.img", "/srv/vm/b.img"
    assert taken.do(f"read({own!r})") == 512
    assert taken.do(f"write({own!r})") == 5

    me, it = taken.context, victim.context
    for attack, permissions, target, kind in (
        (f"read({others!r})", "read open", victim.image_context, "file"),
        (f"write({others!r})", "write open", victim.image_context, "file"),
        (f"os.kill({victim.pid}, signal.SIGKILL)", "sigkill", it, "process"),
        (f"os.kill({victim.pid}, signal.SIGSTOP)", "sigstop", it, "process"),
        (f"os.kill({victim.pid}, signal.SIGTERM)", "signal", it, "process"),
        (f"attach({victim.pid})", "ptrace", it, "process"),
        (f"read('/proc/{victim.pid}/mem')", "search", it, "dir"),
        (f"read('/proc/{victim.pid}/environ')", "search", it, "dir"),
        (f"connect('{victim.runtime}/qmp')", "search", victim.image_context, "dir"),
        ("read('/etc/shadow')", "read open", "system_u:object_r:shadow_t:s0", "file"),
        ("write('/etc/passwd')", "write", "system_u:object_r:*", "file"),
        ("read('/var/lib/svirtd/book.sqlite')", "read open", "*:svirtd_var_lib_t:s0", "file"),
        ("read('/etc/svirtd/svirtd.toml')", "read open", "*:svirtd_conf_t:s0", "file"),
        (f"relabel({own!r}, {victim.image_context!r})", "relabelfrom", taken.image_context, "file"),
        (f"become({it!r})", "setcurrent dyntransition", "system_u:system_r:svirt_t:*", "process"),
    ):
        with audit.denied(permissions, me, target, kind):
            assert taken.fails(attack) in DENIED, attack
    assert label(own) == taken.image_context
    assert taken.label() == me
    assert victim.label() == it
    assert victim.reads() == ""


def test_root_in_name_only(pair: tuple[Captive, Qemu]) -> None:
    for vm in pair:
        for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
            assert int(vm.status(key), 16) == 0
        assert vm.status("NoNewPrivs") == "1"


@pytest.mark.parametrize("access", ["readonly", "public"])
def test_what_is_only_read_cannot_be_written(client: Client, audit: Audit, access: str) -> None:
    shared = disk("shared")
    vm = Captive(client, "reader", shared, access=access)
    other = Captive(client, "other")
    assert vm.do(f"read('{shared}')") == 512
    # Not logged: the reference policy expects VMs to try.
    assert vm.fails(f"write('{shared}')") in DENIED
    if access == "public":
        assert other.do(f"read('{shared}')") == 512
    else:
        with audit.denied("read open", other.context, str(label(shared))):
            assert other.fails(f"read('{shared}')") in DENIED
    vm.end()
    other.end()


def test_a_disk_that_is_taken_away_is_gone(client: Client, audit: Audit) -> None:
    """Its label moves on while QEMU has it open: the next read and write are denied."""
    path = disk("a")
    vm = Qemu(client, "a", path)
    ours = str(label(path))
    assert vm.reads() == vm.writes() == ""
    other = ours.replace(",".join(f"c{n}" for n in sorted(categories(ours))), "c766,c767")
    assert other != ours
    set_label(path, other)
    for verb, does in (("read", vm.reads), ("write", vm.writes)):
        with audit.denied(verb, vm.context, other):
            assert does() == "Permission denied"
    # It kept the descriptor all the while: with the label back, it works again.
    set_label(path, ours)
    assert vm.reads() == vm.writes() == ""
    vm.end()
