# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own VMs as VMs of svirtd's: a real libvirtd, virsh, and svirtd's hook between them."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from svirtd.core.domain_edit import released
from svirtd.ctl import libvirt_adopt
from svirtd.ctl.libvirt_calls import LibvirtCalls
from svirtd.ctl.libvirt_door import Libvirt
from svirtd.host.bus import Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import adopting_by_itself, main_pid, systemctl
from tests.guest.inside.vms import ORIGINAL, Captive, categories, disk, process_label
from tests.support import Client, label, set_label, wait_for

T = TypeVar("T")
_START_S: Final = 120.0
IMAGES: Final = Path("/var/lib/libvirt/images")
_DOMAIN: Final = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <memballoon model='none'/>
  </devices>
</domain>"""
_DISK: Final = """<disk type='file' device='disk'><driver name='qemu' type='{format}'/>
      <source file='{path}'/><target dev='vd{letter}' bus='virtio'/>{more}</disk>"""


def virsh(*arguments: str) -> str:
    done = _virsh(*arguments)
    assert done.returncode == 0, f"virsh {arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def fails(*arguments: str) -> str:
    """What virsh says of something that is refused."""
    done = _virsh(*arguments)
    assert done.returncode != 0, f"virsh {arguments} was not refused: {done.stdout}"
    return done.stdout + done.stderr


def _virsh(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["virsh", "--connect", "qemu:///system", "--quiet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)


def svirtctl(*arguments: str, code: int = 0) -> dict[str, Any]:
    command = ["svirtctl", "--json", "libvirt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    return dict(json.loads(done.stdout or done.stderr))


def keep(name: str, command: str, said: str) -> None:
    """Keep what a command says to people, for the README."""
    folder = Path("/srv/kept")
    folder.mkdir(exist_ok=True)
    (folder / f"libvirt-{name}.txt").write_text(f"$ {command}\n{said}")


def pid_of(name: str) -> int:
    return int(_pid_file(name).read_text("utf-8"))


def _pid_file(name: str) -> Path:
    return Path(f"/run/libvirt/qemu/{name}.pid")


def adopt(name: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Adopt a domain; what libvirt's QEMU asks for and does without is no more than without svirtd,
    and is left out of the account."""
    (told,) = svirtctl("adopt", name, *arguments, code=code)["adopted"]
    LABELS.add(told["label"])
    return dict(told)


def here(what: Callable[..., Coroutine[Any, Any, T]], name: str, *more: Any) -> T:
    """Do what svirtctl does, where it is not the program that is asked about: each takes seconds
    to start in an emulated machine."""
    door = Libvirt()

    async def work() -> T:
        async with LibvirtCalls.connected(None, None) as calls:
            return await what(calls, door, name, *more)

    try:
        return asyncio.run(work())
    finally:
        door.close()


LABELS: Final[set[str]] = set()
Define = Callable[..., None]


@pytest.fixture
def define(client: Client, audit: Audit) -> Iterator[Define]:
    """A function that defines a domain with these disks; it is taken away at the end."""
    names: list[str] = []

    def make(
        name: str, *disks: Path, more: str = "", form: str = "raw", adopted: bool = True
    ) -> None:
        texts = [
            _DISK.format(
                path=path,
                letter="abc"[number],
                more=more if number == len(disks) - 1 else "",
                format=form,
            )
            for number, path in enumerate(disks)
        ]
        file = Path(f"/root/{name}.xml")
        file.write_text(_DOMAIN.format(name=name, disks="\n    ".join(texts)), "utf-8")
        names.append(name)
        virsh("define", str(file))
        if adopted:
            told = here(libvirt_adopt.adopt, name, {})
            assert told.problems == ()
            LABELS.add(told.label)

    yield make
    for name in names:
        if _pid_file(name).exists():
            _virsh("destroy", name)
        _virsh("undefine", name, "--nvram")
        if client.vms().get(name) not in (None, "reserved"):
            client.release(name)
        if name in client.vms():
            client.call("Forget", "sa{sv}", name, {})
    for context in LABELS:
        audit.leave_out(context)


def test_adoption_by_itself_is_not_enabled() -> None:
    assert not list(Path("/etc/systemd/system").glob("*.wants/svirtd-libvirt.service"))
    shown = systemctl("show", "--property=ActiveState", "--value", "svirtd-libvirt.service")
    assert shown == "inactive"


def test_a_life_under_the_same_label(client: Client, define: Define) -> None:
    """Adopted, then started and stopped twice: process and disk at its label, and all is back."""
    path = disk("web")
    define("web", path, adopted=False)
    before = virsh("dumpxml", "web", "--inactive", "--security-info")
    told = adopt("web")
    assert (told["vm"], told["problems"], told["runs"]) == ("web", [], False)
    after = virsh("dumpxml", "web", "--inactive", "--security-info")
    assert told["label"] in after
    reserved = client.properties("web")
    assert told["label"] == reserved["ProcessContext"]
    # All else of the definition is as it was; adopted again, nothing changes.
    assert released(after.encode()).decode().split() == before.split()
    assert adopt("web")["changed"] is False
    for _ in range(2):
        began = time.monotonic()
        virsh("start", "web")
        took_s = time.monotonic() - began
        vm = client.properties("web")
        assert (vm["State"], vm["MainPID"]) == ("running", pid_of("web"))
        assert process_label(vm["MainPID"]) == vm["ProcessContext"] == told["label"]
        assert label(path) == vm["ImageContext"]
        assert categories(str(label(path))) == categories(told["label"])
        (row,) = svirtctl("status")["domains"]
        assert (row["adopted"], row["runs"], row["state"]) == (True, True, "running")
        assert row["not_in_the_book"] == []
        virsh("destroy", "web")
        assert client.properties("web")["State"] == "reserved"
        assert label(path) == ORIGINAL
        print(f"libvirt: an adopted domain started in {took_s:.1f} s")
    svirtctl("release", "web")
    assert virsh("dumpxml", "web", "--inactive", "--security-info").split() == before.split()
    assert client.vms() == {}


def test_what_the_hook_costs(define: Define) -> None:
    """A domain that is not adopted: each of libvirt's calls of the hook."""
    define("plain", disk("plain"), adopted=False)
    text = virsh("dumpxml", "plain").encode()
    hook = "/etc/libvirt/hooks/qemu.d/50-svirtd"
    assert label(hook) == "system_u:object_r:bin_t:s0"
    for operation in (("start", "begin"), ("started", "begin"), ("prepare", "begin")):
        began = time.monotonic()
        done = subprocess.run([hook, "plain", *operation, "-"], input=text, check=True)
        assert done.returncode == 0
        print(f"libvirt: hook {' '.join(operation)} {time.monotonic() - began:.2f} s")


def test_one_file_of_two(client: Client, define: Define) -> None:
    """Whoever has it first keeps it, and the refusal names both, whether adopted or not."""
    path = disk("both")
    define("web", path)
    define("plain", path, adopted=False)
    client.acquire("mine", path)
    held = label(path)
    # Told before its start, too.
    assert "'mine'" in adopt("web", code=1)["problems"][0]
    for name in ("web", "plain"):
        said = fails("start", name)
        assert "'mine'" in said, said
        assert str(path) in said
        assert label(path) == held
    assert client.vms()["web"] == "reserved"
    client.release("mine")
    virsh("start", "web")
    refused = client.error(
        "Acquire", "saa{sv}a{sv}", "mine", [{"path": Variant("s", str(path))}], {}
    )
    assert "'web'" in refused.text
    # It is libvirt's to end.
    refused = client.error("Release", "sa{sv}", "web", {})
    assert "virsh destroy" in refused.text
    virsh("destroy", "web")
    assert label(path) == ORIGINAL


def test_without_svirtd_nothing_adopted_starts(client: Client, define: Define) -> None:
    define("web", disk("web"))
    define("plain", disk("plain"), adopted=False)
    systemctl("mask", "--runtime", "svirtd.service")
    try:
        systemctl("stop", "svirtd.service")
        said = fails("start", "web")
        assert "svirtd" in said
        assert label("/srv/vm/web.img") == ORIGINAL
        virsh("start", "plain")
        LABELS.add(process_label(pid_of("plain")))
        virsh("destroy", "plain")
    finally:
        systemctl("unmask", "--runtime", "svirtd.service")
        systemctl("start", "svirtd.service")
    virsh("start", "web")
    virsh("destroy", "web")


def test_what_outlives_the_daemons(client: Client, define: Define, audit: Audit) -> None:
    """svirtd and libvirtd are started again under a running domain; a label is stripped."""
    path = disk("web")
    define("web", path)
    virsh("start", "web")
    vm = client.properties("web")
    before = main_pid()
    systemctl("restart", "svirtd.service")
    assert main_pid() != before
    systemctl("restart", "libvirtd.service")
    assert virsh("domstate", "web") == "running"
    assert client.properties("web") == vm
    set_label(path, ORIGINAL)
    wait_for("the label is back", lambda: label(path) == vm["ImageContext"])
    # A process of somebody else's is not what runs under the label.
    (object_path,) = client.call("GetVM", "s", "web")
    with pytest.raises(Exception, match="runs as process"):
        client.message(
            "Follow", "ua{sv}", os.getpid(), {}, path=object_path, interface="org.svirt1.VM"
        )
    virsh("destroy", "web")
    wait_for("it is released", lambda: client.vms()["web"] == "reserved")
    assert label(path) == ORIGINAL


def test_disks_that_come_and_go(client: Client, define: Define) -> None:
    """Hot-plugged, a snapshot over it, and what it wrote brought back down: the book has it all."""
    # Where libvirt may make files.
    path, more = (IMAGES / disk(name).name for name in ("web", "more"))
    for one in (path, more):
        shutil.copy(f"/srv/vm/{one.name}", one)
        set_label(one, ORIGINAL)
    define("web", path)
    virsh("start", "web")
    own = client.properties("web")["ImageContext"]
    overlay = IMAGES / "web.snap"

    def has(*paths: Path) -> bool:
        return {one["path"] for one in client.properties("web")["Resources"]} == set(
            map(str, paths)
        )

    systemctl("start", "svirtd-libvirt.service")
    try:
        virsh("attach-disk", "web", str(more), "vdb", "--live")
        assert label(more) == own
        wait_for("it is in the book", lambda: has(path, more), _START_S)
        snapshot = ["--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay}"]
        virsh("snapshot-create-as", "web", "s1", *snapshot, "--diskspec", "vdb,snapshot=no")
        assert label(overlay) == own
        # Of a snapshot nothing is heard: it is seen when all are looked at, from time to time and
        # at a start.
        systemctl("restart", "svirtd-libvirt.service")
        wait_for("so is the overlay", lambda: has(path, more, overlay), _START_S)
        virsh("blockcommit", "web", "vda", "--active", "--pivot", "--wait")
        assert label(path) == own
        wait_for("the overlay is not any more", lambda: has(path, more), _START_S)
    finally:
        systemctl("stop", "svirtd-libvirt.service")
    virsh("destroy", "web")
    wait_for("it is released", lambda: client.vms()["web"] == "reserved")
    assert label(path) == label(more) == ORIGINAL
    for one in (path, more, overlay):
        one.unlink()


def test_a_disk_for_exactly_two(client: Client, define: Define, audit: Audit) -> None:
    """Two domains of a group write one disk; a third, and a VM of svirtd's, do not get it."""
    path = disk("shared")
    client.call("CreateGroup", "sa{sv}", "pair", {})
    try:
        for name in ("one", "two"):
            define(name, disk(name), path, more="<shareable/>", adopted=False)
            adopt(name, "--group", f"{path}=pair")
        define("three", path, more="<shareable/>", adopted=False)
        for name in ("one", "two"):
            virsh("start", name)
        (group,) = categories(str(label(path)))
        contexts = [client.properties(name)["ProcessContext"] for name in ("one", "two")]
        assert [group in categories(one) for one in contexts] == [True, True]
        refused = fails("start", "three")
        assert str(path) in refused
        keep("refused", "virsh start three", refused)
        command = ["svirtctl", "libvirt", "status"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        keep("status", " ".join(command), said)
        third = Captive(client, "captive", disk("own"))
        with audit.denied("read", third.context, str(label(path))):
            assert third.fails(f"read({str(path)!r})") == "EACCES"
        third.end()
        virsh("destroy", "one")
        assert categories(str(label(path))) == {group}
        virsh("destroy", "two")
        assert label(path) == ORIGINAL
    finally:
        for name in ("one", "two"):
            here(libvirt_adopt.release, name)
        client.call("DeleteGroup", "sa{sv}", "pair", {})


def test_adopted_by_themselves(client: Client, define: Define) -> None:
    """As in a wizard: defined and started; a copy gets a set of its own; undefined, it is gone."""
    with adopting_by_itself(["w*"], required=True):
        define("web", disk("web"), adopted=False)
        define("other", disk("other"), adopted=False)
        wait_for("it is adopted", lambda: "web" in client.vms(), _START_S)
        first = client.properties("web")["ProcessContext"]
        LABELS.add(first)
        wait_for("it is written", lambda: first in virsh("dumpxml", "web", "--inactive"), _START_S)
        assert "require-adopted" in fails("start", "other")
        assert client.vms() == {"web": "reserved"}
        copy = virsh("dumpxml", "web", "--inactive").replace("<name>web<", "<name>wob<")
        lines = [one for one in copy.splitlines() if "<uuid>" not in one]
        Path("/root/wob.xml").write_text("\n".join(lines), "utf-8")
        virsh("define", "/root/wob.xml")
        wait_for("so is the copy", lambda: "wob" in client.vms(), _START_S)
        second = client.properties("wob")["ProcessContext"]
        assert second != first
        wait_for("it is written", lambda: second in virsh("dumpxml", "wob", "--inactive"), _START_S)
        virsh("undefine", "wob")
        wait_for("it is gone", lambda: "wob" not in client.vms(), _START_S)


def test_a_copy_does_not_start_under_the_first_ones_label(client: Client, define: Define) -> None:
    define("web", disk("web"))
    copy = virsh("dumpxml", "web", "--inactive").replace("<name>web<", "<name>wob<")
    lines = [one for one in copy.splitlines() if "<uuid>" not in one]
    Path("/root/wob.xml").write_text("\n".join(lines), "utf-8")
    virsh("define", "/root/wob.xml")
    try:
        assert "svirtctl libvirt adopt" in fails("start", "wob")
        # Nor one whose mark was taken out: the book knows it by its UUID.
        text = virsh("dumpxml", "web", "--inactive")
        Path("/root/web.xml").write_text(released(text.encode()).decode(), "utf-8")
        virsh("define", "/root/web.xml")
        assert "svirtctl libvirt adopt web" in fails("start", "web")
    finally:
        virsh("undefine", "wob")
