# SPDX-License-Identifier: LGPL-2.1-or-later
"""A history under way: the daemon and its ends, what is seen of it, and what must hold.

A daemon may end at any moment: by SIGKILL between two steps, or at a fail point in the midst of
one. What the step has come to is then either nothing or all of it: the next start is held against
both.
"""

import copy
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from svirtd.host.bus import BusError, Variant
from tests.crash import histories_book as book
from tests.crash import model
from tests.crash.histories_disks import Disks
from tests.crash.histories_seen import POOL, expected, seen
from tests.crash.model import Finding, Guest, Pair, Want, categories
from tests.crash.model_world import World
from tests.support import MANAGER, PROPERTIES, Client, Daemon, unwrap, wait_for
from tests.zygote import Zygote

EXTRA: Final = '[labels]\nprivate = "c0.c4"\n[drift]\nrepair = false\n'
USER_HOME: Final = "unconfined_u:object_r:user_home_t:s0"
VIRT_IMAGE: Final = "system_u:object_r:virt_image_t:s0"
FILES: Final = {"f0": None, "f1": USER_HOME, "f2": model.CONTENT, "f3": VIRT_IMAGE}
# Folders, and files in them, which end in a letter of their own.
TREES: Final = {
    "t0": VIRT_IMAGE,
    "t0/s": VIRT_IMAGE,
    "t0/s/y": USER_HOME,
    "t0/x": VIRT_IMAGE,
    "t1": None,
    "t1/x": USER_HOME,
    "t1/y": None,
}
_OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
# How a call ends whose service has ended.
_DEAD: Final = ("NoReply", "ServiceUnknown", "NameHasNoOwner", "NoSuchUnit")

# What the histories of this run came to.
figures: Counter[str] = Counter()


class Died(Exception):
    """The daemon has ended at a fail point."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all histories of a run share."""

    zygote: Zygote
    disks: Disks
    folder: Path


class Life:
    """The daemon, its callers, the files, and the model that all of it is held against."""

    def __init__(self, stage: Stage) -> None:
        figures["histories"] += 1
        self.disks = stage.disks
        self.disks.clear()
        self.world = World(POOL)
        for name, text in {**TREES, **FILES}.items():
            is_folder = name in TREES and name[-1] not in "xy"
            self.world.make(name, self.disks.make(name, text, folder=is_folder), text)
        folder = stage.folder / str(figures["histories"])
        self.daemon = Daemon(folder, extra=EXTRA, zygote=stage.zygote)
        self.client = Client()
        self.client.listen()
        self.up = False
        self.armed = ""
        self._callers_so_far = 0
        # Callers that are on the bus, by slot, each with a number of its own.
        self.callers: dict[int, tuple[int, Client]] = {}
        # What happened while the daemon was away.
        self.ended: list[str] = []
        self.gone: list[int] = []
        # What the administrator's unit file gives its processes: a VM's pair, and groups.
        self.written: tuple[Pair, Pair] = (frozenset(), frozenset())
        # Those of libvirt's domains.
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.spawn("")

    # -- the daemon's starts and ends -----------------------------------------------------------

    def kill(self) -> None:
        """End the daemon as a crash does."""
        figures["kills of the daemon"] += 1
        self.daemon.kill()
        self.up = False

    def stop(self) -> None:
        """End the daemon as systemd does."""
        code = self.daemon.stop()
        self.up = False
        if code == -signal.SIGKILL and self.armed:
            self._count_death()
        else:
            assert code == 0, (code, self.daemon.output())

    def start(self, armed: str = "", *, again: bool = False) -> None:
        """Start it with a fail point armed; `again`: one more start must change nothing."""
        if self.up:
            self.kill()
        self.spawn(armed)
        self._resolve([self.world], again=again)

    def spawn(self, armed: str) -> None:
        """Start the daemon; one that is to die at its start is started once more."""
        self.daemon.failpoints = self.armed = armed
        try:
            self.daemon.start()
        except (AssertionError, BusError):
            process = self.daemon.process
            assert process is not None
            if not armed or process.wait(20) != -signal.SIGKILL:
                raise
            self._count_death()
            self.spawn("")
        self.up = True

    def _count_death(self) -> None:
        figures["kills of the daemon"] += 1
        figures["of these at a fail point"] += 1

    def _resolve(self, candidates: Sequence[World], *, again: bool = False) -> None:
        """The daemon has started: the world is one of these, with everything settled."""
        for world in candidates:
            world.restart(ended=self.ended, gone=self.gone)
        self.ended, self.gone = [], []
        try:
            seen = self._seen_at_rest()
        except Died:
            self.spawn("")
            seen = self._seen_at_rest()
        expected = [self.expected(world) for world in candidates]
        assert seen in expected, f"found {seen}, expected one of {expected}"
        self.world = candidates[expected.index(seen)]
        self.client.signals.clear()
        if again:
            self._start_again()

    def _seen_at_rest(self) -> dict[str, Any]:
        """What is seen once the comparison that each start makes is over."""
        # They wait for each other; the first may have come before it.
        for _ in range(2):
            self.call("Verify", "ba{sv}", False, {})
        return self._seen_calm()

    def _start_again(self) -> None:
        """A start after a start finds nothing to do."""
        if self.armed:
            self.kill()
            self.spawn("")
        before = self._whole()
        self.kill()
        self.spawn("")
        assert self._whole() == before

    def _whole(self) -> Any:
        self._seen_at_rest()
        book.wait_settled(self.daemon.book, self._failed())
        return book.dump(self.daemon.book), self.disks.labels()

    @contextmanager
    def maybe_dying(self, after: Callable[[], Sequence[World]]) -> Iterator[None]:
        """A step that the daemon may not survive; `after` says what it may have come to."""
        before = copy.deepcopy(self.world)
        try:
            yield
        except Died:
            self._at_rest()
            self.spawn("")
            self._resolve([before, *after()])

    def call(self, member: str, signature: str, *body: Any, **more: Any) -> list[Any]:
        """Call; raises BusError for a refusal, Died for the daemon's end."""
        client = more.pop("client", self.client)
        try:
            return list(client.call(member, signature, *body, **more))
        except BusError as error:
            if not self._is_dead(error):
                raise
            raise Died from error

    def _is_dead(self, error: BusError) -> bool:
        if not self.armed or error.name.rpartition(".")[2] not in _DEAD:
            return False
        process = self.daemon.process
        assert process is not None
        if process.wait(20) != -signal.SIGKILL:
            return False
        self.daemon.process = None
        self.up = False
        self._count_death()
        return True

    def _answer(
        self, errors: set[str], member: str, signature: str, *body: Any, **more: Any
    ) -> list[Any] | None:
        """Call what must meet one of these errors, or succeed if there is none."""
        try:
            found = self.call(member, signature, *body, **more)
        except BusError as error:
            if error.name not in errors:
                raise AssertionError(f"expected {sorted(errors)}: {error}") from error
            figures["requests refused"] += 1
            return None
        assert not errors, f"{member} was not refused with one of {sorted(errors)}"
        figures["requests done"] += 1
        return found

    def release(self, name: str) -> None:
        """Release a VM, or one that is not there."""
        after = copy.deepcopy(self.world)
        errors = after.release(name)
        with self.maybe_dying(lambda: [after]):
            self._answer(errors, "Release", "sa{sv}", name, {})
            self.world = after

    @staticmethod
    def _groups(wanted: Sequence[Want]) -> dict[str, Variant]:
        """The option that has the VM in every group whose files it wants."""
        groups = sorted({want.group for want in wanted if want.group})
        return {"groups": Variant("as", groups)} if groups else {}

    def _caller(self, slot: int | None) -> tuple[int | None, Client]:
        if slot is None:
            return None, self.client
        if slot not in self.callers:
            self._callers_so_far += 1
            self.callers[slot] = self._callers_so_far, Client()
        return self.callers[slot]

    @contextmanager
    def _passed(self, wanted: Sequence[Want]) -> Iterator[tuple[list[Any], list[int]]]:
        """The resources as arguments, with the descriptors that go along."""
        asked: list[Any] = []
        fds: list[int] = []
        try:
            for want in wanted:
                path = self.disks.path(want.path)
                one = {"access": Variant("s", want.access)}
                if want.group:
                    one["group"] = Variant("s", want.group)
                if want.fd and not self.world.cannot_open(want):
                    one["fd"] = Variant("h", len(fds))
                    mode = os.O_RDWR if want.access in ("exclusive", "group") else os.O_RDONLY
                    fds.append(os.open(path, mode))
                else:
                    one["path"] = Variant("s", path)
                if want.chain:
                    one["format"] = Variant("s", "qcow2")
                if want.tree:
                    one["recursive"] = Variant("b", True)
                if want.until:
                    one["until"] = Variant("t", want.until)
                    one["at-end"] = Variant("s", want.at_end)
                asked.append(one)
            yield asked, fds
        finally:
            for fd in fds:
                os.close(fd)

    # -- what must hold after every step --------------------------------------------------------

    def check(self) -> None:
        """Hold all that can be seen against the model and the invariants."""
        figures["steps"] += 1
        if self.up:
            with self.maybe_dying(list):
                self._check_all()
        else:
            assert self.disks.labels() == self.expected(self.world)["files"]

    def _check_all(self) -> None:
        wait_for("no release is under way", lambda: not self._releasing())
        book.wait_settled(self.daemon.book, self._failed())
        seen, wanted = self._seen_calm(), self.expected(self.world)
        other = {key: (seen[key], wanted[key]) for key in seen if seen[key] != wanted[key]}
        assert not other, f"found and expected: {other}"
        foreign = {file.ino for file in self.world.files.values() if file.theirs}
        # What is in a tree is held by its root.
        labels = self.disks.labels()
        roots = {name: labels[name.partition("/")[0]][0] for name in labels}
        book.check(self.daemon.book, POOL, labels, foreign, roots)
        told = [Finding(one.kind, one.vm, self.disks.path(one.path)) for one in self.world.findings]
        # A signal is sent before the next reply; but a release that failed and that is tried once
        # more, since its caller has left, looks the same before and after. What the watch on held
        # objects tells besides comes when it comes.
        wait_for(f"all of {told} is told", lambda: not Counter(told) - self._found())
        self._all_told()

    def _found(self) -> Counter[Finding]:
        """What has been told by now."""
        self.call("ListVMs", "")
        return Counter(
            Finding(one["kind"].value, one["vm"].value, one["path"].value)
            for one in (msg.body[0] for msg in self.client.signals if msg.member == "DriftFound")
        )

    def _wait_for(self, world: World, vms: Sequence[str]) -> None:
        expected = self.expected(world)["vms"]
        for vm in vms:
            wait_for(
                f"VM {vm} is {expected.get(vm)}",
                lambda vm=vm: self.seen()["vms"].get(vm) == expected.get(vm),  # type: ignore[misc]
            )

    def _at_rest(self) -> None:
        """Wait for what systemd has begun and the daemon does not wait for."""

    def _seen_calm(self) -> dict[str, Any]:
        """What is seen between two tries: the end of a caller, or of a unit, has a release that
        failed tried once more, and it fails again. What is leased is over first."""
        found: dict[str, Any] = {}

        def calm() -> bool:
            found.update(self.seen())
            return all(
                (vm["State"] != "releasing" or vm["LabelledBy"] == "libvirt")
                and (vm["State"] != "labelled" or not vm["Enrolled"])
                and not _will_lose(vm)
                for vm in found["vms"].values()
            )

        wait_for("no release is under way", calm)
        return found

    def _releasing(self) -> list[str]:
        """The VMs with a release under way; one of libvirt's may be so for long."""
        (rows,) = self.call("ListVMs", "")
        known = self.world.vms
        ours = [row for row in rows if row[0] not in known or not known[row[0]].libvirt]
        return [row[0] for row in ours if row[1] == "releasing"]

    def _all_told(self) -> None:
        self.client.signals.clear()
        self.world.findings.clear()

    def _failed(self) -> int:
        return sum(vm.state == "failed" for vm in self.world.vms.values())

    def expected(self, world: World) -> dict[str, Any]:
        """What must be seen of a world."""
        return expected(world, self.disks)

    def seen(self) -> dict[str, Any]:
        """What is seen of the world: by D-Bus, in the book and on the disk."""
        (objects,) = self.call("GetManagedObjects", "", interface=_OBJECT_MANAGER)
        (manager,) = self.call("GetAll", "s", MANAGER, interface=PROPERTIES)
        return seen(unwrap(objects), unwrap(manager), self.disks, self.daemon.book)

    def _guest(self, name: str, *, persistent: bool, caller: int | None) -> Guest:
        """A VM as the service has made it: its Id and pair are the service's to choose."""
        vm = self.seen()["vms"][name]
        pair, unit = categories(f"u:r:t:s0:{vm['Categories']}"), bool(vm["Unit"])
        libvirt = vm["LabelledBy"] == "libvirt"
        return Guest(name, vm["Id"], pair, vm["State"], persistent, caller, unit, libvirt=libvirt)


def _will_lose(vm: Mapping[str, Any]) -> bool:
    """Say whether a VM has something leased that it loses as soon as that is over."""
    leased = [one["at-end"] for one in vm["Resources"] if "until" in one]
    if vm["State"] == "running":
        return any(at_end != "report" for at_end in leased)
    return vm["State"] == "labelled" and bool(leased)
