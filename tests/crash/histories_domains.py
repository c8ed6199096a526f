# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's part of a history: its domains are checked in, labelled, followed, ended."""

import copy
import subprocess
from collections.abc import Sequence
from typing import Any

from svirtd.host.bus import Variant
from tests.crash.histories_life import Life, figures
from tests.crash.model import Want
from tests.crash.model_world import World
from tests.support import VM

_UUID = "6c3a6e6e-0000-4000-8000-00000000000{}"


class Domains(Life):
    """A history with VMs of libvirt's."""

    def check_in(self, name: str, wanted: Sequence[Want]) -> None:
        """The hook tells of a domain that is about to start."""
        errors = self.world.judge_check_in(name, wanted)
        options = {
            "labelled-by": Variant("s", "libvirt"),
            "uuid": Variant("s", _UUID.format(ord(name[0]) % 10)),
            "persistent": Variant("b", True),
            **self._groups(wanted),
        }

        def granted() -> World:
            world = copy.deepcopy(self.world)
            world.grant(self._guest(name, persistent=True, caller=None), wanted)
            return world

        def after() -> list[World]:
            there = name in self.seen()["vms"]
            return [granted()] if not errors and there else []

        with self.maybe_dying(after), self._passed(wanted) as (asked, fds):
            arguments = ("Acquire", "saa{sv}a{sv}", name, asked, options)
            if self._answer(errors, *arguments, fds=fds):
                self.world = granted()
                figures["checked in"] += 1

    def libvirt_sets(self, name: str, *, back: bool) -> None:
        """libvirt labels what a domain has, or gives it back."""
        if name in self.world.vms:
            for path, text in self.world.libvirt_sets(name, back=back).items():
                self.disks.relabel(path.rpartition("/")[2], text)

    def follow(self, name: str, *, alive: bool = True) -> None:
        """The hook tells that a domain has started, as a process that is there, or is not."""
        vm = self.world.vms.get(name)
        known = vm.pid if vm is not None and vm.pid in self.world.alive else 0
        process = subprocess.Popen(["/bin/sleep", "86399"]) if not known else None
        pid = process.pid if process is not None else known
        if process is not None:
            self.processes[pid] = process
            self.world.alive.add(pid)
        if not alive:
            self.end_process(pid)
        if self._tell(name, "follow", "Follow", "ua{sv}", pid, {}):
            figures["followed"] += 1
        told = self.world.vms.get(name)
        if told is None or told.pid != pid:
            self.end_process(pid)

    def ending(self, name: str) -> None:
        """The hook tells that a domain has stopped."""
        if self._tell(name, "ending", "Ending", "a{sv}", {}):
            figures["ending"] += 1

    def over(self, name: str) -> None:
        """The hook has a domain released."""
        self.release(name)
        figures["domains over"] += self.world.vms[name].state == "reserved"

    def end_process(self, pid: int) -> None:
        """A domain's process ends."""
        process = self.processes.pop(pid, None)
        if process is not None:
            process.kill()
            process.wait()
        self.world.alive.discard(pid)

    def _tell(self, name: str, does: str, member: str, signature: str, *body: Any) -> bool:
        after = copy.deepcopy(self.world)
        errors, found = getattr(after, does)(name, *body[:-1]), None
        with self.maybe_dying(lambda: [after]):
            where = {"path": f"/org/svirt1/vm/{name}", "interface": VM}
            found = self._answer(errors, member, signature, *body, **where)
            self.world = after
        return found is not None
