# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's hook against the daemon: what libvirt would hand it, and what becomes of that.

A real libvirtd calls it in the guest (tests/guest/inside/test_p_libvirt.py).
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from svirtd.core.domain_edit import Shared, adopted
from svirtd.ctl import libvirt_checks, libvirt_hook
from svirtd.host.bus import Variant
from tests.support import REPO, VM, Client, Daemon, image, label, resources, set_label
from tests.unit.test_domains import BAD, STATIC, disk, domain

UUID = "6c3a6e6e-0000-4000-8000-000000000001"
OTHER = "6c3a6e6e-0000-4000-8000-000000000002"
ORIGINAL = "system_u:object_r:virt_image_t:s0"
OPERATIONS = (("start", "begin"), ("started", "begin"), ("stopped", "end"), ("release", "end"))


class Domain:
    """A domain that the test starts and stops as libvirt does."""

    def __init__(self, client: Client, disks: Sequence[Path], folder: Path) -> None:
        self.client = client
        self.disks = disks
        self.plain = domain(
            "".join(disk(f"<source file='{path}'/>") for path in disks), seclabel=""
        )
        self.text = self.plain
        self.process: subprocess.Popen[bytes] | None = None
        self._pids = folder

    def adopt(self) -> str:
        """Reserve a set and write its label, as svirtctl does; returns the label."""
        options = {
            "labelled-by": Variant("s", "libvirt"),
            "uuid": Variant("s", UUID),
            "persistent": Variant("b", True),
        }
        self.client.call("Acquire", "saa{sv}a{sv}", "web", [], options)
        context = str(self.client.properties("web")["ProcessContext"])
        self.text = adopted(self.plain, "web", context, {})
        return context

    def says(self, *operation: str) -> int:
        return libvirt_hook.run(["web", *operation, "-"], io.BytesIO(self.text).read)

    def start(self) -> None:
        assert self.says("start", "begin") == 0
        for held in self.client.properties("web")["Resources"]:
            set_label(Path(held["path"]), held["context"])
        self.process = subprocess.Popen(["sleep", "1000"])
        (self._pids / "web.pid").write_text(f"{self.process.pid}\n")

    def end(self) -> None:
        """End the process, which is libvirt's to do, and what the test has made."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def web(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    """A domain with two disks."""
    monkeypatch.setattr(libvirt_checks, "PID_FOLDER", str(tmp_path))
    disks = [image(tmp_path / f"{name}.img") for name in ("a", "b")]
    for path in disks:
        set_label(path, ORIGINAL)
    one = Domain(client, disks, tmp_path)
    yield one
    one.end()
    for name, state in client.vms().items():
        if state != "reserved":
            client.release(name)
        if name in client.vms():
            client.call("Forget", "sa{sv}", name, {})
    for path in disks:
        os.removexattr(path, "security.selinux")


Said = Callable[[], str]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """A function that returns what the hook has told libvirt since the last look."""
    return lambda: capfd.readouterr().err


def test_a_whole_life(daemon: Daemon, web: Domain, client: Client, said: Said) -> None:
    context = web.adopt()
    for _ in range(2):
        assert web.says("prepare", "begin") == 0
        web.start()
        assert web.says("started", "begin") == 0
        vm = client.properties("web")
        assert (vm["State"], vm["ProcessContext"]) == ("running", context)
        assert web.process is not None
        assert vm["MainPID"] == web.process.pid
        assert web.says("reconnect", "begin") == 0
        web.end()
        assert web.says("stopped", "end") == 0
        for path in web.disks:
            set_label(path, ORIGINAL)
        assert web.says("release", "end") == 0
        assert client.properties("web")["State"] == "reserved"
    assert said() == ""


def test_one_that_is_not_adopted(daemon: Daemon, web: Domain, client: Client, said: Said) -> None:
    for operation in (("prepare", "begin"), *OPERATIONS, ("reconnect", "begin")):
        assert web.says(*operation) == 0
    assert client.vms() == {}
    assert said() == ""
    # It gets nothing that a VM of svirtd's has.
    client.acquire("mine", web.disks[1])
    assert web.says("start", "begin") == 1
    text = said()
    assert "'mine'" in text
    assert str(web.disks[1]) in text
    assert "'web'" in text
    client.release("mine")
    client.acquire("mine", web.disks[1], access="public")
    assert web.says("start", "begin") == 1
    web.text = web.plain.replace(b"<target", b"<readonly/><target")
    assert web.says("start", "begin") == 0
    # A label that libvirt has drawn, and that includes the set of a VM.
    own = client.properties("mine")["ProcessContext"]
    drawn = STATIC.replace("static", "dynamic").replace("system_u:system_r:svirt_t:s0:c7,c300", own)
    web.text = domain(seclabel=drawn)
    said()
    assert web.says("start", "begin") == 1
    assert "another label" in said()


def test_what_keeps_an_adopted_one_from_starting(
    daemon: Daemon, web: Domain, client: Client, said: Said
) -> None:
    """And then it holds nothing, and nothing was labelled."""
    context = web.adopt()
    whole = web.text

    def refuses(text: bytes, why: str) -> None:
        web.text = text
        assert web.says("start", "begin") == 1
        assert why in said()
        assert client.vms()["web"] == "reserved"
        assert {label(path) for path in web.disks} == {ORIGINAL}

    refuses(web.plain, "svirtctl libvirt adopt web")  # the mark was taken out
    refuses(whole.replace(b"relabel='yes'", b"relabel='no'"), "seclabel is not what svirtd wrote")
    refuses(whole.replace(b"'static'", b"'dynamic'"), "seclabel is not what svirtd wrote")
    pair = context.rpartition(":")[2].encode()
    refuses(whole.replace(pair, b"c1,c2"), "svirtctl libvirt adopt web")
    refuses(whole.replace(UUID.encode(), OTHER.encode()), UUID)  # a copy
    client.acquire("mine", web.disks[0])
    web.text = whole
    assert web.says("start", "begin") == 1
    assert "'mine'" in said()
    client.release("mine")
    set_label(web.disks[1], "system_u:object_r:shadow_t:s0")
    assert web.says("start", "begin") == 1
    assert "shadow_t" in said()
    set_label(web.disks[1], ORIGINAL)
    assert web.says("start", "begin") == 0


def test_what_keeps_an_adopted_one_from_running(
    daemon: Daemon, web: Domain, client: Client, said: Said
) -> None:
    web.adopt()
    web.start()
    assert web.says("started", "begin") == 0
    web.end()
    # An end that svirtd was not told of, and the next start.
    web.start()
    set_label(web.disks[1], ORIGINAL)
    assert web.says("started", "begin") == 1
    assert str(web.disks[1]) in said()
    web.end()
    assert web.says("started", "begin") == 1
    (Path(libvirt_checks.PID_FOLDER) / "web.pid").unlink()
    assert web.says("started", "begin") == 1
    assert "web.pid" in said()
    # What is only told: libvirt would end the domain.
    assert web.says("reconnect", "begin") == 0
    assert "runs on" in said()
    assert web.says("stopped", "end") == 0
    assert web.says("release", "end") == 0
    assert client.vms() == {"web": "reserved"}
    assert {label(path) for path in web.disks} == {ORIGINAL}


def test_it_starts_again_after_an_end_that_nobody_told(
    daemon: Daemon, web: Domain, client: Client
) -> None:
    web.adopt()
    web.start()
    assert web.says("started", "begin") == 0
    # As long as its process is there it is no end.
    assert web.says("start", "begin") == 1
    web.end()
    web.start()
    assert client.properties("web")["State"] == "labelled"
    web.end()
    assert web.says("release", "end") == 0


def test_without_the_daemon(own_daemon: Daemon, web: Domain, client: Client, said: Said) -> None:
    web.adopt()
    own_daemon.stop()
    try:
        for operation in OPERATIONS:
            assert web.says(*operation) == 1
            assert "svirtd" in said()
        assert web.says("reconnect", "begin") == 0
        assert {label(path) for path in web.disks} == {ORIGINAL}
        whole, web.text = web.text, web.plain
        assert web.says("start", "begin") == 0
        assert "is not adopted and starts" in said()
        web.text = whole
    finally:
        own_daemon.start()
    assert web.says("start", "begin") == 0
    assert web.says("release", "end") == 0


def test_only_those_that_are_adopted(own_daemon: Daemon, web: Domain, said: Said) -> None:
    own_daemon.stop()
    with open(own_daemon.config, "a", encoding="utf-8") as file:
        file.write("[libvirt]\nrequire-adopted = true\n")
    own_daemon.start()
    assert web.says("start", "begin") == 1
    assert "require-adopted" in said()
    web.adopt()
    assert web.says("start", "begin") == 0


def test_one_that_comes_from_another_host(
    daemon: Daemon, web: Domain, client: Client, said: Said
) -> None:
    """Its book has had it there: here it is entered with the set that it has."""
    there = "system_u:system_r:svirt_t:s0:c7,c300"
    web.text = adopted(web.plain, "web", there, {})
    assert web.says("migrate", "begin") == 0
    web.start()
    assert client.properties("web")["ProcessContext"] == there
    assert web.says("started", "begin") == 0
    # Another one with that set, or with a group that is not known here, is not let in.
    web.text = adopted(web.plain, "wob", there, {}).replace(UUID.encode(), OTHER.encode())
    assert web.says("start", "begin") == 1
    assert "c7,c300" in said()
    group = Shared("pair", "system_u:object_r:svirt_image_t:s0:c900")
    shared = {str(web.disks[0]): group}
    web.text = adopted(web.plain, "wob", f"{there[:-6]}6,c310,c900", shared)
    web.text = web.text.replace(UUID.encode(), OTHER.encode())
    assert web.says("start", "begin") == 1
    assert "pair" in said()
    assert client.vms() == {"web": "running"}


def test_a_disk_of_a_group(daemon: Daemon, web: Domain, client: Client, said: Said) -> None:
    client.call("CreateGroup", "sa{sv}", "pair", {})
    try:
        web.adopt()
        (path,) = client.call("GetVM", "s", "web")
        client.message("JoinGroup", "sa{sv}", "pair", {}, path=path, interface=VM)
        # The label of before the group: it would not get what is shared.
        assert web.says("start", "begin") == 1
        assert "svirtctl libvirt adopt" in said()
        named = [
            one | {"group": Variant("s", "pair")} for one in resources(web.disks[0], access="group")
        ]
        options = {"labelled-by": Variant("s", "libvirt"), "uuid": Variant("s", UUID)}
        (steps,) = client.call("Plan", "saa{sv}a{sv}", "web", named, options)
        context, shared = steps[-1]["process"].value, steps[0]["to"].value
        disks = {str(web.disks[0]): Shared("pair", shared)}
        web.text = adopted(web.plain, "web", context, disks)
        web.start()
        assert web.says("started", "begin") == 0
        assert label(web.disks[0]) == shared
        assert label(web.disks[1]) == client.properties("web")["ImageContext"] != shared
        web.end()
        assert web.says("release", "end") == 0
        assert {label(one) for one in web.disks} == {ORIGINAL}
    finally:
        client.call("Forget", "sa{sv}", "web", {})
        client.call("DeleteGroup", "sa{sv}", "pair", {})


def test_garbage(daemon: Daemon, web: Domain, client: Client, said: Said) -> None:
    """It starts nothing that it cannot read, and never ends in a traceback."""
    for what, text in BAD.items():
        web.text = text
        for operation in OPERATIONS:
            assert web.says(*operation) == 1, what
            assert "cannot be used" in said(), what
        assert web.says("migrate", "begin") == 0
    assert client.vms() == {}


@pytest.mark.parametrize("arguments", [[], ["web"], ["web", "start"], ["", "", ""], ["a"] * 9])
def test_odd_arguments(arguments: list[str]) -> None:
    assert libvirt_hook.run(arguments, io.BytesIO().read) == 0


def test_what_it_has_nothing_to_do_with_loads_nothing() -> None:
    """libvirt waits for it five times in a domain's life."""
    code = (
        "import sys, svirtd.ctl.libvirt_hook as h\n"
        "code = h.main()\n"
        "print(code, [name for name in sys.modules if name.startswith('svirtd')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "web", "prepare", "begin", "-"],
        capture_output=True, text=True, cwd=REPO, check=True,
    )  # fmt: skip
    assert done.stdout == "0 ['svirtd', 'svirtd.ctl', 'svirtd.ctl.libvirt_hook']\n"


def test_as_libvirt_runs_it(daemon: Daemon, web: Domain, client: Client) -> None:
    """A program with the description on its input; how long it takes is printed."""
    web.adopt()

    def runs(*operation: str) -> Any:
        command = [sys.executable, "-c", "import svirtd.ctl.libvirt_hook as h; exit(h.main())"]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "web", *operation, "-"], input=web.text, capture_output=True, cwd=REPO,
            check=False,
        )  # fmt: skip
        print(f"hook {' '.join(operation)}: {time.monotonic() - began:.3f} s")
        return done

    assert runs("prepare", "begin").returncode == 0
    assert runs("start", "begin").returncode == 0
    assert client.properties("web")["State"] == "labelled"
    assert runs("release", "end").returncode == 0
    client.acquire("mine", web.disks[0])
    done = runs("start", "begin")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"svirtd: ")
    assert done.stderr.count(b"\n") == 1
    assert b"'mine'" in done.stderr
