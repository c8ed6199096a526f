# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon as a process, a client of it, and the look at what is left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from svirtd.failpoints import VARIABLE
from svirtd.host.bus import BUS, BusError, Connection, Message, Variant
from tests.zygote import Forked, Zygote

T = TypeVar("T")

REPO = Path(__file__).resolve().parents[1]
NAME = "org.svirt1"
ROOT = "/org/svirt1"
MANAGER = "org.svirt1.Manager"
VM = "org.svirt1.VM"
GROUP = "org.svirt1.Group"
JOB = "org.svirt1.Job"
PEER = "org.freedesktop.DBus.Peer"
PROPERTIES = "org.freedesktop.DBus.Properties"
XATTR = "security.selinux"
DEADLINE_S = 20.0


def wait_for(what: str, look: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Look again and again until something true is seen; fail past the deadline.

    Where a look takes long, as one that starts a program in an emulated machine, it rests as long:
    what is waited for needs the processor, too.
    """
    end = time.monotonic() + deadline_s
    while True:
        began = time.monotonic()
        found = look()
        if found:
            return found
        now = time.monotonic()
        if now > end:
            raise AssertionError(f"not seen within {deadline_s} s: {what}")
        time.sleep(min(max(now - began, 0.02), 1.0))


def until(true: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait for what the caller then asserts by itself, as its message says more."""
    end = time.monotonic() + deadline_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)


def label(path: Path | str) -> str | None:
    """Return the label of a file, None if it has none."""
    try:
        return os.getxattr(path, XATTR).rstrip(b"\0").decode()
    except OSError as error:
        if error.errno == 61:  # ENODATA
            return None
        raise


def set_label(path: Path | str, text: str) -> None:
    """Label a file as a third party would."""
    os.setxattr(path, XATTR, text.encode() + b"\0")


def image(path: Path, size: int = 1 << 20) -> Path:
    """Make a sparse disk image without a label."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


class Daemon:
    """One svirtd process with a book, configuration and runtime folder of its own.

    With a zygote it starts in a fraction of the time; see there what differs. `without` names a
    defence that it lacks then, see tests/attacks/defences.py.
    """

    # The zygote of those that are given none. A tier may set it; else they are executed.
    forks: ClassVar[Zygote | None] = None

    def __init__(
        self,
        folder: Path,
        *,
        extra: str = "",
        bus: str | None = None,
        failpoints: str = "",
        zygote: Zygote | None = None,
        executed: bool = False,
        without: str = "",
    ) -> None:
        self.folder = folder
        self.book = folder / "book" / "book.sqlite"
        self.runtime = folder / "run"
        self.config = folder / "svirtd.toml"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.zygote = None if executed else zygote or self.forks
        self.without = without
        assert self.zygote is not None or not without
        self.env = dict(os.environ)
        if bus is not None:
            self.env["DBUS_SYSTEM_BUS_ADDRESS"] = bus
        # What the next start is armed with, see svirtd/failpoints.py.
        self.failpoints = failpoints
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f'[selinux]\nrequire = "none"\n[registry]\npath = "{self.book}"\n'
            f'[runtime]\ndirectory = "{self.runtime}"\n{extra}'
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> None:
        """Start the process and do not wait."""
        arguments = ["--config", str(self.config)]
        env = dict(self.env)
        if self.failpoints:
            env[VARIABLE] = self.failpoints
            arguments.append("--test-failpoints")
        with open(self.log, "ab") as log:
            if self.zygote is not None:
                with open(os.devnull, "rb") as nothing:
                    streams = nothing.fileno(), log.fileno(), log.fileno()
                    self.process = self.zygote.spawn(
                        arguments, env=env, cwd=REPO, streams=streams, without=self.without
                    )
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", "svirtd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=REPO,
            )

    def start(self) -> None:
        """Start the process and wait until it owns its name."""
        self.spawn()
        asyncio.run(self._wait_owned())

    async def _wait_owned(self) -> None:
        process = self.process
        assert process is not None
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        bus = await Connection.open(self.env.get("DBUS_SYSTEM_BUS_ADDRESS"))
        end = os.pidfd_open(process.pid)
        loop.add_reader(end, changed.set)
        try:
            await bus.subscribe(BUS, BUS, "NameOwnerChanged", lambda _: changed.set(), arg0=NAME)
            async with asyncio.timeout(DEADLINE_S):
                while await self._owner(bus) != process.pid:
                    code = process.poll()
                    assert code is None, f"svirtd exited with {code}: {self.output()}"
                    await changed.wait()
                    changed.clear()
        finally:
            loop.remove_reader(end)
            os.close(end)
            bus.close()

    async def _owner(self, bus: Connection) -> int | None:
        try:
            return int((await bus.call_bus("GetConnectionUnixProcessID", "s", [NAME]))[0])
        except BusError as error:
            if error.name.endswith(".NameHasNoOwner"):
                return None
            raise

    def stop(self) -> int:
        """End it as systemd does and return its exit code."""
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self.process = None
        return code

    def output(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def fds(self) -> list[str]:
        """What its descriptors lead to."""
        found = []
        for entry in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{self.pid}/fd/{entry}"))
            except FileNotFoundError:
                continue
        return sorted(found)


class Loop:
    """An event loop that runs one thing after the other: an asyncio.Runner but for its handler of
    Ctrl-C, which takes as long to set as a call takes."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something to its end."""
        return self._runner.get_loop().run_until_complete(work)

    def close(self) -> None:
        """End what still runs, and the loop."""
        self._runner.close()


class Client:
    """A blocking client on a loop of its own; collects the signals of svirtd."""

    def __init__(self, bus: str | None = None) -> None:
        self.runner = Loop()
        self.deadline_s = DEADLINE_S
        self.signals: list[Message] = []
        self.connection = self.runner.run(Connection.open(bus))

    def close(self) -> None:
        self.connection.close()
        self.runner.close()

    def listen(self) -> None:
        """Collect every signal of svirtd from now on."""
        for interface, member in (
            (MANAGER, "VMAdded"),
            (MANAGER, "VMRemoved"),
            (MANAGER, "DriftFound"),
            (PROPERTIES, "PropertiesChanged"),
            ("org.freedesktop.DBus.ObjectManager", "InterfacesAdded"),
            ("org.freedesktop.DBus.ObjectManager", "InterfacesRemoved"),
        ):
            self.runner.run(self.connection.subscribe(NAME, interface, member, self.signals.append))

    def idle(self, seconds: float = 0.0) -> None:
        """Let the loop take in what arrives within that time, and all that the bus has sent."""
        self.runner.run(self._idle(seconds))

    async def _idle(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        # What was sent before an answer is here before it. So it is with signals of svirtd's.
        if await self.connection.has_owner(NAME):
            with contextlib.suppress(BusError):
                await self.connection.call(NAME, ROOT, PEER, "Ping", timeout_s=self.deadline_s)

    def seen(self, member: str) -> list[list[Any]]:
        """The bodies of the collected signals of this member, of all that was told so far."""
        self.idle()
        return [list(msg.body) for msg in self.signals if msg.member == member]

    def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = ROOT,
        interface: str = MANAGER,
        fds: Sequence[int] = (),
    ) -> list[Any]:
        """Call a method of svirtd and return the reply's body. Raises BusError."""
        return list(
            self.message(member, signature, *body, path=path, interface=interface, fds=fds).body
        )

    def message(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = ROOT,
        interface: str = MANAGER,
        fds: Sequence[int] = (),
    ) -> Message:
        """As call(), but return the whole reply; its descriptors belong to the test."""
        return self.runner.run(
            self.connection.call(
                NAME, path, interface, member, signature, body, timeout_s=self.deadline_s, fds=fds
            )
        )

    def acquire(
        self, name: str, *disks: Path | str, access: str = "exclusive", **options: Any
    ) -> str:
        """Acquire files; options as {"key": Variant}."""
        return str(
            self.call("Acquire", "saa{sv}a{sv}", name, resources(*disks, access=access), options)[0]
        )

    def launch(
        self, name: str, argv: Sequence[str], *disks: Path | str, **options: Any
    ) -> list[Any]:
        return self.call("Launch", "sasaa{sv}a{sv}", name, list(argv), resources(*disks), options)

    def release(self, name: str) -> None:
        self.call("Release", "sa{sv}", name, {})

    def vms(self) -> dict[str, str]:
        """State of each VM by name."""
        return {row[0]: row[1] for row in self.call("ListVMs")[0]}

    def properties(self, name: str) -> dict[str, Any]:
        """Every property of a VM, unwrapped."""
        (path,) = self.call("GetVM", "s", name)
        return dict(unwrap(self.call("GetAll", "s", VM, path=path, interface=PROPERTIES)[0]))

    def manager(self) -> dict[str, Any]:
        """Every property of the manager, unwrapped."""
        return dict(unwrap(self.call("GetAll", "s", MANAGER, interface=PROPERTIES)[0]))

    def error(self, member: str, signature: str, *body: Any, **kwargs: Any) -> BusError:
        """Call what must be refused and return the refusal."""
        try:
            result = self.call(member, signature, *body, **kwargs)
        except BusError as error:
            return error
        raise AssertionError(f"{member} was not refused: {result}")


def resources(*disks: Path | str, access: str = "exclusive") -> list[dict[str, Variant]]:
    """Resources by path, all with one access."""
    return [{"path": Variant("s", str(d)), "access": Variant("s", access)} for d in disks]


def unwrap(value: Any) -> Any:
    """Take the variants out of a reply."""
    if isinstance(value, Variant):
        return unwrap(value.value)
    if isinstance(value, dict):
        return {key: unwrap(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [unwrap(inner) for inner in value]
    return value


def svirt_units() -> list[str]:
    """The transient units of VMs that systemd knows."""
    return asyncio.run(_svirt_units())


async def _svirt_units() -> list[str]:
    # By a message: a systemctl at the end of each test takes longer than many a test.
    bus = await Connection.open()
    try:
        reply = await bus.call(
            "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager", "ListUnitsByPatterns",
            "asas", ([], ["svirt-*.service"]), timeout_s=DEADLINE_S,
        )  # fmt: skip
    finally:
        bus.close()
    return [str(unit[0]) for unit in reply.body[0]]
