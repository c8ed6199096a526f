# SPDX-License-Identifier: LGPL-2.1-or-later
"""One history: what is asked of the daemon, and what becomes of units and callers."""

import copy
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

from svirtd.host.bus import BusError, Variant
from tests.crash import histories_book as book
from tests.crash import model
from tests.crash.histories_domains import Domains
from tests.crash.histories_leases import Leases
from tests.crash.histories_life import figures
from tests.crash.histories_units import Units
from tests.crash.model import Attach, Want, categories
from tests.crash.model_units import UNIT
from tests.crash.model_world import World
from tests.support import GROUP, VM, svirt_units, unwrap, wait_for

_SYSTEMD: Final = "org.freedesktop.systemd1"


class Run(Domains, Units, Leases):
    """One history under way."""

    # -- requests -------------------------------------------------------------------------------

    def request(
        self,
        name: str,
        wanted: Sequence[Want],
        *,
        launch: bool,
        persistent: bool = False,
        slot: int | None = None,
        foretold: str = "",
    ) -> None:
        """Acquire or Launch; `foretold`: the categories that a plan has shown."""
        errors = self.world.judge(name, wanted)
        token, client = self._caller(slot)
        options = {"persistent": Variant("b", persistent), **self._groups(wanted)}
        if token is not None:
            options["lifetime"] = Variant("s", "caller")

        def granted() -> World:
            world = copy.deepcopy(self.world)
            world.grant(self._guest(name, persistent=persistent, caller=token), wanted)
            return world

        def after() -> list[World]:
            there = name in self.seen()["vms"] and name not in self.world.vms
            return [granted()] if not errors and (there or name in self.world.vms) else []

        member = "Launch" if launch else "Acquire"
        with self.maybe_dying(after), self._passed(wanted) as (asked, fds):
            command = (["/bin/sleep", "1000"],) if launch else ()
            signature = "sasaa{sv}a{sv}" if launch else "saa{sv}a{sv}"
            arguments = (member, signature, name, *command, asked, options)
            if self._answer(errors, *arguments, fds=fds, client=client):
                self.world = granted()
                figures["with chains"] += any(want.chain for want in wanted)
                figures["with trees"] += any(want.tree for want in wanted)
                if foretold:
                    assert model.text(self.world.vms[name].pair) == foretold

    def member(self, name: str, group: str, *, joins: bool) -> None:
        """Have a VM join or leave a group, or one that is not there."""
        after = copy.deepcopy(self.world)
        errors = after.join(name, group) if joins else after.leave(name, group)
        with self.maybe_dying(lambda: [after]):
            where = {"path": f"/org/svirt1/vm/{name}", "interface": VM}
            self._answer(
                errors, "JoinGroup" if joins else "LeaveGroup", "sa{sv}", group, {}, **where
            )
            self.world = after

    def allow(self, name: str, group: str, *, grants: bool) -> None:
        """Grant a VM to be in a group, or take that back."""
        after = copy.deepcopy(self.world)
        errors = after.grant_group(name, group) if grants else after.revoke(name, group)
        with self.maybe_dying(lambda: [after]):
            where = {"path": f"/org/svirt1/group/{group}", "interface": GROUP}
            member = "Grant" if grants else "Revoke"
            if self._answer(errors, member, "sa{sv}", name, {}, **where) is not None:
                figures["granted" if grants else "revoked"] += 1
            self.world = after

    def make_group(self, name: str) -> None:
        """Make a group, if there is none of this name."""

        def made() -> list[World]:
            found = self.seen()["groups"].get(name)
            if found is None:
                return []
            world = copy.deepcopy(self.world)
            world.create_group(name, found[0])
            return [world]

        if name not in self.world.groups:
            with self.maybe_dying(made):
                self.call("CreateGroup", "sa{sv}", name, {})
                (self.world,) = made()

    def delete_group(self, name: str) -> None:
        """Delete a group; one that a VM is in stays."""
        after = copy.deepcopy(self.world)
        errors = after.delete_group(name)
        with self.maybe_dying(lambda: [after]):
            self._answer(errors, "DeleteGroup", "sa{sv}", name, {})
            self.world = after

    def attach(self, name: str, asked: Attach) -> None:
        """Attach a file to a VM, or what can only be refused."""
        after = copy.deepcopy(self.world)
        errors, id_ = after.attach(name, asked)
        options = {"replaces": asked.replaces, "keep": "readonly" if asked.keeps else ""}
        told = {key: Variant("s", value) for key, value in options.items() if value}
        with self.maybe_dying(lambda: [after]), self._passed([asked.want]) as ((resource,), fds):
            if asked.id:
                resource["id"] = Variant("s", asked.id)
            for key in ("access", "group") if asked.alike else ():
                resource.pop(key, None)
            where = {"path": f"/org/svirt1/vm/{name}", "interface": VM}
            found = self._answer(errors, "Attach", "a{sv}a{sv}", resource, told, fds=fds, **where)
            self.world = after
            if found is not None:
                assert found == [id_]
                what = "kept" if asked.keeps else "replaced" if asked.replaces else "attached"
                figures[what] += 1

    def detach(self, name: str, id_: str) -> None:
        """Detach a resource from a VM, or one that it has not."""
        after = copy.deepcopy(self.world)
        errors = after.detach(name, id_)
        with self.maybe_dying(lambda: [after]):
            where = {"path": f"/org/svirt1/vm/{name}", "interface": VM}
            if self._answer(errors, "Detach", "sa{sv}", id_, {}, **where) is not None:
                figures["detached"] += 1
            self.world = after

    def forget(self, name: str) -> None:
        """Forget a VM, or what can only be refused."""
        after = copy.deepcopy(self.world)
        errors = after.forget(name)
        with self.maybe_dying(lambda: [after]):
            self._answer(errors, "Forget", "sa{sv}", name, {})
            self.world = after

    def plan(self, name: str, wanted: Sequence[Want]) -> str:
        """Plan an Acquire; returns the categories that it foretells, empty if none."""
        foretold = ""
        with self.maybe_dying(list), self._passed(wanted) as (asked, fds):
            book.wait_settled(self.daemon.book, self._failed())
            before = book.dump(self.daemon.book)
            errors = self.world.general(name, wanted)
            if any(self.world.cannot_open(want) for want in wanted):
                errors.add(model.REFUSED)
            options = self._groups(wanted)
            steps = self._answer(errors, "Plan", "saa{sv}a{sv}", name, asked, options, fds=fds)
            if steps is not None:
                # The last entry is about the VM and its goal.
                chained = [want for want, _ in self.world.with_chains(wanted)]
                foretold = self._check_plan(name, chained, unwrap(steps[0][:-1]))
            assert book.dump(self.daemon.book) == before
        return foretold

    def _check_plan(self, name: str, wanted: Sequence[Want], steps: list[dict[str, str]]) -> str:
        known = self.world.vms.get(name)
        own = [step for step, want in zip(steps, wanted, strict=True) if not want.group]
        pairs = {categories(step["to"]) for step in own} - {frozenset[int]()}
        assert len(pairs) <= 1
        pair = known.pair if known else next(iter(pairs), frozenset())
        assert known or not pair or pair in self.world.free()
        assert len(steps) == len(wanted)
        for want, step in zip(wanted, steps, strict=True):
            file = self.world.at(want.path)
            assert file is not None
            assert step["path"] == self.disks.path(want.path)
            assert (step["access"], step["from"]) == (want.access, file.label or "")
            assert step["to"] == self.world.target(want, pair)
            against = self.world.against(want)
            assert (step.get("error") in against) if against else ("error" not in step), step
        return model.text(pair)

    # -- the ends of units and callers ----------------------------------------------------------

    def kill_vm(self, name: str) -> None:
        """End a VM's process; the daemon may be away."""
        figures["kills of VMs"] += 1
        after = copy.deepcopy(self.world)
        after.release(name)
        with self.maybe_dying(lambda: [after]):
            os.kill(book.main_pid(self.daemon.book, name), signal.SIGKILL)
            wait_for("the unit's end", lambda: not self._has_unit(name))
            self.ended.append(name)
            if self.up:
                self._wait_for(after, [name])
                self.ended.remove(name)
                self.world = after

    def caller_leaves(self, slot: int) -> None:
        """A caller leaves the bus, and its VMs end with it; the daemon may be away."""
        token, client = self.callers.pop(slot)
        ending = [vm.name for vm in self.world.vms.values() if vm.caller == token]
        after = copy.deepcopy(self.world)
        after.caller_left(token)
        with self.maybe_dying(lambda: [after]):
            client.close()
            self.gone.append(token)
            if self.up:
                self._wait_for(after, ending)
                self.gone.remove(token)
                self.world = after

    def _has_unit(self, name: str) -> bool:
        try:
            self.client.runner.run(
                self.client.connection.call(
                    _SYSTEMD,
                    "/org/freedesktop/systemd1",
                    f"{_SYSTEMD}.Manager",
                    "GetUnit",
                    "s",
                    [f"svirt-{name}.service"],
                    timeout_s=20.0,
                )
            )
        except BusError as error:
            if not error.name.endswith(".NoSuchUnit"):
                raise
            return False
        return True

    # -- the end --------------------------------------------------------------------------------

    def end(self, *, failed: bool) -> None:
        """Release whatever is held: the files are then what the model says, and nothing is left."""
        try:
            if not failed:
                self._release_all()
        finally:
            for _, client in self.callers.values():
                client.close()
            self.client.close()
            for pid in list(self.processes):
                self.end_process(pid)
            if self.daemon.process is not None:
                self.daemon.kill()
            for unit in (UNIT, *svirt_units()) if failed else ():
                subprocess.run(["systemctl", "stop", unit], check=True)
            self.disks.clear()

    def _release_all(self) -> None:
        self.disks.read_only(on=False)
        self.world.view_readonly = False
        for name, file in self.world.files.items():
            self.disks.immutable(name, on=False)
            file.immutable = False
        self.start()
        for name, vm in list(self.world.vms.items()):
            self.end_process(vm.pid)
            self.release(name)
            if vm.enrolled:
                self.unenroll(keep=False)
            elif name in self.world.vms:
                self.forget(name)
        self._check_all()
        assert self.world.vms == {}
        for name in list(self.world.groups):
            self.delete_group(name)
        self._check_all()
