# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine that the daemon is killed on: files, a VM that nothing may happen to, a way back.

The bystander's book is made once; every case starts from a copy of it and from files that carry
what they carried then.
"""

import os
import select
import shutil
import signal
import socket
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from svirtd.core import overlays
from svirtd.failpoints import BOUNDARIES, Point
from svirtd.host.bus import BusError, Variant
from tests.crash.administrator import PREFIX, Administrator
from tests.crash.libvirt import Libvirt
from tests.support import DEADLINE_S, PROPERTIES, XATTR, Client, Daemon, image, wait_for
from tests.zygote import Forked, Zygote

BYSTANDER: Final = "bystander"
# No other process of the machine sleeps as long; what runs it is a VM's.
COMMAND: Final = ("/bin/sleep", "86397")
# What a file gets for each access, with the VM's categories put in.
LABELS: Final = {
    "exclusive": "system_u:object_r:svirt_image_t:s0:{}",
    "readonly": "system_u:object_r:virt_content_t:s0:{}",
    "public": "system_u:object_r:virt_content_t:s0",
    # With the group's category put in.
    "group": "system_u:object_r:svirt_image_t:s0:{}",
}
GROUP: Final = "g"
_MOST: Final = 20
# So many resources mean these: one that the group shares already, and one that it gets by this VM.
GROUPED: Final = 2
# And so many one tree. What its entries have beside its root's label is in folders that lie in each
# other: so the times at which that is remembered are always the same.
TREE: Final = 3
_INSIDE: Final = ("plain", "in", "in/own", "in/none", "in/deep", "in/deep/own", "in/deep/plain")
_UCRED: Final = struct.Struct("3i")
_COUNTED: Final = frozenset((*BOUNDARIES, Point.LABEL_WRITE))
_SYSTEMD: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
_SYSTEMD_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_ORIGINALS: Final = (
    b"system_u:object_r:virt_image_t:s0\0",
    None,
    b"unconfined_u:object_r:user_home_t:s0\0",
)
# Carries what a public file gets anyway: it is not written, and nothing is to be taken back.
_RIGHT_ALREADY: Final = 13
# The book remembers each set of categories that was ever drawn.
_CASES_MAX: Final = 50
_ACCESSES: Final = ("exclusive", "readonly", "exclusive", "public", "public")


@dataclass(frozen=True, slots=True)
class Resource:
    """A file that the VM is to have, and what it carries when nobody has it."""

    path: Path
    access: str
    original: bytes | None
    recursive: bool = False

    @property
    def inside(self) -> dict[Path, bytes | None]:
        """What is in a tree, and what that carries when nobody has it."""
        inside = _INSIDE if self.recursive else ()
        other = {"own": _ORIGINALS[2], "none": None}
        return {self.path / one: other.get(one.split("/")[-1], self.original) for one in inside}

    @property
    def request(self) -> dict[str, Variant]:
        """It as an argument."""
        asked = {"path": Variant("s", str(self.path)), "access": Variant("s", self.access)}
        if self.recursive:
            asked["recursive"] = Variant("b", True)
        return asked | ({"group": Variant("s", GROUP)} if self.access == "group" else {})


def options_of(resources: Sequence[Resource]) -> dict[str, Variant]:
    """The options of a request for these: it is in the group if it wants what the group shares."""
    shares = any(one.access == "group" for one in resources)
    return {"groups": Variant("as", [GROUP])} if shares else {}


def raw_label(path: Path) -> bytes | None:
    """Return the label's bytes."""
    try:
        return os.getxattr(path, XATTR)
    except OSError as error:
        if error.errno == 61:  # ENODATA
            return None
        raise


def put_label(path: Path, raw: bytes | None) -> None:
    """Have a file carry exactly this."""
    if raw is not None:
        os.setxattr(path, XATTR, raw)
    elif raw_label(path) is not None:
        os.removexattr(path, XATTR)


class World:
    """Everything that one shard works on. `close` ends and removes it."""

    def __init__(self, zygote: Zygote) -> None:
        # A tmpfs: the daemon is ended, not the machine, so that a sync proves nothing here.
        self.folder = Path(tempfile.mkdtemp(prefix="crash-", dir="/run"))
        self.files = self.folder / "files"
        self.files.mkdir()
        self.trace = self.folder / "trace"
        # What a running daemon is armed with, and how many points it had reached before.
        self._armed = self.folder / "armed"
        self._before = 0
        self._has_errors = False
        self._armed_at_start = False
        # Whether all is as at the beginning, with a daemon that runs; and how often it was since
        # everything was brought there.
        self._rests = False
        self._cases = 0
        # Looks like a command and cannot be executed.
        self.broken = self.folder / "broken"
        self.broken.write_text(f"#!{self.folder}/nothing\n")
        self.broken.chmod(0o755)
        self.daemon = Daemon(self.folder / "d", zygote=zygote)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notified.bind(str(self.folder / "notify"))
        self.daemon.env["NOTIFY_SOCKET"] = str(self.folder / "notify")
        self.client = Client()
        self.client.listen()
        self.libvirt = Libvirt(self.query)
        self.administrator = Administrator(self.systemd)
        # One connection to the book for several questions, see look().
        self._book: sqlite3.Connection | None = None
        self._clean_book = self.folder / "clean-book"
        self._names = 0
        self.resources = tuple(self._resource(number) for number in range(_MOST - 1))
        self.shared = Resource(image(self.files / "shared.img"), "public", _ORIGINALS[0])
        self.own = Resource(image(self.files / "bystander.img"), "exclusive", None)
        self.grouped = tuple(
            Resource(image(self.files / f"grouped{n}.img"), "group", _ORIGINALS[n]) for n in (0, 1)
        )
        self.tree = self._tree()
        # For a VM that is up: one file, one in its place, and an image with what it lies over.
        self.more = tuple(
            Resource(image(self.files / f"more{n}.img"), access, _ORIGINALS[n % len(_ORIGINALS)])
            for n, access in enumerate(("exclusive", "exclusive", "exclusive", "readonly"))
        )
        top, base = self.more[2:]
        overlay = overlays.empty(str(base.path), 1 << 20)
        top.path.write_bytes(overlay.head.ljust(overlay.length, b"\0"))
        for one in (self.shared, *self.grouped, *self.more):
            put_label(one.path, one.original)
        assert self.start()
        self.client.call("CreateGroup", "sa{sv}", GROUP, {})
        ((self.category,),) = self.query("SELECT category FROM vm_group")
        self._acquire_bystander()
        self.daemon.kill()
        shutil.copytree(self.daemon.book.parent, self._clean_book)
        self.bystander_labels = {one.path: raw_label(one.path) for one in self.bystanders}

    def _resource(self, number: int) -> Resource:
        access = _ACCESSES[number % len(_ACCESSES)]
        original = _ORIGINALS[number % len(_ORIGINALS)]
        if number == _RIGHT_ALREADY:
            original = LABELS[access].encode() + b"\0"
        one = Resource(image(self.files / f"{number:02}.img"), access, original)
        put_label(one.path, original)
        return one

    def _tree(self) -> Resource:
        tree = Resource(self.files / "tree", "exclusive", _ORIGINALS[0], recursive=True)
        (tree.path / "in" / "deep").mkdir(parents=True)
        for path in tree.inside:
            if not path.is_dir():
                image(path, 1)
        self._put_back(tree)
        return tree

    def _put_back(self, one: Resource) -> None:
        for path, raw in {one.path: one.original, **one.inside}.items():
            put_label(path, raw)

    @property
    def bystanders(self) -> tuple[Resource, ...]:
        """What the bystander holds."""
        return self.own, self.shared, self.grouped[0]

    @property
    def every(self) -> tuple[Resource, ...]:
        """Every file that there is."""
        return (*self.resources, self.shared, self.own, *self.grouped, *self.more, self.tree)

    def _acquire_bystander(self) -> None:
        some = [one.request for one in self.bystanders]
        self.client.call("Acquire", "saa{sv}a{sv}", BYSTANDER, some, options_of(self.bystanders))
        self.settle()

    def resources_of(self, size: int) -> tuple[Resource, ...]:
        """So many resources; the last of the full number is shared with the bystander."""
        if size == GROUPED:
            return self.grouped
        if size == TREE:
            return (self.tree,)
        return (*self.resources, self.shared) if size == _MOST else self.resources[:size]

    def labels_of(self, size: int) -> int:
        """How many labels an acquisition of so many resources writes."""
        some = self.resources_of(size)
        return len(some) - sum(one in self.bystanders for one in some) - (size > _RIGHT_ALREADY)

    def new_name(self) -> str:
        """A VM's name that no unit has had: systemd unloads the last one's in its own time."""
        self._names += 1
        return f"vm{self._names}"

    def begin(self, armed: str, *, with_book: bool = True) -> bool:
        """Have a daemon that runs, with everything as at the beginning, armed from here on.

        Without a book it is armed from its start on: False if it was ended before it served.
        """
        self.libvirt.reset()
        self.administrator.reset()
        if not with_book:
            self.reset(with_book=False)
            return self.start(armed)
        if not self._rests or self._cases >= _CASES_MAX:
            self.reset(with_book=True)
            assert self.start()
            self.settle()
        self._rests = False
        self._cases += 1
        self.client.signals.clear()
        self.arm(armed)
        return True

    def rest(self) -> None:
        """Let the daemon live for the next case. To be called once all is known to be as at the
        beginning."""
        self._rests = self.daemon.process is not None and not self._armed_at_start

    def end(self) -> None:
        """End the daemon, if there is one."""
        self._rests = False
        if self.daemon.process is not None:
            self.daemon.kill()

    def reset(self, *, with_book: bool) -> None:
        """Bring back the beginning; whatever a failed case has left is ended."""
        self.end()
        self._cases = 0
        self.libvirt.reset()
        self.administrator.reset()
        for unit in self.units():
            self.systemd("StopUnit", "ss", unit, "replace")
        wait_for("no unit of an earlier case", lambda: not self.units())
        shutil.rmtree(self.daemon.book.parent, ignore_errors=True)
        shutil.rmtree(self.daemon.runtime, ignore_errors=True)
        if with_book:
            shutil.copytree(self._clean_book, self.daemon.book.parent)
        for one in self.every:
            self._put_back(one)
        if with_book:
            for path, raw in self.bystander_labels.items():
                put_label(path, raw)
        self.client.idle(0)
        self.client.signals.clear()

    def start(self, armed: str = "", *, traced: bool = True) -> bool:
        """Start the daemon, armed from its start on; False if it was ended before it served."""
        self._armed.unlink(missing_ok=True)
        self._before = 0
        self._has_errors = "=raise" in armed
        self._armed_at_start = bool(armed)
        if traced:
            self.trace.unlink(missing_ok=True)
        parts = [f"trace:{self.trace}"] * traced + [f"from:{self._armed}"] + [armed] * bool(armed)
        self.daemon.failpoints = " ".join(parts)
        self.daemon.spawn()
        # Told instead of asked for again and again: most of what a case takes is such starts.
        while not self.ended():
            process = self.daemon.process
            assert isinstance(process, Forked)
            told = self._notified.fileno()
            ready, _, _ = select.select([told, process.fd], [], [], DEADLINE_S)
            assert ready, f"no READY: {self.daemon.output()[-4000:]}"
            if told in ready:
                pid, message = self._notification()
                if pid == self.daemon.pid and message.startswith(b"READY=1"):
                    return True
        return False

    def arm(self, armed: str) -> None:
        """Arm the running daemon, which is at rest: what it reaches counts from here on."""
        before = self._reached()
        other = self._armed.with_suffix(".new")
        other.write_text(armed)
        other.rename(self._armed)
        after = self._reached()
        # A watch looks at labels whenever it likes, and nothing of that is counted.
        more = {point for point, _ in after[len(before) :]} & _COUNTED
        assert not more, f"it does not rest: {more}"
        self._before = len(after)
        self._has_errors = "=raise" in armed

    def _notification(self) -> tuple[int, bytes]:
        """Read what a daemon tells its service manager, with the kernel's word on who it is."""
        message, control, _, _ = self._notified.recvmsg(4096, socket.CMSG_SPACE(_UCRED.size))
        ((_, _, credentials),) = control
        return int(_UCRED.unpack(credentials)[0]), message

    def ended(self) -> bool:
        """Say whether the daemon was killed; fail if it ended in another way."""
        process = self.daemon.process
        if process is None or process.poll() is None:
            return False
        assert process.returncode == -signal.SIGKILL, self.daemon.output()[-4000:]
        return True

    def stop(self) -> None:
        """End the daemon as systemd does; it may be killed at a boundary on its way."""
        if not self.ended():
            assert self.daemon.end(signal.SIGTERM) in (0, -signal.SIGKILL), self.daemon.output()
        self.daemon.process = None

    def settle(self, *, stuck: bool = False) -> None:
        """Wait until the daemon has nothing more to do: lazy commits made, signals sent.

        `stuck`: an operation cannot be finished and stays open.
        """
        self.client.call("ListVMs")
        self.wait("no operation is open", lambda: stuck or not self.rows("operation"))
        self.wait("every commit has ended", self._commits_have_ended)

    def _commits_have_ended(self) -> bool:
        names = [point for point, _ in self.reached()]
        # Of one that an error was put into the end is not told.
        if self._has_errors:
            return True
        return names.count(Point.COMMIT_BEFORE) == names.count(Point.COMMIT_AFTER)

    def reached(self) -> list[tuple[Point, str]]:
        """The points that the daemon has reached since it was armed, in order, each with the call's
        place."""
        return self._reached()[self._before :]

    def _reached(self) -> list[tuple[Point, str]]:
        if not self.trace.exists():
            return []
        lines = self.trace.read_text().splitlines()
        return [(Point(name), site) for name, site in (line.split() for line in lines)]

    def wait(self, what: str, look: Callable[[], bool]) -> None:
        """Wait for something that the daemon is to do, or for its being killed meanwhile."""
        wait_for(what, lambda: self.ended() or self._look(look))

    def _look(self, look: Callable[[], bool]) -> bool:
        try:
            return look()
        except BusError:
            return False

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the book what it has committed."""
        with self.look():
            assert self._book is not None
            return self._book.execute(sql).fetchall()

    @contextmanager
    def look(self) -> Iterator[None]:
        """Have one connection for all that is asked of the book meanwhile.

        No longer: a connection that stays would change what a start finds, and what a stop leaves.
        """
        if self._book is not None:
            yield
            return
        with closing(sqlite3.connect(f"file:{self.daemon.book}?mode=ro", uri=True)) as book:
            self._book = book
            try:
                yield
            finally:
                self._book = None

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """What stands in a table of the book."""
        return self.query(f"SELECT * FROM {table}")

    def dump(self) -> dict[str, Any]:
        """The book, labels, folders and units as they are."""
        schema = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        with self.look():
            found: dict[str, Any] = {name: self.rows(name) for (name,) in self.query(schema)}
        found["labels"] = {path: raw_label(path) for path in sorted(self.files.iterdir())}
        found["folders"] = self.folders()
        found["units"] = [(unit, self.main_pid(unit)) for unit in self.units()]
        return found

    def label(self, resource: Resource) -> bytes | None:
        """What a file carries."""
        return raw_label(resource.path)

    def folders(self) -> list[str]:
        """The runtime folders of VMs."""
        above = self.daemon.runtime / "vm"
        return sorted(os.listdir(above)) if above.exists() else []

    def systemd(
        self,
        member: str,
        signature: str,
        *body: Any,
        path: str = _SYSTEMD[1],
        interface: str = _SYSTEMD_MANAGER,
    ) -> list[Any]:
        """Ask systemd."""
        reply = self.client.runner.run(
            self.client.connection.call(
                _SYSTEMD[0], path, interface, member, signature, body, timeout_s=DEADLINE_S
            )
        )
        return list(reply.body)

    def units(self) -> list[str]:
        """The units of VMs that have not ended."""
        patterns = ["svirt-*.service", f"{PREFIX}*.service"]
        (rows,) = self.systemd("ListUnitsByPatterns", "asas", [], patterns)
        return sorted(row[0] for row in rows if row[3] not in ("inactive", "failed"))

    def main_pid(self, unit: str) -> int:
        """The main process of a unit."""
        (pid,) = self.service(unit, "MainPID")
        return int(pid)

    def service(self, unit: str, *properties: str) -> list[Any]:
        """What systemd says of a service. All that it could say is a hundred times as much."""
        (path,) = self.systemd("GetUnit", "s", unit)
        service = "org.freedesktop.systemd1.Service"
        found = []
        for name in properties:
            (value,) = self.systemd("Get", "ss", service, name, path=path, interface=PROPERTIES)
            found.append(value.value)
        return found

    def processes(self) -> list[int]:
        """The processes that a VM's unit has started."""
        wanted = b"\0".join(part.encode() for part in COMMAND) + b"\0"
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and Path("/proc", entry, "cmdline").read_bytes() == wanted:
                    found.append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return sorted(found)

    def close(self) -> None:
        """End everything and take it away."""
        self.reset(with_book=False)
        self.client.close()
        self._notified.close()
        shutil.rmtree(self.folder)
