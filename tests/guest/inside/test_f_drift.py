# SPDX-License-Identifier: LGPL-2.1-or-later
"""Labels changed under running VMs, and label sets that others use, on a kernel that enforces."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd.host.bus import Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.test_a_policy import targets
from tests.guest.inside.vms import CAPTIVE, SIZE, Captive, Qemu, categories, disk
from tests.support import Client, label, resources, set_label, unwrap, wait_for

# Where the policy has a type for images: what restorecon gives them there.
IMAGES: Final = Path("/var/lib/libvirt/images")
PLAIN: Final = "system_u:object_r:virt_image_t:s0"
RESTORECONS: Final = 3


def verify(client: Client, *folders: Path, repair: bool = False) -> list[dict[str, Any]]:
    options = {"scan": Variant("as", [str(one) for one in folders])} if folders else {}
    (findings,) = client.call("Verify", "ba{sv}", repair, options)
    return [dict(unwrap(one)) for one in findings]


@pytest.fixture
def images() -> Iterator[Path]:
    """A folder below the one in which the policy expects images."""
    folder = IMAGES / "drift"
    folder.mkdir()
    set_label(folder, PLAIN)
    yield folder
    shutil.rmtree(folder)


def image(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"disk" * (SIZE // 4))
    set_label(path, PLAIN)
    return path


def test_restorecon_under_a_vm_that_works(client: Client, audit: Audit, images: Path) -> None:
    """An administrator's restorecon -R strips the labels: they are back before anyone notices."""
    path = image(images, "a.img")
    client.listen()
    vm = Captive(client, "a", path)
    ours = str(label(path))
    assert ours == vm.image_context
    listed = subprocess.run(
        ["matchpathcon", "-n", path], capture_output=True, text=True, check=True
    )
    assert ":virt_image_t:" in listed.stdout
    script = f"for n in $(seq {RESTORECONS}); do sleep 1; restorecon -RFv {images}; done"
    with (
        audit.denied("read write", vm.context, f"*:{PLAIN.split(':')[2]}:*"),
        subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as restorecon,
    ):
        worked = vm.do(f"work({str(path)!r}, {RESTORECONS + 3})")
        said, _ = restorecon.communicate()
    assert said.count(f"Relabeled {path} from") == RESTORECONS
    assert wait_for("the label is back", lambda: label(path) == ours)
    print(f"restorecon: {worked}")
    # Each time it was cut off, on the very descriptor that it works through, and then worked on.
    assert worked["cuts"] == RESTORECONS
    assert worked["after"] > 0
    told = wait_for("it was told", lambda: client.seen("DriftFound"))
    assert len(told) == RESTORECONS
    assert all(unwrap(body[0])["repaired"] for body in told)
    vm.end()
    assert label(path) == PLAIN


def test_restorecon_under_a_qemu(client: Client, images: Path) -> None:
    path = image(images, "a.img")
    vm = Qemu(client, "a", path, machine="pc")
    assert vm.reads() == vm.writes() == ""
    ours = vm.image_context
    subprocess.run(["restorecon", "-RF", images], check=True)
    wait_for("the label is back", lambda: label(path) == ours)
    assert vm.reads() == vm.writes() == ""
    assert verify(client, images) == []
    vm.end()


def test_a_vm_that_others_start_is_seen_to_run(client: Client, images: Path) -> None:
    """An acquired VM is in use as long as processes run under its label."""
    path = image(images, "a.img")
    client.acquire("a", path)
    ours = str(label(path))
    set_label(path, PLAIN)
    client.idle(1.0)
    assert label(path) == PLAIN
    with foreign(client.properties("a")["ProcessContext"]):
        set_label(path, PLAIN)
        wait_for("the label is back", lambda: label(path) == ours)
    client.release("a")


class foreign:  # noqa: N801 -- reads as the statement it is used in
    """A process under a label that svirtd was not asked for, in a unit of its own."""

    def __init__(self, context: str) -> None:
        self.context = context

    def __enter__(self) -> int:
        if not CAPTIVE.exists():
            shutil.copy(Path("/usr/bin/python3").resolve(), CAPTIVE)
            set_label(CAPTIVE, "system_u:object_r:qemu_exec_t:s0")
        argv = [str(CAPTIVE), "-I", "-c", "import time; time.sleep(1000)"]
        subprocess.run(
            ["systemd-run", "-q", "--unit=theirs", f"-pSELinuxContext={self.context}", *argv],
            check=True,
        )
        pid = int(systemctl("show", "--property=MainPID", "--value", "theirs"))
        here = Path(f"/proc/{pid}/attr/current")
        wait_for("it runs", lambda: here.read_text("utf-8").rstrip("\0\n") == self.context)
        return pid

    def __exit__(self, *_: object) -> None:
        systemctl("stop", "theirs")


def test_a_foreign_set_is_never_handed_out(
    client: Client, configure: Callable[[str], None]
) -> None:
    configure('[labels]\nprivate = "c0.c3"\n')
    systemctl("restart", "svirtd.service")
    taken = frozenset({1, 2})
    with foreign("system_u:system_r:svirt_t:s0:c1,c2") as pid:
        (finding,) = verify(client)
        assert (finding["kind"], finding["path"]) == ("foreign", f"/proc/{pid}")
        names = [f"vm{number}" for number in range(5)]
        for name in names:
            client.acquire(name, disk(name))
        sets = [categories(client.properties(name)["ProcessContext"]) for name in names]
        assert len(set(sets)) == 5
        assert taken not in sets
        more = resources(disk("more"))
        refused = client.error("Acquire", "saa{sv}a{sv}", "more", more, {})
        assert refused.name == "org.svirt1.Error.PoolExhausted"
        assert "libvirt" in refused.text
    # It has ended: what it kept back is free.
    client.acquire("more", disk("more"))
    assert categories(client.properties("more")["ProcessContext"]) == taken
    for name in (*names, "more"):
        client.release(name)


def test_two_holders_of_one_set(client: Client) -> None:
    vm = Captive(client, "a", disk("a"))
    assert verify(client) == []
    with foreign(vm.context) as pid:
        (finding,) = verify(client, repair=True)
        assert (finding["kind"], finding["vm"], finding["path"]) == (
            "conflict",
            "a",
            f"/proc/{pid}",
        )
        assert "theirs.service" in finding["reason"]
        assert not finding["repaired"]
    vm.end()


def test_a_persistent_vm_whose_set_somebody_took(client: Client) -> None:
    client.acquire("a", disk("a"), persistent=Variant("b", True))
    context = client.properties("a")["ProcessContext"]
    client.release("a")
    with foreign(context):
        wanted = resources(disk("a"))
        refused = client.error("Acquire", "saa{sv}a{sv}", "a", wanted, {})
        assert refused.name == "org.svirt1.Error.Drift"
    client.acquire("a", disk("a"))
    client.release("a")
    client.call("Forget", "sa{sv}", "a", {})


def test_the_whole_host_is_scanned(client: Client, images: Path) -> None:
    """The policy lets svirtd look into every folder, and nothing is denied on the way."""
    orphan = image(images, "orphan.img")
    set_label(orphan, "system_u:object_r:svirt_image_t:s0:c1,c2")
    found = verify(client, Path("/etc"), Path("/var"), Path("/srv"), Path("/home"))
    assert [(one["kind"], one["path"]) for one in found] == [("orphan", str(orphan))]
    assert client.manager()["PairsQuarantined"] == 1
    set_label(orphan, PLAIN)
    assert verify(client) == []
    assert client.manager()["PairsQuarantined"] == 0


def test_containers_are_seen() -> None:
    """Whoever is kept apart by categories: asked of the policy, no container runs here."""
    assert {"container_t", "svirt_t"} <= targets("getattr", "process")
