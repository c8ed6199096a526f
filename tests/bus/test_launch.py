# SPDX-License-Identifier: LGPL-2.1-or-later
"""Launch through the real systemd: units, their ends, channels; real QEMU processes."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, Variant
from tests.bus.faults import in_background
from tests.sandbox import Sandbox
from tests.support import VM, Client, Daemon, image, label, resources, svirt_units, wait_for

SLEEP = ["/bin/sleep", "1000"]
QEMU = [
    "/usr/bin/qemu-system-x86_64",
    "-machine",
    "none",
    "-nodefaults",
    "-nographic",
    "-S",
    "-qmp",
    "unix:{runtime}/qmp,server=on,wait=off",
]


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit as systemctl shows them."""
    out = subprocess.run(
        ["systemctl", "show", unit, "-p", ",".join(names)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def test_a_launched_vm_runs_as_a_unit_under_its_label(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    path, unit = client.launch("web 1", SLEEP, disk)
    assert (path, unit) == ("/org/svirt1/vm/web_201", "svirt-web\\x201.service")
    vm = client.properties("web 1")
    assert vm["State"] == "running"
    assert vm["Unit"] == unit
    assert label(disk) == vm["ImageContext"]
    unit_shows = show(
        unit,
        *("SELinuxContext", "MainPID", "Slice", "Type", "CollectMode", "ActiveState"),
        *("NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities"),
    )
    assert unit_shows == {
        "SELinuxContext": vm["ProcessContext"],
        "MainPID": str(vm["MainPID"]),
        "Slice": "machine.slice",
        "Type": "exec",
        "CollectMode": "inactive-or-failed",
        "ActiveState": "active",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
    }
    assert os.readlink(f"/proc/{vm['MainPID']}/exe").endswith("sleep")
    assert client.call("GetVMByPID", "u", vm["MainPID"]) == [path]
    client.release("web 1")
    assert not os.path.exists(f"/proc/{vm['MainPID']}")
    assert label(disk) is None


def test_arguments_arrive_as_they_were_given(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    odd = ["a b", "$HOME", "${HOME}", "%n", "%%", "\\x41", '"', "'", "", "\n", "{x}", "{{", ";"]
    out = tmp_path / "out"
    script = 'for a in "$@"; do printf "%s\\0" "$a"; done >"$OUT"; printf %s "$SVIRT_RUNTIME_DIR"; '
    script += "exec sleep 1000"
    client.launch(
        "vm",
        ["/bin/sh", "-c", script, "sh", *odd, "{runtime}/x"],
        environment=Variant("as", [f"OUT={out}", "B=a b$c"]),
    )
    runtime = client.properties("vm")["RuntimeDirectory"]
    want = "".join(f"{a}\0" for a in [*odd, f"{runtime}/x"]).encode()
    wait_for("the arguments", lambda: out.exists() and out.read_bytes() == want)
    client.release("vm")


def test_user_folder_and_properties(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    _, unit = client.launch(
        "vm",
        SLEEP,
        user=Variant("s", "nobody"),
        **{"working-directory": Variant("s", "/usr")},
        properties=Variant(
            "a{sv}",
            {
                "MemoryMax": Variant("t", 1 << 28),
                "TasksMax": Variant("t", 77),
                "Description": Variant("s", "my machine"),
            },
        ),
    )
    vm = client.properties("vm")
    assert os.stat(f"/proc/{vm['MainPID']}").st_uid == 65534
    assert os.readlink(f"/proc/{vm['MainPID']}/cwd") == "/usr"
    assert show(unit, "MemoryMax", "TasksMax", "Description", "User") == {
        "MemoryMax": str(1 << 28),
        "TasksMax": "77",
        "Description": "my machine",
        "User": "nobody",
    }
    folder = os.stat(vm["RuntimeDirectory"])
    assert (folder.st_uid, folder.st_mode & 0o777) == (65534, 0o700)
    assert label(vm["RuntimeDirectory"]) == vm["ImageContext"]
    client.release("vm")
    assert not os.path.exists(vm["RuntimeDirectory"])


@pytest.mark.parametrize("how", ["exit", "crash", "stop", "kill"])
def test_the_end_of_the_unit_gives_the_labels_back(
    daemon: Daemon, client: Client, tmp_path: Path, how: str
) -> None:
    disk = image(tmp_path / "a.img")
    go = tmp_path / "go"
    os.mkfifo(go)
    _, unit = client.launch("vm", ["/bin/sh", "-c", f"read line <{go}; exit 0"], disk)
    pid = client.properties("vm")["MainPID"]
    client.listen()
    match how:
        case "exit":
            go.write_text("now\n")
        case "crash":
            os.kill(pid, signal.SIGSEGV)
        case "stop":
            subprocess.run(["systemctl", "stop", unit], check=True)
        case "kill":
            os.kill(pid, signal.SIGKILL)
    wait_for("the removal", lambda: client.seen("VMRemoved"))
    assert [m.member for m in client.signals] == [
        "PropertiesChanged",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    assert label(disk) is None
    assert client.vms() == {}
    wait_for("the unit's collection", lambda: not svirt_units())


def test_a_unit_that_runs_out_of_memory(
    daemon: Daemon, client: Client, tmp_path: Path, sandbox: Sandbox
) -> None:
    """Where units can have the memory controller the kernel's OOM killer ends the VM; elsewhere
    the same signal is sent by hand, so that the path is walked on every machine."""
    disk = image(tmp_path / "a.img")
    client.listen()
    if "memory" in sandbox.controllers:
        limits = {"MemoryMax": Variant("t", 1 << 24), "MemorySwapMax": Variant("t", 0)}
        client.launch(
            "vm", ["/usr/bin/tail", "/dev/zero"], disk, properties=Variant("a{sv}", limits)
        )
    else:
        client.launch("vm", SLEEP, disk)
        os.kill(client.properties("vm")["MainPID"], signal.SIGKILL)
    wait_for("the removal", lambda: client.seen("VMRemoved"))
    assert label(disk) is None


def test_a_persistent_vm_is_reserved_after_its_end(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.launch("vm", SLEEP, disk, persistent=Variant("b", True))
    first = client.properties("vm")
    os.kill(first["MainPID"], signal.SIGKILL)
    wait_for("the reservation", lambda: client.vms() == {"vm": "reserved"})
    after = client.properties("vm")
    assert after["Categories"] == first["Categories"]
    assert (after["Unit"], after["MainPID"], after["RuntimeDirectory"]) == ("", 0, "")
    client.launch("vm", SLEEP, disk)
    assert client.properties("vm")["ProcessContext"] == first["ProcessContext"]
    client.release("vm")
    client.call("Forget", "sa{sv}", "vm", {})


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/bin/false"], "exit status 1"),
        (["/bin/true"], "ended at once"),
        (["/etc/fstab"], "cannot be run"),
    ],
)
def test_a_unit_that_does_not_start_leaves_nothing(
    daemon: Daemon, client: Client, tmp_path: Path, argv: list[str], text: str
) -> None:
    disk = image(tmp_path / "a.img")
    problem = None
    try:
        client.launch("vm", argv, disk)
    except BusError as error:
        problem = error
    if problem is not None:
        names = ("org.svirt1.Error.UnitFailed", "org.freedesktop.DBus.Error.InvalidArgs")
        assert problem.name in names
        assert text in problem.text
    # A command may live long enough to count as started; then it is a VM that ends at once.
    wait_for("nothing is left", lambda: client.vms() == {})
    assert label(disk) is None
    wait_for("no unit is left", lambda: not svirt_units())


@pytest.mark.parametrize("milliseconds", range(0, 50, 5))
def test_a_vm_that_ends_in_its_first_moments_is_not_left_running(
    daemon: Daemon, client: Client, milliseconds: int
) -> None:
    """Its end may come before, while and after the launch is entered as running."""
    try:
        client.launch("vm", ["/bin/sleep", f"0.{milliseconds:03}"])
    except BusError as error:
        assert error.name == "org.svirt1.Error.UnitFailed"  # noqa: PT017 -- either is right
    wait_for("nothing is left", lambda: client.vms() == {})


def test_a_script_without_an_interpreter_fails_with_the_units_result(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    script = tmp_path / "vm"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    disk = image(tmp_path / "a.img")
    refused = client.error("Launch", "sasaa{sv}a{sv}", "vm", [str(script)], resources(disk), {})
    assert refused.name == "org.svirt1.Error.UnitFailed"
    assert "result exit-code" in refused.text
    assert "203/EXEC" in refused.text
    assert label(disk) is None


def test_a_unit_name_that_is_taken(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    subprocess.run(["systemd-run", "-q", "--unit=svirt-vm", *SLEEP], check=True)
    refused = client.error("Launch", "sasaa{sv}a{sv}", "vm", SLEEP, resources(disk), {})
    assert refused.name == "org.svirt1.Error.UnitFailed"
    assert label(disk) is None
    # The other's unit is not ours to stop.
    assert show("svirt-vm.service", "ActiveState") == {"ActiveState": "active"}
    subprocess.run(["systemctl", "stop", "svirt-vm"], check=True)


def test_release_of_a_vm_that_does_not_want_to_stop(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """While a process runs under the label nothing is given back."""
    own_daemon.stop()
    with open(own_daemon.config, "a") as file:
        file.write("[launch]\nstop-timeout = 1\n")
    own_daemon.start()
    disk = image(tmp_path / "a.img")
    deaf = tmp_path / "deaf"
    argv = ["/bin/sh", "-c", f"trap '' TERM; : >{deaf}; while :; do sleep 0.1; done"]
    limits = Variant("a{sv}", {"TimeoutStopUSec": Variant("t", 1_000_000_000)})
    _, unit = client.launch("vm", argv, disk, properties=limits)
    wait_for("it does not heed the signal", deaf.exists)
    refused = client.error("Release", "sa{sv}", "vm", {})
    assert refused.name == "org.svirt1.Error.UnitFailed"
    assert "did not stop" in refused.text
    assert label(disk) is not None
    # In the end it is killed, as systemd does; then the labels come back.
    subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=True)
    wait_for("the end", lambda: client.vms() == {})
    assert label(disk) is None


def test_machined_shows_the_vm(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    client.launch("web 1", SLEEP)
    out = subprocess.run(
        ["machinectl", "show", "web-1"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pid = client.properties("web 1")["MainPID"]
    assert {"Class=vm", "Service=svirtd", f"Leader={pid}"} <= set(out)
    client.release("web 1")


def test_machined_has_forgotten_it_once_it_is_released(daemon: Daemon, client: Client) -> None:
    """It stops the unit of a machine that has ended, whoever runs in it by then: the next VM."""
    client.launch("vm", SLEEP)
    argv = ["systemctl", "show", "-P", "MainPID", "systemd-machined.service"]
    machined = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    os.kill(machined, signal.SIGSTOP)
    with in_background(lambda c: c.release("vm")) as released:
        try:
            wait_for("the unit is gone", lambda: not svirt_units())
            assert not released.done()
        finally:
            os.kill(machined, signal.SIGCONT)
    released.result()
    listed = subprocess.run(
        ["machinectl", "--no-legend", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert listed == ""


def test_qmp_through_open_channel(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    drive = ["-drive", f"file={disk},format=raw,if=none,id=d0"]
    path, _ = client.launch("vm", [*QEMU, *drive], disk)

    def connect() -> socket.socket | None:
        try:
            reply = client.message("OpenChannel", "sa{sv}", "qmp", {}, path=path, interface=VM)
        except BusError as error:
            if error.name != "org.svirt1.Error.ResourceRefused":
                raise
            return None  # QEMU has not made it yet
        return socket.socket(fileno=reply.unix_fds[0])

    with wait_for("QMP", connect) as stream:
        stream.settimeout(20)
        lines = stream.makefile("rw")
        assert "QMP" in json.loads(lines.readline())
        for command in ("qmp_capabilities", "query-block"):
            lines.write(json.dumps({"execute": command}) + "\n")
            lines.flush()
            answer = json.loads(lines.readline())
        lines.close()
    assert answer["return"][0]["inserted"]["file"] == str(disk)
    client.release("vm")
    assert label(disk) is None


def test_open_channel_does_not_follow_what_the_vm_planted(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    path, _ = client.launch("vm", SLEEP)
    runtime = Path(client.properties("vm")["RuntimeDirectory"])
    host = tmp_path / "host.sock"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(host))
        service.listen()
        (runtime / "link").symlink_to(host)
        os.link(host, runtime / "hard") if os.stat(runtime).st_dev == os.stat(
            tmp_path
        ).st_dev else None
        (runtime / "file").write_text("")
        os.mkfifo(runtime / "fifo")
        for name in ("link", "hard", "file", "fifo", "missing"):
            refused = client.error("OpenChannel", "sa{sv}", name, {}, path=path, interface=VM)
            assert refused.name == "org.svirt1.Error.ResourceRefused", name
        for name in ("../vm", "", ".", "a/b", "a\nb", "x" * 100):
            refused = client.error("OpenChannel", "sa{sv}", name, {}, path=path, interface=VM)
            assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs", name
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.accept()
    client.release("vm")


def test_launch_holds_and_ends_with_its_caller(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    caller = Client()
    caller.launch("vm", SLEEP, disk, lifetime=Variant("s", "caller"))
    pid = client.properties("vm")["MainPID"]
    caller.close()
    wait_for("the end", lambda: client.vms() == {})
    assert not os.path.exists(f"/proc/{pid}")
    assert label(disk) is None
