# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units of the administrator's own under a VM's label: their starts, ends, and what goes wrong."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.host.bus import Variant
from tests.bus.test_reboot import reboot
from tests.enrolled import (
    UNITS,
    done,
    install_svirtctl,
    residue,
    show,
    svirtctl,
    systemctl,
    unit_file,
)
from tests.support import Client, Daemon, image, label, resources, wait_for

SLEEP = "ExecStart=/bin/sleep 1000"
ENROLL = "ssaa{sv}a{sv}"


@pytest.fixture(autouse=True, scope="module")
def program(sandbox: object) -> None:
    install_svirtctl()


@pytest.fixture(autouse=True)
def no_residue() -> Iterator[None]:
    yield
    assert residue() == []


@pytest.fixture
def unit(daemon: Daemon) -> Iterator[str]:
    """A unit that is not enrolled yet, and ended and out of the book afterwards."""
    with unit_file("web.service", "Type=exec", SLEEP) as name:
        yield name
        systemctl("stop", name)
        svirtctl("unenroll", name)
        systemctl("reset-failed", name, check=False)


def state(client: Client, name: str = "web") -> str:
    return client.vms().get(name, "gone")


def test_a_unit_runs_as_the_same_vm_at_each_start(
    unit: str, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    assert "enrolled" in done("enroll", unit, "web", "--disk", str(disk))
    assert label(disk) is None
    first = client.properties("web")
    assert (first["State"], first["Enrolled"], first["Persistent"]) == ("reserved", unit, True)
    assert show(unit, "SELinuxContext") == {"SELinuxContext": first["ProcessContext"]}
    for _ in range(2):
        systemctl("start", unit)
        running = wait_for(
            "it runs", lambda: (vm := client.properties("web"))["State"] == "running" and vm
        )
        assert running["ProcessContext"] == first["ProcessContext"]
        assert running["Unit"] == unit
        assert show(unit, "MainPID") == {"MainPID": str(running["MainPID"])}
        assert label(disk) == running["ImageContext"]
        environment = Path(f"/proc/{running['MainPID']}/environ").read_bytes().split(b"\0")
        assert f"SVIRT_RUNTIME_DIR={running['RuntimeDirectory']}".encode() in environment
        assert label(running["RuntimeDirectory"]) == running["ImageContext"]
        assert client.call("GetVMByPID", "u", running["MainPID"]) == ["/org/svirt1/vm/web"]
        systemctl("stop", unit)
        # The unit has ended when systemctl returns, and its end was told to svirtd.
        assert state(client) == "reserved"
        assert label(disk) is None
        assert not os.path.exists(running["RuntimeDirectory"])
        assert show(unit, "Result") == {"Result": "success"}
    done("unenroll", unit)
    assert client.vms() == {}
    assert show(unit, "SELinuxContext", "DropInPaths") == {"SELinuxContext": "", "DropInPaths": ""}


def test_instances_of_a_template_are_units_of_their_own(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    with unit_file("vm@.service", "Type=exec", SLEEP):
        refused = svirtctl("enroll", "vm@.service", "x")
        assert refused.returncode == 2
        assert "vm@NAME.service" in refused.stderr
        for name in ("web", "db"):
            disk = image(tmp_path / name)
            done("enroll", f"vm@{name}.service", name, "--disk", str(disk))
            systemctl("start", f"vm@{name}")
        wait_for("both run", lambda: set(client.vms().values()) == {"running"})
        web, db = client.properties("web"), client.properties("db")
        assert web["Categories"] != db["Categories"]
        assert show("vm@db.service", "SELinuxContext")["SELinuxContext"] == db["ProcessContext"]
        # One that nobody enrolled runs as it always did.
        systemctl("start", "vm@other")
        assert show("vm@other.service", "SELinuxContext") == {"SELinuxContext": ""}
        systemctl("stop", "vm@web", "vm@db", "vm@other")
        for name in ("web", "db"):
            assert label(tmp_path / name) is None
            done("unenroll", f"vm@{name}")


@pytest.mark.parametrize("how", ["exit", "kill", "post-killed", "release"])
def test_an_end_of_any_kind_gives_the_labels_back(
    unit: str, client: Client, tmp_path: Path, how: str
) -> None:
    disk = image(tmp_path / "a.img")
    done("enroll", unit, "web", "--disk", str(disk))
    if how == "post-killed":
        extra = UNITS / f"{unit}.d" / "60-own.conf"
        extra.write_text("[Service]\nExecStopPost=\nExecStopPost=/bin/false\n", "utf-8")
        systemctl("daemon-reload")
    systemctl("start", unit)
    vm = wait_for("it runs", lambda: (v := client.properties("web"))["MainPID"] and v)
    match how:
        case "exit":
            os.kill(vm["MainPID"], signal.SIGTERM)
        case "kill" | "post-killed":
            os.kill(vm["MainPID"], signal.SIGKILL)
        case "release":
            client.release("web")
            assert label(disk) is None
    wait_for("the end", lambda: state(client) == "reserved")
    assert label(disk) is None
    wait_for("the unit's end", lambda: show(unit, "MainPID")["MainPID"] == "0")
    if how == "post-killed":
        extra.unlink()
    systemctl("stop", unit)


def test_a_start_without_svirtd_fails(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    with unit_file("web.service", "Type=exec", SLEEP) as unit:
        done("enroll", unit, "web", "--disk", str(disk))
        own_daemon.stop()
        assert "failed" in systemctl("start", unit, check=False)
        assert show(unit, "MainPID", "ActiveState") == {"MainPID": "0", "ActiveState": "failed"}
        assert label(disk) is None
        own_daemon.start()
        systemctl("start", unit)
        # What it holds stays its own over a restart, however the daemon ends.
        for end in (own_daemon.stop, own_daemon.kill):
            end()
            own_daemon.start()
            wait_for("it runs on", lambda: state(client) == "running")
            assert label(disk) is not None
        # An end that nobody hears of.
        own_daemon.kill()
        os.kill(int(show(unit, "MainPID")["MainPID"]), signal.SIGKILL)
        wait_for("the end", lambda: show(unit, "ActiveState")["ActiveState"] == "failed")
        own_daemon.start()
        assert state(client) == "reserved"
        assert label(disk) is None
        systemctl("reset-failed", unit)
        done("unenroll", unit)


def test_a_unit_whose_label_is_not_the_vms_does_not_start(
    unit: str, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    done("enroll", unit, "web", "--disk", str(disk))
    path = UNITS / f"{unit}.d" / "50-svirtd.conf"
    good = path.read_text("utf-8")
    context = client.properties("web")["ProcessContext"]
    for line in ("", "SELinuxContext=system_u:system_r:svirt_t:s0:c1,c2"):
        path.write_text(good.replace(f"SELinuxContext={context}", line), "utf-8")
        systemctl("daemon-reload")
        assert "failed" in systemctl("start", unit, check=False)
        assert label(disk) is None
        assert state(client) == "reserved"
        listed = svirtctl("enrolled", "list")
        assert listed.returncode == 1
        assert "not what it should be" in listed.stdout
    path.unlink()
    assert "no drop-in" in svirtctl("enrolled", "list").stdout
    assert done("enrolled", "refresh") == "1 drop-in is written\n"
    assert path.read_text("utf-8") == good
    done("enrolled", "list")
    systemctl("reset-failed", unit)
    systemctl("start", unit)


def test_the_context_follows_the_goal_and_the_groups(
    unit: str, client: Client, tmp_path: Path
) -> None:
    done("enroll", unit, "web")
    before = show(unit, "SELinuxContext")
    done("group", "create", "g")
    done("group", "join", "g", "web")
    # It would run without what the group shares: said, and not started.
    assert "failed" in systemctl("start", unit, check=False)
    assert svirtctl("enrolled", "list").returncode == 1
    done("enrolled", "refresh")
    assert show(unit, "SELinuxContext") != before
    systemctl("reset-failed", unit)
    systemctl("start", unit)
    wait_for("it runs", lambda: state(client) == "running")
    assert client.properties("web")["Groups"] == ["g"]
    systemctl("stop", unit)
    done("group", "leave", "g", "web")
    done("group", "delete", "g")
    done("enroll", unit, "web", "--goal", "offline")
    assert "svirtd_offline_t" in show(unit, "SELinuxContext")["SELinuxContext"]
    systemctl("start", unit)


def test_what_is_enrolled_is_kept_for_its_unit(unit: str, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    done("enroll", unit, "web", "--disk", str(disk))
    disks = resources(disk)
    taken = client.error("Acquire", "saa{sv}a{sv}", "web", disks, {})
    assert taken.name == "org.svirt1.Error.VMExists"
    # What would be refused is told beforehand.
    assert client.error("Plan", "saa{sv}a{sv}", "web", disks, {}).name == taken.name
    taken = client.error("Launch", "sasaa{sv}a{sv}", "web", ["/bin/sleep", "9"], disks, {})
    assert taken.name == "org.svirt1.Error.VMExists"
    assert "unenroll" in client.error("Forget", "sa{sv}", "web", {}).text
    # One unit, one VM, both ways.
    assert svirtctl("enroll", unit, "other").returncode == 5
    with unit_file("other.service", SLEEP) as other:
        assert svirtctl("enroll", other, "web").returncode == 5
    systemctl("start", unit)
    assert svirtctl("enroll", unit, "web").returncode == 5
    assert svirtctl("unenroll", unit).returncode == 1
    for call in ("StartEnrolled", "EndEnrolled"):
        assert client.error(call, "sa{sv}", unit, {}).name == "org.svirt1.Error.Failed"
    wait_for("it runs", lambda: state(client) == "running")
    assert client.error(*("EndEnrolled", "sa{sv}", unit, {})).text.startswith(f"{unit} runs")
    systemctl("stop", unit)
    assert client.error("StartEnrolled", "sa{sv}", unit, {}).name == "org.svirt1.Error.Failed"
    client.call("EndEnrolled", "sa{sv}", unit, {})  # there is nothing to give back
    done("unenroll", "--keep", unit)
    assert client.vms() == {"web": "reserved"}
    done("forget", "web")


def test_a_start_that_is_refused_leaves_nothing(unit: str, client: Client, tmp_path: Path) -> None:
    disk, gone = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    done("enroll", unit, "web", "--disk", str(disk), "--disk", str(gone))
    gone.unlink()
    assert "failed" in systemctl("start", unit, check=False)
    assert label(disk) is None
    assert state(client) == "reserved"
    # Another VM holds it by then.
    done("enroll", unit, "web", "--disk", str(disk))
    client.acquire("other", disk)
    assert "failed" in systemctl("start", unit, check=False)
    client.release("other")
    systemctl("reset-failed", unit)


@pytest.mark.parametrize(
    "lines",
    [
        ["Type=simple", SLEEP],
        ["Type=forking", "ExecStart=/bin/sh -c '/bin/sleep 1000 & exit 0'"],
        ["Type=oneshot", "RemainAfterExit=yes", "ExecStart=/bin/true"],
        [
            "Type=notify",
            "NotifyAccess=all",
            "ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep 1000'",
        ],
        ["Type=simple", "Restart=always", "RestartSec=0", SLEEP, "User=nobody"],
    ],
    ids=["simple", "forking", "oneshot", "notify", "restart"],
)
def test_units_of_every_type(
    daemon: Daemon, client: Client, tmp_path: Path, lines: list[str]
) -> None:
    disk = image(tmp_path / "a.img")
    with unit_file("web.service", *lines) as unit:
        done("enroll", unit, "web", "--disk", str(disk))
        systemctl("start", unit)
        if "Type=oneshot" in lines:
            assert state(client) in ("labelled", "running")
        else:
            wait_for("it runs", lambda: state(client) == "running")
        if "Restart=always" in lines:
            pid = client.properties("web")["MainPID"]
            os.kill(pid, signal.SIGKILL)
            wait_for("it runs anew", lambda: client.properties("web")["MainPID"] not in (0, pid))
            folder = os.stat(client.properties("web")["RuntimeDirectory"])
            assert folder.st_uid == 65534
        assert label(disk) is not None
        assert client.call("Verify", "ba{sv}", False, {}) == [[]]
        systemctl("stop", unit)
        assert state(client) == "reserved"
        assert label(disk) is None
        done("unenroll", unit)


def test_a_directory_and_a_kernel_are_the_units(unit: str, client: Client, tmp_path: Path) -> None:
    tree, kernel = tmp_path / "tree", image(tmp_path / "vmlinuz")
    tree.mkdir()
    image(tree / "file")
    done("enroll", unit, "web", "--tree", str(tree), "--kernel", str(kernel))
    systemctl("start", unit)
    wait_for("it runs", lambda: state(client) == "running")
    vm = client.properties("web")
    assert label(tree / "file") == label(tree) == vm["ImageContext"]
    assert label(kernel) not in (None, vm["ImageContext"])
    systemctl("stop", unit)
    assert [label(path) for path in (tree, tree / "file", kernel)] == [None] * 3


def test_a_kill_while_it_starts_or_ends(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """At each boundary: the unit does not start, or has ended, and nothing is left of it."""
    disk = image(tmp_path / "a.img")

    def armed(failpoint: str) -> None:
        own_daemon.stop()
        own_daemon.failpoints = failpoint
        own_daemon.start()

    def settled(unit: str) -> None:
        assert own_daemon.process is not None
        assert own_daemon.process.wait(20) == -signal.SIGKILL
        own_daemon.process = None
        wait_for("the end", lambda: show(unit, "ActiveState")["ActiveState"] != "deactivating")
        own_daemon.failpoints = ""
        own_daemon.start()
        wait_for("all is given back", lambda: state(client) == "reserved")
        assert label(disk) is None
        assert list(own_daemon.runtime.glob("vm/*")) == []
        systemctl("reset-failed", unit, check=False)

    with unit_file("web.service", "Type=exec", SLEEP) as unit:
        done("enroll", unit, "web", "--disk", str(disk))
        for point in ("label-after", "folder-made", "reply-before"):
            armed(f"{point}@1=kill")
            assert "failed" in systemctl("start", unit, check=False), point
            settled(unit)
        for point in ("begin-after@2", "undo-after@1", "close-after@1"):
            armed(f"{point}=kill")
            systemctl("start", unit)
            wait_for("it runs", lambda: state(client) == "running")
            systemctl("stop", unit)
            settled(unit)
        systemctl("start", unit)
        systemctl("stop", unit)
        done("unenroll", unit)


def test_the_label_is_the_same_after_a_boot(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """The power is cut while it runs: nothing was told of its end, and no unit is there."""
    disk = image(tmp_path / "a.img")
    with unit_file("web.service", "Type=exec", SLEEP) as unit:
        done("enroll", unit, "web", "--disk", str(disk))
        systemctl("start", unit)
        wait_for("it runs", lambda: state(client) == "running")
        before = client.properties("web")
        with reboot(own_daemon):
            systemctl("kill", "--signal=KILL", unit)
            wait_for("the end", lambda: show(unit, "ActiveState")["ActiveState"] == "failed")
        assert state(client) == "reserved"
        assert label(disk) is None
        systemctl("reset-failed", unit)
        systemctl("start", unit)
        assert client.properties("web")["ProcessContext"] == before["ProcessContext"]
        assert show(unit, "SELinuxContext")["SELinuxContext"] == before["ProcessContext"]
        systemctl("stop", unit)
        done("unenroll", unit)


def test_what_cannot_be_enrolled(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    for name in ("svirtd.service", "dbus.service", "systemd-journald.service", "svirt-x.service"):
        assert client.error("Enroll", ENROLL, name, "vm", [], {}).name.endswith("InvalidArgs")
    for name in ("a", "a.socket", "../a.service", "a b.service", "a\n.service", "%n.service", ""):
        assert client.error("Enroll", ENROLL, name, "vm", [], {}).name.endswith("InvalidArgs")
    fd = Variant("h", 0)
    passed = client.error("Enroll", ENROLL, "a.service", "vm", [{"fd": fd}], {}, fds=[0])
    assert "by path" in passed.text
    for key in ("persistent", "lifetime", "override", "user"):
        options = {key: Variant("s", "x")}
        assert "unknown key" in client.error("Enroll", ENROLL, "a.service", "vm", [], options).text
    assert svirtctl("enroll", "not-there.service", "vm").returncode == 3
    # Somebody else's drop-in could not be written: said before anything is done.
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "svirtctl"]
    for command in (["enroll", "a", "vm"], ["unenroll", "a"], ["enrolled", "refresh"]):
        refused = subprocess.run([*drop, *command], capture_output=True, text=True, check=False)
        assert refused.returncode == 4, refused.stderr
    assert client.vms() == {}
    assert client.error("Unenroll", "sa{sv}", "a.service", {}).name.endswith("NoSuchVM")
