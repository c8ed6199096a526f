# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl as a process against the real daemon, systemd and QEMU: each command, text and JSON."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from svirtd.ctl.failures import Exit
from tests import svirtctl
from tests.sandbox.accounts import NOBODY
from tests.support import REPO, Client, Daemon, image, label, set_label, svirt_units, wait_for
from tests.svirtctl import CTL

QEMU = [
    "qemu-system-x86_64",
    "-machine",
    "none",
    "-nodefaults",
    "-nographic",
    "-S",
    "-qmp",
    "unix:{runtime}/qmp,server=on,wait=off",
]
UNIT_PROPERTIES = "MemoryMax,CPUQuotaPerSecUSec,TasksMax,RuntimeMaxUSec,WorkingDirectory,User"
NOT_ENFORCED = "NOT ENFORCED"
DEADLINE_S = 60.0


class Ctl:
    """Runs svirtctl in a folder and keeps what it started for the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"PYTHONPATH": str(REPO)}
        self.started: list[subprocess.Popen[str]] = []

    def run(
        self, *arguments: str, given: str = "", nobody: bool = False
    ) -> subprocess.CompletedProcess[str]:
        user = NOBODY.uid if nobody else 0
        return svirtctl.run(*arguments, given=given, env=self.env, cwd=self.folder, user=user)

    def text(self, *arguments: str, given: str = "") -> str:
        """Run what must succeed and return its output."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run what must succeed with --json and return the document."""
        done = self.run("--json", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def refused(self, code: Exit, *arguments: str, nobody: bool = False) -> dict[str, str]:
        """Run what must fail, as text and as JSON, and return the latter."""
        done = self.run(*arguments, nobody=nobody)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("svirtctl: ")
        assert done.stderr.count("\n") == 1
        again = self.run("--json", *arguments, nobody=nobody)
        assert (again.returncode, again.stdout) == (code, "")
        error: dict[str, str] = json.loads(again.stderr)
        assert set(error) == {"error", "message"}
        return error

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*CTL, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.env,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def ctl(daemon: Daemon, tmp_path: Path) -> Iterator[Ctl]:
    """svirtctl in the test's own folder; its VMs are the test's to release."""
    found = Ctl(tmp_path)
    yield found
    found.end()


def has_output(process: subprocess.Popen[str], wait_s: float = 0.1) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], wait_s)[0])


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of output, within a deadline; not by readline, which hides what follows."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        assert has_output(process, DEADLINE_S), f"no line came, only {line!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"the output ended after {line!r}"
        line += byte
    return line.decode()


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Press Ctrl-C and return exit code and the rest of the output."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def test_launch_show_release(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    shared = image(tmp_path / "b:c.img")
    done = ctl.run(
        *("launch", "web 1", "--disk", "a.img", "--disk", "b:c.img:public"),
        *("--env", "A=b c", "--workdir", ".", "--user", "root"),
        *("--property", "MemoryMax=512M", "--property", "CPUQuota=50%"),
        *("--property", "TasksMax=64", "--property", "RuntimeMaxSec=1h"),
        *("--", *QEMU),
    )
    assert (done.returncode, done.stdout) == (0, "web 1 runs in svirt-web\\x201.service\n")
    assert done.stderr.startswith(NOT_ENFORCED)
    vm = client.properties("web 1")
    assert (vm["State"], vm["Unit"]) == ("running", "svirt-web\\x201.service")
    assert label(disk) == vm["ImageContext"]
    assert label(shared) is not None
    unit = subprocess.run(
        ["systemctl", "show", vm["Unit"], "-p", UNIT_PROPERTIES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(unit.splitlines()) == {
        f"MemoryMax={512 << 20}",
        "CPUQuotaPerSecUSec=500ms",
        "TasksMax=64",
        "RuntimeMaxUSec=1h",
        f"WorkingDirectory={tmp_path}",
        "User=root",
    }
    environ = Path(f"/proc/{vm['MainPID']}/environ").read_bytes().split(b"\0")
    assert b"A=b c" in environ
    shown = ctl.text("show", "web 1")
    assert shown.startswith(NOT_ENFORCED)
    for wanted in (vm["ProcessContext"], vm["Id"], str(disk), "running", f"public     {shared}"):
        assert wanted in shown
    document = ctl.json("show", "web 1")
    assert document.pop("enforced") is False
    assert document["main_pid"] == vm["MainPID"]
    assert document["resources"] == vm["Resources"]
    assert len(document) == len(vm)
    assert ctl.text("release", "web 1") == "web 1 is released\n"
    assert (label(disk), label(shared)) == (None, None)
    assert client.vms() == {}


def test_json_of_launch_and_list(ctl: Ctl) -> None:
    launched = ctl.json("launch", "web", "--", "sleep", "1000")
    assert launched == {
        "name": "web",
        "vm": "/org/svirt1/vm/web",
        "unit": "svirt-web.service",
        "enforced": False,
    }
    assert ctl.json("list") == {
        "enforced": False,
        "vms": [
            {
                "name": "web",
                "state": "running",
                "unit": "svirt-web.service",
                "owner": 0,
                "path": "/org/svirt1/vm/web",
            }
        ],
    }
    assert ctl.json("release", "web") == {"name": "web"}
    assert ctl.json("list") == {"enforced": False, "vms": []}


def test_foreign(ctl: Ctl) -> None:
    """Without SELinux nobody has a set; what it shows where there is one is in the unit tests."""
    assert ctl.text("foreign") == "Nobody else uses a set of categories.\n"
    assert ctl.json("foreign") == {"foreign": []}


def test_matrix(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    says = "NOT ASKED OF A POLICY: this kernel has no SELinux; answered by what labels mean.\n"
    ours, theirs = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("one", ours)
    client.acquire("two", theirs)
    told = ctl.text("matrix")
    assert told.endswith(f"\n6 questions, 0 with a surplus, 0 with a shortfall.\n{says}")
    assert told.startswith(NOT_ENFORCED)
    lines = [line.split() for line in told.splitlines()]
    assert ["one", str(ours), *("append", "read", "write") * 2, "as", "granted"] in lines
    assert str(theirs) not in [line[1] for line in lines if line[:1] == ["one"]]
    everything = [line.split() for line in ctl.text("matrix", "--all").splitlines()]
    assert ["one", str(theirs), "-", "-", "as", "granted"] in everything
    assert ["two", "VM", "one", "-", "-", "as", "granted"] in everything
    assert ctl.text("matrix", "--dot").startswith("digraph svirt {\n")
    drawn = ElementTree.fromstring(ctl.text("matrix", "--svg"))
    texts = [one.text for one in drawn.iter() if one.tag.endswith("}text")]
    assert {"one", "two", str(ours), str(theirs)} <= set(texts)
    assert any(text and text.startswith(NOT_ENFORCED) for text in texts)
    document = ctl.json("matrix")
    assert document["enforced"] is False
    cells = document["cells"]
    assert len(cells) == 6
    assert {one["by"] for one in cells} == {"algebra"}
    assert ctl.refused(Exit.PERMISSION, "matrix", nobody=True)["error"].endswith("Denied")
    for name in ("one", "two"):
        client.release(name)


def test_acquire_plan_owners(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    plan = ctl.text("plan", "web", "--disk", "a.img")
    would = client.call("Plan", "saa{sv}a{sv}", "web", [], {})
    assert [one["goal"].value for one in would[0]] == ["isolated"]
    assert str(disk) in plan
    assert re.search(r"^Goal +isolated$", plan, re.M)
    assert label(disk) is None
    planned = ctl.json("plan", "web", "--disk", "a.img")
    (step,) = planned["steps"]
    assert planned["goal"]["goal"] == "isolated"
    assert (step["path"], step["access"], step["from"]) == (str(disk), "exclusive", "")
    done = ctl.run(
        "acquire", "web", "--disk", "a.img", "--uuid", "0" * 8 + "-0000-0000-0000-" + "0" * 12
    )
    assert (done.returncode, done.stdout) == (0, "web holds 1 resource\n")
    assert done.stderr.startswith(NOT_ENFORCED)
    vm = client.properties("web")
    assert vm["UUID"].startswith("00000000-")
    for what in ("a.img", str(disk), vm["Categories"], vm["ImageContext"]):
        assert "web" in ctl.text("owners", what)
        assert [one["vm"] for one in ctl.json("owners", what)["owners"]] == ["web"]
    assert ctl.text("owners", "/etc/hostname") == "No VM holds it.\n"

    busy = ctl.refused(Exit.BUSY, "acquire", "other", "--disk", "a.img")
    assert busy["error"] == "org.svirt1.Error.ResourceBusy"
    assert "'web'" in busy["message"]
    refused = ctl.run("plan", "other", "--disk", "a.img")
    assert refused.returncode == Exit.BUSY
    assert "Refused: " in refused.stdout
    again = ctl.run("--json", "plan", "other", "--disk", "a.img")
    assert again.returncode == Exit.BUSY
    assert json.loads(again.stdout)["steps"][0]["error"] == "org.svirt1.Error.ResourceBusy"
    assert ctl.refused(Exit.BUSY, "acquire", "web")["error"] == "org.svirt1.Error.VMExists"
    ctl.text("release", "web")
    assert label(disk) is None


def test_persistent_and_forget(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    image(tmp_path / "a.img")
    acquired = ctl.json("acquire", "web", "--persistent", "--disk", "a.img")
    assert acquired == {"name": "web", "vm": "/org/svirt1/vm/web", "enforced": False}
    assert ctl.refused(Exit.REFUSED, "forget", "web")["error"] == "org.svirt1.Error.Failed"
    ctl.text("release", "web")
    assert client.vms() == {"web": "reserved"}
    assert "reserved" in ctl.text("list")
    assert ctl.text("forget", "web") == "web is forgotten\n"
    assert client.vms() == {}


def test_a_rule_is_lifted(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    os.link(disk, tmp_path / "other.img")
    refused = ctl.refused(Exit.REFUSED, "acquire", "web", "--disk", "a.img")
    assert "hard links" in refused["message"]
    ctl.text("acquire", "web", "--disk", "a.img", "--override", "links", "--override", "owner")
    assert label(disk) == client.properties("web")["ImageContext"]
    ctl.text("release", "web")
    assert ctl.run("acquire", "web", "--override", "type").returncode == Exit.USAGE


def test_refusals_have_their_exit_codes(ctl: Ctl, tmp_path: Path) -> None:
    for command in (["show"], ["release"], ["forget"]):
        error = ctl.refused(Exit.NOT_FOUND, *command, "none")
        assert error["error"] == "org.svirt1.Error.NoSuchVM"
    assert ctl.refused(Exit.NOT_FOUND, "channel", "none", "qmp")["error"].endswith("NoSuchVM")
    # What ends at once may be there when it is looked at; this never runs.
    (tmp_path / "nonsense").write_bytes(b"\0")
    (tmp_path / "nonsense").chmod(0o755)
    failed = ctl.refused(Exit.REFUSED, "launch", "web", "--", str(tmp_path / "nonsense"))
    assert failed["error"] == "org.svirt1.Error.UnitFailed"
    unknown = ctl.refused(
        Exit.REFUSED, "launch", "web", "--property", "SELinuxContext=x", "--", "/bin/true"
    )
    assert "SELinuxContext" in unknown["message"]
    refused = ctl.refused(Exit.REFUSED, "acquire", "web", "--disk", "/dev/null")
    assert refused["error"] == "org.svirt1.Error.ResourceRefused"
    name = ctl.refused(Exit.REFUSED, "acquire", "\x1b[2J")
    assert "\\x1b" in name["message"]


def test_a_stranger_is_not_permitted(ctl: Ctl, client: Client) -> None:
    client.acquire("web")
    error = ctl.refused(Exit.PERMISSION, "release", "web", nobody=True)
    assert error["error"] == "org.freedesktop.DBus.Error.AccessDenied"
    client.release("web")


def test_status(ctl: Ctl, client: Client) -> None:
    text = ctl.text("status")
    manager = client.manager()
    assert text.startswith(NOT_ENFORCED)
    assert f"of {manager['PairsTotal']}" in text
    document = ctl.json("status")
    assert document["enforced"] is False
    assert document["selinux_mode"] == manager["SELinuxMode"]
    assert document["pairs_total"] == manager["PairsTotal"]
    assert len(document) == len(manager)


def test_hostile_label_is_escaped(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    set_label(disk, "u:r:\x1b]0;owned\x07:s0")
    done = ctl.run("plan", "web", "--disk", "a.img")
    assert "\\x1b]0;owned\\x07" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    raw = ctl.run("plan", "web", "--disk", "a.img", "--json")
    assert json.loads(raw.stdout)["steps"][0]["from"] == "u:r:\x1b]0;owned\x07:s0"
    assert "\x1b" not in raw.stdout
    os.removexattr(disk, "security.selinux")


@pytest.fixture
def qemu(ctl: Ctl) -> Iterator[str]:
    """A VM with a QEMU monitor that takes connections."""
    ctl.text("launch", "web", "--", *QEMU)
    folder = Path(ctl.json("show", "web")["runtime_directory"])
    wait_for("the monitor's socket", (folder / "qmp").is_socket)
    yield "web"
    ctl.text("release", "web")


def test_channel_from_a_pipe(ctl: Ctl, qemu: str) -> None:
    asked = '{"execute": "qmp_capabilities"}\n{"execute": "query-status"}\n'
    lines = ctl.text("channel", qemu, "qmp", given=asked).splitlines()
    assert "QMP" in json.loads(lines[0])
    assert json.loads(lines[1]) == {"return": {}}
    assert json.loads(lines[2])["return"]["running"] is False


def test_channel_ends_with_the_peer(ctl: Ctl, qemu: str) -> None:
    asked = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
    # An hour of lingering: only the end of QEMU can end this.
    out = ctl.text("channel", qemu, "qmp", "--linger", "3600", given=asked)
    assert '"SHUTDOWN"' in out
    wait_for("the release", lambda: not ctl.json("list")["vms"])
    ctl.text("launch", qemu, "--", "sleep", "1000")


def test_channel_interactively(ctl: Ctl, qemu: str) -> None:
    process = ctl.start("channel", qemu, "qmp")
    assert "QMP" in json.loads(line_of(process))
    assert process.stdin is not None
    for asked, key in (
        ("qmp_capabilities", None),
        ("query-name", None),
        ("query-status", "status"),
    ):
        process.stdin.write(json.dumps({"execute": asked}) + "\n")
        process.stdin.flush()
        answer = json.loads(line_of(process))["return"]
        assert key is None or key in answer
    code, _, err = interrupted(process)
    assert code == Exit.INTERRUPTED
    assert "interrupted" in err


def test_channel_on_a_terminal(ctl: Ctl, qemu: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPO)
        os.execv(sys.executable, [*CTL, "channel", qemu, "qmp", "--linger", "0.2"])
    seen = b""

    def read_until(done: Callable[[], bool]) -> None:
        nonlocal seen
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # the other side of a terminal is gone
                    return

    try:
        read_until(lambda: b"QMP" in seen)
        os.write(terminal, b'{"execute": "qmp_capabilities"}\n')
        read_until(lambda: b'{"return": {}}' in seen)
        os.write(terminal, b"\x04")  # Ctrl-D
        read_until(lambda: False)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_channel_that_is_not_there(ctl: Ctl, qemu: str) -> None:
    assert "no socket" in ctl.refused(Exit.REFUSED, "channel", qemu, "serial")["message"]
    assert ctl.refused(Exit.REFUSED, "channel", qemu, "../x")["error"].endswith("InvalidArgs")


def test_monitor(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    text, lines = ctl.start("monitor"), ctl.start("monitor", "--json")

    def heard() -> bool:
        client.acquire("probe")
        client.release("probe")
        return all(has_output(one) for one in (text, lines))

    wait_for("both monitors listen", heard)
    client.listen()
    client.acquire("web", disk)
    set_label(disk, "u:r:changed_t:s0")
    wait_for("the watch tells of it", lambda: client.seen("DriftFound"))
    # Anybody may send us a signal directly, or under the same name from another connection.
    fake = ["busctl", "emit", "/org/svirt1", "org.svirt1.Manager", "VMAdded", "so"]
    subprocess.run([*fake, "fake", "/org/svirt1/vm/fake"], check=True)
    client.release("web")
    events: list[dict[str, Any]] = []
    while not events or (events[-1]["event"], events[-1].get("name")) != ("VMRemoved", "web"):
        events.append(json.loads(line_of(lines)))
    mine = [one for one in events if "probe" not in json.dumps(one)]
    assert [one["event"] for one in mine] == [
        "InterfacesAdded",
        "VMAdded",
        "DriftFound",
        "PropertiesChanged",
        "DriftFound",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    assert mine[1]["name"] == "web"
    assert mine[2]["finding"]["found"] == "u:r:changed_t:s0"
    assert mine[3]["changed"] == {"state": "releasing"}
    assert mine[4]["finding"]["found"] == "u:r:changed_t:s0"
    assert "fake" not in json.dumps(events)
    code, out, err = interrupted(lines)
    assert (code, out, err) == (0, "", "")
    while "VMRemoved         web" not in (said := line_of(text)):
        assert said[:4].isdigit()
        assert "fake" not in said
    code, out, err = interrupted(text)
    assert (code, out, err) == (0, "", "")
    os.removexattr(disk, "security.selinux")


def test_lifetime_of_the_caller_ends_with_ctrl_c(ctl: Ctl, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    process = ctl.start("acquire", "web", "--disk", "a.img", "--lifetime", "caller")
    assert line_of(process) == "web holds 1 resource\n"
    assert label(disk) is not None
    assert interrupted(process)[0] == 0
    wait_for("the release", lambda: client.vms() == {})
    assert label(disk) is None


def test_lifetime_of_the_caller_ends_with_the_vm(ctl: Ctl, client: Client) -> None:
    process = ctl.start("--json", "launch", "web", "--lifetime", "caller", "--", "sleep", "1000")
    pid = wait_for("the start", lambda: client.vms() and client.properties("web")["MainPID"])
    os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert json.loads(out)["name"] == "web"
    wait_for("the unit's collection", lambda: not svirt_units())


def test_lifetime_of_the_caller_and_a_persistent_vm(
    ctl: Ctl, client: Client, tmp_path: Path
) -> None:
    image(tmp_path / "a.img")
    process = ctl.start("acquire", "web", "--persistent", "--lifetime", "caller", "--disk", "a.img")
    line_of(process)
    assert client.vms() == {"web": "labelled"}
    client.release("web")
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert client.vms() == {"web": "reserved"}
    ctl.text("forget", "web")


def test_lifetime_of_the_caller_without_disks(ctl: Ctl, client: Client) -> None:
    process = ctl.start("acquire", "web", "--lifetime", "caller")
    assert line_of(process) == "web holds 0 resources\n"
    # Anything it does wrong, it does when it hears of an event.
    client.acquire("other")
    client.release("other")
    assert client.vms() == {"web": "reserved"}
    assert interrupted(process)[0] == 0
    wait_for("the release", lambda: client.vms() == {})


def test_completion_of_names(ctl: Ctl) -> None:
    ctl.text("acquire", "web-one")
    ctl.env |= {"_SVIRTCTL_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    ctl.env["COMP_WORDS"] = "svirtctl show we"
    out = ctl.text()
    del ctl.env["_SVIRTCTL_COMPLETE"]
    ctl.text("release", "web-one")
    assert out.split() == ["plain,web-one"]


def test_a_terminal_gets_colour_unless_it_is_told_not_to(ctl: Ctl) -> None:
    ctl.text("launch", "web", "--", "sleep", "1000")

    def on_terminal(*arguments: str, **environment: str) -> bytes:
        ours, theirs = pty.openpty()
        done = subprocess.run(
            [*CTL, *arguments],
            stdout=theirs,
            stdin=subprocess.DEVNULL,
            cwd=REPO,
            env=ctl.env | {"TERM": "xterm"} | environment,
            timeout=DEADLINE_S,
            check=False,
        )
        os.close(theirs)
        out = os.read(ours, 65536)
        os.close(ours)
        assert done.returncode == 0
        return out

    try:
        assert b"\x1b[32mrunning" in on_terminal("list")
        assert b"\x1b" not in on_terminal("--no-color", "list")
        assert b"\x1b" not in on_terminal("list", NO_COLOR="1")
        assert b"\x1b" not in on_terminal("list", TERM="dumb")
        assert b"\x1b" not in on_terminal("list", "--json")
        assert "\x1b" not in ctl.text("list")
    finally:
        ctl.text("release", "web")


def test_whoever_reads_the_output_may_go(ctl: Ctl) -> None:
    script = f"{' '.join(CTL)} status | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("0", str(int(Exit.BROKEN_PIPE)))
    assert done.stderr == ""


def test_daemon_that_goes_and_comes_back(own_daemon: Daemon, tmp_path: Path) -> None:
    ctl = Ctl(tmp_path)
    monitor = ctl.start("--json", "monitor")
    disk = image(tmp_path / "a.img")
    holder = ctl.start("acquire", "web", "--disk", "a.img", "--lifetime", "caller")
    try:
        line_of(holder)

        def heard() -> bool:
            ctl.text("acquire", "probe")
            ctl.text("release", "probe")
            return has_output(monitor)

        wait_for("the monitor listens", heard)
        own_daemon.stop()
        while json.loads(line_of(monitor))["event"] != "Stopped":
            pass
        error = ctl.refused(Exit.UNREACHABLE, "list")
        assert "svirtd" in error["message"]
        assert holder.poll() is None
        own_daemon.start()
        assert json.loads(line_of(monitor))["event"] == "Started"
        assert label(disk) is not None
        ctl.text("release", "web")
        holder.communicate(timeout=DEADLINE_S)
        assert holder.returncode == 0
        assert interrupted(monitor)[0] == 0
        assert label(disk) is None
    finally:
        ctl.end()
