# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs of the tests: real QEMU processes, and ones whose guest has broken out."""

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from svirtd.core.mcs import parse_context
from svirtd.host.bus import BusError, Variant
from tests.support import VM, Client, resources, set_label, wait_for

SIZE: Final = 1 << 20
FOLDER: Final = Path("/srv/vm")
ORIGINAL: Final = "unconfined_u:object_r:virt_image_t:s0"
QEMU: Final = "/usr/bin/qemu-system-x86_64"
# A copy of Python that the policy takes for QEMU.
CAPTIVE: Final = Path("/usr/local/bin/captive")
# Emulated in an emulated machine: a QEMU takes seconds to come up.
_START_S: Final = 60.0


def disk(name: str, context: str = ORIGINAL) -> Path:
    """Make a disk image that carries `context`."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.img"
    path.unlink(missing_ok=True)
    # No holes: what is not there would not be read.
    path.write_bytes(b"disk" * (SIZE // 4))
    set_label(path, context)
    return path


def node(path: Path | str, name: str, *, read_only: bool = False) -> dict[str, Any]:
    """Return QEMU's description of an image as a block device of its own."""
    # Locks are another kind of access, and asked for first; the tests are about reads and writes.
    file = {"driver": "file", "filename": str(path), "locking": "off"}
    return {"driver": "raw", "node-name": name, "read-only": read_only, "file": file}


def qemu(
    *disks: Path, machine: str = "none", devices: bool = False, read_only: Sequence[Path] = ()
) -> list[str]:
    """Return a command that runs QEMU with these disks as d0, d1 … and a monitor.

    With `devices` its guest has each as a device, too.
    """
    argv = [QEMU, "-machine", machine, "-nodefaults", "-display", "none", "-m", "32"]
    argv += ["-qmp", "unix:{runtime}/qmp,server=on,wait=off"]
    for number, path in enumerate([*disks, *read_only]):
        argv += ["-blockdev", json.dumps(node(path, f"d{number}", read_only=path in read_only))]
        if devices:
            argv += ["-device", f"virtio-blk-pci,drive=d{number}"]
    return argv


def captive() -> list[str]:
    """Return a command that runs captive.py."""
    if not CAPTIVE.exists():
        shutil.copy(Path("/usr/bin/python3").resolve(), CAPTIVE)
        set_label(CAPTIVE, "system_u:object_r:qemu_exec_t:s0")
    # Where every VM may read what it runs: not all may read what lies about in /srv.
    program = Path("/usr/local/share/captive.py")
    shutil.copy(Path(__file__).with_name("captive.py"), program)
    set_label(program, "system_u:object_r:usr_t:s0")
    return [str(CAPTIVE), "-I", "-S", str(program), "{runtime}/control"]


class Machine:
    """A VM that svirtd started and that can be talked to through a channel."""

    def __init__(self, client: Client, name: str, socket_name: str) -> None:
        self.client = client
        self.name = name
        shown = client.properties(name)
        self.pid: int = shown["MainPID"]
        self.context: str = shown["ProcessContext"]
        self.image_context: str = shown["ImageContext"]
        self.runtime: str = shown["RuntimeDirectory"]
        self._socket = socket_name
        self._stream = wait_for(f"the channel of {name}", self._connect, _START_S)
        self._lines = self._stream.makefile("rw")

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._stream.close()

    def end(self) -> None:
        """Hang up and release the VM."""
        self.close()
        self.client.release(self.name)

    def label(self) -> str:
        """Return what the kernel says the main process runs under."""
        return process_label(self.pid)

    def status(self, key: str) -> str:
        """Return a line of the process's status."""
        lines = Path(f"/proc/{self.pid}/status").read_text("utf-8").splitlines()
        (found,) = [line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:")]
        return found

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the next line of the answer."""
        self._lines.write(f"{line}\n")
        self._lines.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Return the next line."""
        text = self._lines.readline()
        assert text, f"{self.name} hung up"
        return dict(json.loads(text))

    def _connect(self) -> socket.socket | None:
        (path,) = self.client.call("GetVM", "s", self.name)
        try:
            reply = self.client.message(
                "OpenChannel", "sa{sv}", self._socket, {}, path=path, interface=VM
            )
        except BusError as error:
            if error.name != "org.svirt1.Error.ResourceRefused":
                raise
            return None  # not made yet
        (fd,) = reply.unix_fds
        stream = socket.socket(fileno=fd)
        stream.settimeout(_START_S)
        return stream


class Qemu(Machine):
    """A QEMU, by its monitor."""

    def __init__(
        self,
        client: Client,
        name: str,
        *disks: Path,
        machine: str = "none",
        devices: bool = False,
        read_only: Sequence[Path] = (),
        group: str = "",
        **options: Variant,
    ) -> None:
        argv = qemu(*disks, machine=machine, devices=devices, read_only=read_only)
        named = shared(group, *disks) if group else resources(*disks)
        options = _in_group(group, options)
        named += resources(*read_only, access="readonly")
        client.call("Launch", "sasaa{sv}a{sv}", name, argv, named, options)
        super().__init__(client, name, "qmp")
        self.greet()

    def greet(self) -> None:
        """Take the monitor's greeting and ask it to listen."""
        greeting = self.read()
        while "event" in greeting:
            # QEMU keeps what happens before the first monitor connects, and tells it first.
            greeting = self.read()
        assert "QMP" in greeting, greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return QEMU's answer, its result or its error."""
        answer = self.ask(json.dumps({"execute": name, "arguments": arguments}))
        while "event" in answer:
            answer = self.read()
        return answer

    def does(self, name: str, **arguments: Any) -> None:
        """Give a command that must succeed."""
        answer = self.command(name, **arguments)
        assert "return" in answer, (name, answer)

    def job(self, name: str, id_: str, *, pivots: bool = False, **arguments: Any) -> None:
        """Have QEMU do a job to its end; one that `pivots` is completed once it is ready."""
        key = {"job-id": id_} | ({"auto-dismiss": False} if name != "blockdev-create" else {})
        self.does(name, **key, **arguments)
        if pivots:
            wait_for(f"{name} is ready", lambda: self._status() == "ready", _START_S)
            self.does("job-complete", id=id_)
        ended = wait_for(f"{name} has ended", self._concluded, _START_S)
        assert "error" not in ended, ended
        self.does("job-dismiss", id=id_)

    def reads(self, node: str = "d0") -> str:
        """Have QEMU read a disk of its own; returns its error, empty if it could."""
        return self._copies(node, "null")

    def writes(self, node: str = "d0") -> str:
        """Have QEMU write a disk of its own; returns its error, empty if it could."""
        return self._copies("null", node)

    def _status(self) -> str:
        (job,) = self.command("query-jobs")["return"]
        return str(job["status"])

    def _copies(self, source: str, target: str) -> str:
        null = {"driver": "null-co", "node-name": "null", "size": SIZE, "read-zeroes": False}
        assert "return" in self.command("blockdev-add", **null)
        job = {"job-id": "j", "device": source, "target": target, "sync": "full"}
        assert "return" in self.command("blockdev-backup", **job, **{"auto-dismiss": False})
        ended = wait_for("the copy has ended", self._concluded, _START_S)
        assert "return" in self.command("job-dismiss", id="j")
        assert "return" in self.command("blockdev-del", **{"node-name": "null"})
        return str(ended.get("error", ""))

    def _concluded(self) -> dict[str, Any] | None:
        (job,) = self.command("query-jobs")["return"]
        return dict(job) if job["status"] == "concluded" else None


def tree(path: Path) -> dict[str, Variant]:
    """Return a directory with all that is in it as a resource."""
    return {"path": Variant("s", str(path)), "recursive": Variant("b", True)}


def shared(group: str, *disks: Path, access: str = "group") -> list[dict[str, Variant]]:
    """Return disks as resources of a group."""
    return [one | {"group": Variant("s", group)} for one in resources(*disks, access=access)]


def _in_group(group: str, options: dict[str, Variant]) -> dict[str, Variant]:
    return options | {"groups": Variant("as", [group])} if group else options


class Captive(Machine):
    """A VM that does what captive.py can."""

    def __init__(
        self,
        client: Client,
        name: str,
        *disks: Path,
        access: str = "exclusive",
        group: str = "",
        **options: Variant,
    ) -> None:
        argv = captive()
        named = shared(group, *disks, access=access) if group else resources(*disks, access=access)
        options = _in_group(group, options)
        client.call("Launch", "sasaa{sv}a{sv}", name, argv, named, options)
        super().__init__(client, name, "control")

    @classmethod
    def with_tree(cls, client: Client, name: str, root: Path) -> "Captive":
        """Start one that has a directory with all that is in it."""
        client.call("Launch", "sasaa{sv}a{sv}", name, captive(), [tree(root)], {})
        started = cls.__new__(cls)
        Machine.__init__(started, client, name, "control")
        return started

    def do(self, expression: str) -> Any:
        """Return the value of an expression."""
        answer = self.ask(expression)
        assert "value" in answer, answer
        return answer["value"]

    def fails(self, expression: str) -> str:
        """Return the errno's name of an expression that must fail."""
        answer = self.ask(expression)
        assert "error" in answer, answer
        return str(answer["error"])


def process_label(pid: int) -> str:
    """Return what the kernel says a process runs under."""
    return Path(f"/proc/{pid}/attr/current").read_text("utf-8").rstrip("\0\n")


def categories(context: str) -> frozenset[int]:
    """Return the categories of a context."""
    return parse_context(context).categories
