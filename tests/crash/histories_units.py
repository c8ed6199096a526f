# SPDX-License-Identifier: LGPL-2.1-or-later
"""A unit of the administrator's in a history: enrolled, started and ended by systemd itself."""

import copy
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from svirtd.host.bus import Variant
from tests.crash import histories_book as book
from tests.crash import model
from tests.crash.histories_life import Died, Life, figures
from tests.crash.model import Want
from tests.crash.model_units import UNIT
from tests.crash.model_world import World
from tests.enrolled import UNITS, show, systemctl, unit_file
from tests.support import wait_for

_DROP_IN = UNITS / f"{UNIT}.d" / "50-svirtd.conf"
# As the drop-in that svirtctl writes, with a program that starts in no time.
_TELL = "/usr/bin/busctl --system call org.svirt1 /org/svirt1 org.svirt1.Manager {} sa{{sv}} %n 0"


@contextmanager
def administrators_unit() -> Iterator[None]:
    """The unit file, which has no drop-in yet; afterwards neither is there."""
    lines = (
        "Type=exec",
        "ExecStart=/bin/sleep 1000",
        f"ExecStartPre={_TELL.format('StartEnrolled')}",
        f"ExecStopPost={_TELL.format('EndEnrolled')}",
        "[Unit]",
        "StartLimitIntervalSec=0",
    )
    with unit_file(UNIT, *lines):
        _DROP_IN.parent.mkdir()
        try:
            yield
        finally:
            systemctl("stop", UNIT)
            systemctl("reset-failed", UNIT, check=False)
            _DROP_IN.unlink(missing_ok=True)
            _DROP_IN.parent.rmdir()


class Units(Life):
    """A history with a unit that is enrolled now and then."""

    def enroll(self, name: str, wanted: Sequence[Want]) -> None:
        """Have the unit be labelled as a VM at each start, or what can only be refused."""
        errors = self.world.against_enrolling(name, wanted)

        def enrolled() -> World:
            world = copy.deepcopy(self.world)
            world.enroll(self._guest(name, persistent=True, caller=None), wanted)
            return world

        def after() -> list[World]:
            return [enrolled()] if not errors and name in self.seen()["vms"] else []

        with self.maybe_dying(after), self._passed(wanted) as (asked, _):
            body = (UNIT, name, asked, self._groups(wanted))
            if self._answer(errors, "Enroll", "ssaa{sv}a{sv}", *body) is not None:
                self.world = enrolled()
                figures["enrolled"] += 1

    def unenroll(self, *, keep: bool) -> None:
        """Take the unit out of the book, or what can only be refused."""
        after = copy.deepcopy(self.world)
        errors = after.unenroll(keep=keep)
        with self.maybe_dying(lambda: [after]):
            options = {"keep": Variant("b", True)} if keep else {}
            self._answer(errors, "Unenroll", "sa{sv}", UNIT, options)
            self.world = after

    @property
    def would_start(self) -> bool:
        """Whether a unit file with the right label lets the unit start now."""
        return copy.deepcopy(self.world).start_unit(self.world.unit_shares)

    def refresh(self) -> None:
        """Have the unit file give the label that the VM has at its next start."""
        vm, shared = self.world.of_unit, self.world.unit_shares
        if vm is not None and (vm.pair, shared) != self.written:
            self.written = vm.pair, shared
            context = f"{model.PROCESS}:{model.text(vm.pair | shared)}"
            _DROP_IN.write_text(f"[Service]\nSELinuxContext={context}\n", "utf-8")
            systemctl("daemon-reload")

    def start_unit(self) -> None:
        """systemd starts the unit; the daemon may be away."""
        before, after = copy.deepcopy(self.world), copy.deepcopy(self.world)
        pair, shared = self.written
        vm = self.world.of_unit
        starts = self.up and after.start_unit(shared if vm and vm.pair == pair else None)
        if not self.up:
            after = before
        code = subprocess.run(["systemctl", "start", UNIT], capture_output=True, check=False)
        runs = code.returncode == 0
        if not runs:
            _wait()  # a start has failed before the end of it is told
        try:
            if self.up:
                self.call("ListVMs", "")
                assert runs == starts, (starts, code)
                # The daemon is told of its main process by systemd.
                self._seen_calm()
            assert runs == starts
            self.world = after
        except Died:
            self.spawn("")
            self._resolve([after] if runs else [before, after])
        figures["units started" if runs else "units not started"] += 1
        if not runs:
            systemctl("reset-failed", UNIT)

    def end_unit(self, *, kill: bool) -> None:
        """The unit is stopped, or its process is killed; the daemon may be away."""
        vm = self.world.of_unit
        assert vm is not None
        after = copy.deepcopy(self.world)
        after.release(vm.name)
        figures["units ended"] += 1
        with self.maybe_dying(lambda: [after]):
            if kill:
                os.kill(book.main_pid(self.daemon.book, vm.name), signal.SIGKILL)
            self.ended.append(vm.name)
            systemctl("stop", UNIT)
            systemctl("reset-failed", UNIT, check=False)
            if self.up:
                self._wait_for(after, [vm.name])
                self.ended.remove(vm.name)
                self.world = after

    def _at_rest(self) -> None:
        vm = self.world.of_unit
        if vm is not None and vm.state != "reserved":
            _wait()


def _wait() -> None:
    between = ("activating", "deactivating")
    wait_for("a unit at rest", lambda: show(UNIT, "ActiveState")["ActiveState"] not in between)
