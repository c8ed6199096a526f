# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM as a transient unit: start it, check its label, stop it, notice its end."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from svirtd.book import registry
from svirtd.core.model import VM, Command
from svirtd.core.names import machine_id, machine_name
from svirtd.core.overlays import Overlay, filled
from svirtd.core.unit_state import UnitState
from svirtd.engine.again import until_done
from svirtd.engine.doors import Doors
from svirtd.engine.outfit import Outfit
from svirtd.errors import LabelRefused, UnitFailed
from svirtd.failpoints import Point, reach
from svirtd.host import runtime
from svirtd.host.bus import BusLost
from svirtd.host.journal import MessageId, Priority
from svirtd.host.runtime import Account
from svirtd.host.unit import UnitSpec


class Units:
    """Starts and stops VMs through systemd. `on_end` is told the VM and how its unit ended,
    `on_run` that an enrolled one has a main process."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        # Units that are being looked at; whether they have changed meanwhile.
        self._looking: dict[str, bool] = {}
        # Those of the administrator's, whose main process is not started by us.
        self._enrolled: set[str] = set()
        # Set and dropped when the unit changes.
        self._waiting: dict[str, asyncio.Event] = {}
        self.on_end: Callable[[VM, str], Awaitable[None]] | None = None
        self.on_run: Callable[[VM, UnitState], Awaitable[None]] | None = None
        doors.systemd.on_change = self._changed
        doors.systemd.on_renewed = self._renewed

    async def start(self, vm: VM, command: Command, account: Account, outfit: Outfit) -> int:
        """Make the runtime folder, start the unit, check the label; returns the main process.

        Raises UnitFailed, LabelRefused, Failed; no process is left then, the folder may be. Raises
        UnitStuck if a process may be left.
        """
        doors = self._doors
        await self.make_folder(vm, account, outfit.overlays)
        spec = UnitSpec(
            name=vm.unit,
            description=f"Virtual machine {vm.name}",
            argv=tuple(filled(argument, outfit.words) for argument in command.argv),
            context=vm.process_context,
            user=account.name,
            slice=doors.config.slice,
            environment=(*command.environment, f"SVIRT_RUNTIME_DIR={vm.runtime_dir}"),
            working_directory=command.working_directory,
            properties=command.properties,
            bounds=outfit.bounds,
        )
        reach(Point.START_BEFORE)
        state = await doors.systemd.start(spec, timeout_s=doors.config.start_timeout_s)
        reach(Point.START_AFTER)
        try:
            await self.check_label(vm, state)
            reach(Point.START_CHECKED)
            await self.register(vm, state.main_pid)
        except BusLost:
            raise  # nothing can be ended without it: the next start settles it
        except Exception:
            await self.end(vm)
            raise
        return state.main_pid

    async def make_folder(self, vm: VM, account: Account, overlays: Mapping[str, Overlay]) -> None:
        """Make the VM's runtime folder. Raises LabelRefused, Failed."""
        label = vm.image_context
        make, kernel = runtime.make_folder, self._doors.kernel
        await self._doors.in_file_thread(make, kernel, vm.runtime_dir, account, label, overlays)
        reach(Point.FOLDER_MADE)

    async def running(self, vm: VM) -> UnitState | None:
        """Return the state of the VM's unit if it runs under the VM's label, else None.

        A unit of its name may be another VM's: one that a book from before does not know. An
        enrolled one runs from before its main process is there to after that has ended.
        """
        state = await self._doors.systemd.state(vm.unit) if vm.unit else None
        if state is None or state.ended:
            return None
        if not state.main_pid:
            return state if vm.enrolled else None
        # What a unit file says may have been changed under an enrolled one that runs.
        if state.context != vm.process_context and not vm.enrolled:
            return None
        try:
            await self.check_label(vm, state)
        except LabelRefused:
            return None
        return state

    async def is_ours(self, vm: VM) -> bool:
        """Say whether the unit of the VM's name is there and was made for this very VM."""
        state = await self._doors.systemd.state(vm.unit) if vm.unit else None
        if state is not None and vm.enrolled:
            return state.main_pid != 0
        return state is not None and state.context == vm.process_context

    def adopt(self, vm: VM) -> None:
        """Notice the end of a unit that an earlier run of the daemon started."""
        self._doors.systemd.watch(vm.unit)
        if vm.enrolled:
            self.expect(vm.unit)
            self._changed(vm.unit)  # its main process may have come meanwhile

    def expect(self, unit: str) -> None:
        """Notice how an enrolled unit comes to have its main process, and its end."""
        self._enrolled.add(unit)
        self._doors.systemd.watch(unit)

    def forget_unit(self, unit: str) -> None:
        """End what expect() began, or stop watching a unit that has ended."""
        self._enrolled.discard(unit)
        self._doors.systemd.unwatch(unit)

    async def stop(self, vm: VM) -> None:
        """Stop the unit and wait until no process of it is left. Raises UnitFailed.

        A unit of its name that is not this VM's is left alone: one for which the VM's own start was
        refused, or, under a book from before, a later VM of the same name.
        """
        state = await self._doors.systemd.state(vm.unit)
        if vm.enrolled:
            if _is_down(state):
                await self._forget_machine(vm)
                return
            work = self._stop_enrolled(vm)
        elif state is not None and state.context != vm.process_context:
            return
        else:
            timeout_s = self._doors.config.stop_timeout_s
            work = self._doors.systemd.stop(vm.unit, timeout_s=timeout_s)
        reach(Point.STOP_BEFORE)
        await work
        await self._forget_machine(vm)
        reach(Point.STOP_AFTER)

    async def _stop_enrolled(self, vm: VM) -> None:
        """Stop an administrator's unit until only what it does after its end is left of it.

        Among that is the call that tells us of the end, and it waits for us: so we do not for it.
        """
        timeout_s = self._doors.config.stop_timeout_s
        self.expect(vm.unit)
        await self._doors.systemd.ask_to_stop(vm.unit)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    # Before the look, so that no change falls between the two.
                    changed = self._waiting.setdefault(vm.unit, asyncio.Event())
                    if _is_down(await self._doors.systemd.state(vm.unit)):
                        return
                    await changed.wait()
        except TimeoutError as error:
            raise UnitFailed(
                f"{vm.unit} did not stop within {timeout_s:.0f} s; end it with "
                f"systemctl kill -s KILL {vm.unit}, then release again"
            ) from error
        finally:
            self._waiting.pop(vm.unit, None)

    def forget(self, vm: VM) -> None:
        """Stop watching a unit that has ended."""
        self.forget_unit(vm.unit)

    async def end(self, vm: VM) -> None:
        """Kill the unit and wait until no process of it is left. Raises UnitStuck."""
        await self._doors.systemd.end(vm.unit, timeout_s=self._doors.config.stop_timeout_s)
        await self._forget_machine(vm)
        self.forget(vm)

    async def check_label(self, vm: VM, state: UnitState) -> None:
        """The label is what the whole promise rests on: asked of the kernel, never assumed."""
        if not self._doors.kernel.enabled():
            return
        try:
            found = self._doors.kernel.process_label(state.main_pid)
        except OSError as error:
            raise LabelRefused(
                f"the label of {vm.unit}'s process {state.main_pid} cannot be read ({error}); "
                "it was stopped"
            ) from error
        if found != vm.process_context:
            raise LabelRefused(
                f"{vm.unit} runs as {found} instead of {vm.process_context}; it was stopped: check "
                "that the policy lets systemd start that domain from this command's file type"
            )

    async def register(self, vm: VM, main_pid: int) -> None:
        """Have machined know the VM, where there is one."""
        if self._doors.machined is None:
            return
        problem = await self._doors.machined.register(
            machine_name(vm.name), machine_id(vm.id, vm.uuid), main_pid
        )
        if problem:
            self._warn(vm, f"machinectl will not show the VM: {problem}")

    async def _forget_machine(self, vm: VM) -> None:
        """Before another VM may have the name, and with it the unit's."""
        if self._doors.machined is None:
            return
        problem = await self._doors.machined.forget(machine_name(vm.name), vm.unit)
        if problem:
            self._warn(vm, f"machined may stop {vm.unit} when it is started again: {problem}")

    def _warn(self, vm: VM, text: str) -> None:
        self._doors.journal.record(
            MessageId.WARNING, text, priority=Priority.WARNING, SVIRT_VM=vm.name
        )

    def _changed(self, unit: str) -> None:
        if unit in self._waiting:
            self._waiting.pop(unit).set()
        # Several signals come for one end; one look, and one after the last of them, is enough.
        if unit in self._looking:
            self._looking[unit] = True
        else:
            self._looking[unit] = False
            self._doors.spawn(self._look(unit))

    async def _look(self, unit: str) -> None:
        try:
            changed = True
            while changed:
                self._looking[unit] = False
                await until_done(
                    self._doors.journal, f"the end of {unit}", lambda: self._look_once(unit)
                )
                changed = self._looking[unit]
        finally:
            del self._looking[unit]

    async def _look_once(self, unit: str) -> None:
        state = await self._doors.systemd.state(unit)
        if state is not None and not state.ended:
            if unit in self._enrolled and state.main_pid:
                await self._look_at_start(unit, state)
            return
        vm = await self._doors.store.read(lambda db: registry.vm_by_unit(db, unit))
        if vm is None or self.on_end is None:
            return
        how = "gone" if state is None else f"result {state.result}, status {state.exit_status}"
        await self.on_end(vm, how)

    async def _look_at_start(self, unit: str, state: UnitState) -> None:
        vm = await self._doors.store.read(lambda db: registry.vm_by_unit(db, unit))
        if vm is not None and vm.main_pid != state.main_pid and self.on_run is not None:
            await self.on_run(vm, state)

    def _renewed(self) -> None:
        self._doors.spawn(
            until_done(self._doors.journal, "systemd was renewed", self._doors.systemd.resume)
        )


def _is_down(state: UnitState | None) -> bool:
    """Say whether no process of the unit's own is left that systemd knows to be one."""
    if state is None or state.ended:
        return True
    after_its_end = state.sub == "stop-post" or state.sub.startswith("final-")
    return after_its_end and not state.main_pid
