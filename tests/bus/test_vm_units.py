# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirt-vm@NAME.service: a VM as a file, as a new user has it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.enrolled import UNITS, done, install_svirtctl, show, svirtctl, systemctl
from tests.sandbox import Sandbox
from tests.support import REPO, Client, Daemon, image, label, wait_for

FOLDER = Path("/etc/svirtd/vms.d")
UNIT = "svirt-vm@web.service"


@pytest.fixture(autouse=True)
def template(sandbox: object) -> Iterator[None]:
    """The template as it is installed, but for where svirtctl is. Tests stop what they start."""
    install_svirtctl()
    FOLDER.mkdir(exist_ok=True)
    text = (REPO / "units" / "svirt-vm@.service").read_text("utf-8")
    # Here the program is a checkout's, wherever that lies.
    text = text.replace("/usr/bin/svirtctl", "svirtctl").replace("ProtectHome=yes\n", "")
    UNITS.mkdir(parents=True, exist_ok=True)
    path = UNITS / "svirt-vm@.service"
    path.write_text(text.replace("PrivateTmp=yes\n", ""), "utf-8")
    systemctl("daemon-reload")
    yield
    systemctl("disable", "--now", UNIT, check=False)
    systemctl("reset-failed", UNIT, check=False)
    path.unlink()
    for one in FOLDER.iterdir():
        one.unlink()
    systemctl("daemon-reload")


def write(text: str) -> None:
    path = FOLDER / "web.toml"
    path.write_text(text, "utf-8")
    path.chmod(0o644)


def test_one_command_is_all_that_it_takes(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    write(f'command = ["/bin/sleep", "1000"]\n[[disk]]\npath = "{disk}"\n')
    systemctl("enable", "--now", UNIT)
    vm = client.properties("web")
    assert (vm["State"], vm["Persistent"], vm["Unit"]) == ("running", True, "svirt-web.service")
    assert label(disk) == vm["ImageContext"]
    assert show(UNIT, "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": "runs as svirt-web.service",
    }
    # As a reboot does.
    systemctl("stop", UNIT)
    assert client.vms() == {"web": "reserved"}
    assert label(disk) is None
    # Edited: what is there is taken at the next start, under the same set.
    write('command = ["/bin/sleep", "2000"]\ngoal = "offline"\n')
    systemctl("start", UNIT)
    again = client.properties("web")
    assert again["Categories"] == vm["Categories"]
    assert again["Goal"] == "offline"
    assert label(disk) is None
    systemctl("disable", "--now", UNIT)
    assert client.vms() == {}


def test_it_ends_as_the_vm_does(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk, go = image(tmp_path / "a.img"), tmp_path / "go"
    os.mkfifo(go)
    write(
        f'command = ["/bin/sh", "-c", "read line <{go}; exit $line"]\n[[disk]]\npath = "{disk}"\n'
    )
    for said, state, status in (("7", "failed", "7"), ("0", "inactive", "0")):
        systemctl("start", UNIT)
        go.write_text(f"{said}\n")
        ended = {"ActiveState": state}
        wait_for("the end", lambda wanted=ended: show(UNIT, "ActiveState") == wanted)  # type: ignore[misc]
        assert show(UNIT, "ExecMainStatus") == {"ExecMainStatus": status}
        assert label(disk) is None
        # It was not enabled: nothing of it is kept.
        assert client.vms() == {}
    systemctl("start", UNIT)
    os.kill(client.properties("web")["MainPID"], signal.SIGKILL)
    wait_for("the end", lambda: show(UNIT, "ActiveState") == {"ActiveState": "failed"})
    assert show(UNIT, "ExecMainStatus") == {"ExecMainStatus": str(128 + signal.SIGKILL)}
    # And the VM does with it, however that ends.
    systemctl("start", UNIT)
    pid = client.properties("web")["MainPID"]
    systemctl("kill", "--signal=KILL", UNIT)
    wait_for("the end of the VM", lambda: client.vms() == {})
    assert not os.path.exists(f"/proc/{pid}")
    assert label(disk) is None
    # Somebody else ends it: no failure.
    systemctl("reset-failed", UNIT, check=False)
    systemctl("start", UNIT)
    client.release("web")
    wait_for("the end", lambda: show(UNIT, "ActiveState") == {"ActiveState": "inactive"})


def test_it_stays_while_svirtd_is_restarted(own_daemon: Daemon, client: Client) -> None:
    write('command = ["/bin/sleep", "1000"]\n')
    own_daemon.stop()
    # What the unit asks first once its VM runs is not answered.
    own_daemon.failpoints = "reply-before@3=kill"
    own_daemon.start()
    systemctl("start", UNIT)
    assert own_daemon.process is not None
    assert own_daemon.process.wait(20) == -signal.SIGKILL
    own_daemon.process, own_daemon.failpoints = None, ""
    own_daemon.start()
    pid = client.properties("web")["MainPID"]
    for end in (own_daemon.stop, own_daemon.kill, own_daemon.stop):
        end()
        own_daemon.start()
        assert client.properties("web")["MainPID"] == pid
        assert show(UNIT, "ActiveState") == {"ActiveState": "active"}
    systemctl("stop", UNIT)
    assert client.vms() == {}


def log() -> str:
    """What the journal has of the unit by now: what a process has written comes there later."""
    argv = ["journalctl", "-q", "-o", "cat", "-n", "20", "-u", UNIT]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_what_cannot_be_run_does_not_start(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    assert "failed" in systemctl("start", UNIT, check=False).lower()
    for text, says in (
        ("commando = 1\n", "commando: unknown key"),
        ('command = ["/bin/true"]\ngoal = "none"\n', "goal: 'none' is not known"),
        ('command = ["/bin/true"]\n[properties]\nExecStart = "x"\n', "may not be set"),
        ('command = ["/bin/true"]\n[[disk]]\npath = "/nowhere"\n', "/nowhere"),
    ):
        write(text)
        assert "failed" in systemctl("start", UNIT, check=False)
        wait_for("it is told", lambda words=says: words in log())  # type: ignore[misc]
        systemctl("reset-failed", UNIT)
    assert client.vms() == {}


def test_qemus_options_start_a_qemu(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    write(
        '[qemu]\nmemory = "64M"\naccel = "tcg"\narguments = ["-S"]\nshutdown-timeout = 0\n'
        f'[[disk]]\npath = "{disk}"\nid = "root"\n'
    )
    shown = json.loads(done("--json", "run", "--check", "web"))["command"]
    assert shown[0] == "/usr/bin/qemu-system-x86_64"
    assert client.vms() == {}
    systemctl("start", UNIT)
    asked = '{"execute": "qmp_capabilities"}{"execute": "query-block"}'

    def answer() -> str:
        argv = ["svirtctl", "channel", "web", "qmp"]
        talk = subprocess.run(argv, input=asked, capture_output=True, text=True, check=False)
        # The unit is up once its command is executed: QEMU takes a moment more to listen.
        assert talk.returncode == 0 or "no socket" in talk.stderr, talk.stderr
        return talk.stdout

    wait_for("the monitor tells of its disk", lambda: str(disk) in answer())
    systemctl("stop", UNIT)
    assert label(disk) is None


# Does what QEMU does when a power button is pressed, once it was told to.
MONITOR = """#!/usr/bin/python3
import json, os, socket, sys
path = sys.argv[sys.argv.index("-qmp") + 1].split(":", 1)[1].split(",")[0]
with socket.socket(socket.AF_UNIX) as server:
    server.bind(path + ".new")
    server.listen()
    os.rename(path + ".new", path)
    stream = server.accept()[0].makefile("rw")
    stream.write('{"QMP": {}}\\n')
    while True:
        stream.flush()
        said = json.loads(stream.readline())["execute"]
        stream.write('{"return": {}}\\n')
        if said == "system_powerdown":
            open(sys.argv[-1], "w").write(said)
            sys.exit(0)
"""


def test_a_stop_presses_the_power_button(daemon: Daemon, client: Client, sandbox: Sandbox) -> None:
    program, told = sandbox.state / "qemu", sandbox.state / "told"
    program.write_text(MONITOR, "utf-8")
    program.chmod(0o755)
    write(f'[qemu]\nprogram = "{program}"\narguments = ["{told}"]\n')
    systemctl("start", UNIT)
    folder = Path(client.properties("web")["RuntimeDirectory"])
    wait_for("the monitor", (folder / "qmp").exists)
    systemctl("stop", UNIT)
    assert told.read_text("utf-8") == "system_powerdown"
    assert client.vms() == {}
    assert show(UNIT, "Result") == {"Result": "success"}
    for path in (program, told):
        path.unlink()


def test_a_directory_is_the_vms(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x", "utf-8")
    write(f'command = ["/bin/sleep", "1000"]\n[[disk]]\npath = "{tree}"\nrecursive = true\n')
    systemctl("start", UNIT)
    image_context = client.properties("web")["ImageContext"]
    assert label(tree / "file") == label(tree) == image_context
    systemctl("stop", UNIT)
    assert label(tree / "file") is None
    assert label(tree) is None


def test_a_name_that_is_no_vms(daemon: Daemon) -> None:
    for name in ("../web", "a/b", "", "-x"):
        assert svirtctl("run", "--", name).returncode == 2
    assert svirtctl("run", "gone").returncode == 2
