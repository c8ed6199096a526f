# SPDX-License-Identifier: LGPL-2.1-or-later
"""Manager and VM objects: contract members to requests, events to signals. No decisions."""

from collections.abc import Mapping

import svirtd
from svirtd.api import answers, goal_answers, wire
from svirtd.api.call import Call, Handler, Reply
from svirtd.api.contract import (
    JOB,
    JOB_FOLDER,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    VM,
    VM_FOLDER,
)
from svirtd.api.enrolled_objects import EnrolledObjects
from svirtd.api.group_objects import Emit, GroupObjects
from svirtd.api.hotplug_objects import HotplugObjects
from svirtd.core.findings import Finding
from svirtd.core.groups import GroupView
from svirtd.core.job import JobView
from svirtd.core.model import Caller, Standing
from svirtd.core.names import escape_path
from svirtd.engine.authorize import sees
from svirtd.engine.backups import Backups
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Listener
from svirtd.engine.followed import Followed
from svirtd.engine.foreign import Foreign
from svirtd.engine.jobs import Jobs
from svirtd.engine.matrix import Matrix
from svirtd.engine.queries import Queries
from svirtd.engine.requests import Requests
from svirtd.engine.verify import Verify
from svirtd.engine.walls import Walls
from svirtd.host.bus import Variant


def vm_path(name: str) -> str:
    """Return the object path of a VM."""
    return f"{VM_FOLDER}/{escape_path(name)}"


def job_path(number: int) -> str:
    """Return the object path of a job."""
    return f"{JOB_FOLDER}/{number}"


def job_number(element: str) -> int:
    """Return the number that the last element of a job's path says, 0 for what is none."""
    # As job_path() writes it: no sign, no leading zero, no other script's digits.
    plain = element.isascii() and element.isdigit() and not element.startswith("0")
    return int(element) if plain and len(element) < 10 else 0


class Objects(Listener):
    """Handlers of every member that is svirtd's own, and the signals."""

    def __init__(
        self,
        requests: Requests,
        hotplug: HotplugObjects,
        queries: Queries,
        verify: Verify,
        jobs: Jobs,
        backups: Backups,
        groups: GroupObjects,
        enrolled: EnrolledObjects,
        foreign: Foreign,
        followed: Followed,
        doors: Doors,
    ) -> None:
        self._queries = queries
        self._requests = requests
        self._hotplug = hotplug
        self._verify_ = verify
        self._backups = backups
        self._jobs = jobs
        self._doors = doors
        self._matrix_ = Matrix(doors)
        self._walls = Walls(doors)
        self._groups = groups
        self._enrolled = enrolled
        self._foreign = foreign
        self._followed = followed
        self.emit: Emit = lambda *_: None

    def sends(self, emit: Emit) -> None:
        """Send signals by this from now on."""
        self.emit = self._groups.emit = emit

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handler of each method, by interface and member."""
        return {
            (MANAGER, "Launch"): self._launch,
            (MANAGER, "Acquire"): self._acquire,
            (MANAGER, "Release"): self._release,
            (MANAGER, "Forget"): self._forget,
            (MANAGER, "Plan"): self._plan,
            (MANAGER, "ListGoals"): self._list_goals,
            (MANAGER, "GetVM"): self._get_vm,
            (MANAGER, "GetVMByPID"): self._get_vm_by_pid,
            (MANAGER, "GetVMByUUID"): self._get_vm_by_uuid,
            (MANAGER, "ListVMs"): self._list_vms,
            (MANAGER, "FindOwners"): self._find_owners,
            (MANAGER, "Backup"): self._backup,
            (MANAGER, "Verify"): self._verify,
            (MANAGER, "Matrix"): self._matrix,
            (MANAGER, "ListForeign"): self._list_foreign,
            (MANAGER, "ListWalls"): self._list_walls,
            (MANAGER, "ClearWall"): self._clear_wall,
            (JOB, "Cancel"): self._job_cancel,
            (VM, "Release"): self._vm_release,
            (VM, "OpenChannel"): self._open_channel,
            (VM, "Follow"): self._follow,
            (VM, "Ending"): self._ending,
            **self._groups.handlers(),
            **self._enrolled.handlers(),
            **self._hotplug.handlers(),
        }

    # -- org.svirt1.Manager -----------------------------------------------------------------

    async def _launch(self, call: Call) -> Reply:
        name, argv, resources, options = call.body
        limit = self._doors.config.limits.command_bytes
        known = self._doors.goals.known
        request, command = wire.read_launch(name, argv, resources, options, call.fds, limit, known)
        vm = await self._requests.launch(call.caller, request, command)
        return Reply([vm_path(vm.name), vm.unit])

    async def _acquire(self, call: Call) -> Reply:
        name, resources, options = call.body
        known = self._doors.goals.known
        request = wire.read_request(name, resources, options, call.fds, known)
        vm = await self._requests.acquire(call.caller, request)
        return Reply([vm_path(vm.name)])

    async def _release(self, call: Call) -> Reply:
        name, options = call.body
        await self._requests.release(call.caller, name, wire.read_id(options))
        return Reply([])

    async def _forget(self, call: Call) -> Reply:
        name, options = call.body
        await self._requests.forget(call.caller, name, wire.read_id(options))
        return Reply([])

    async def _plan(self, call: Call) -> Reply:
        name, resources, options = call.body
        known = self._doors.goals.known
        request = wire.read_request(name, resources, options, call.fds, known)
        goal, vm, plan = await self._requests.plan(call.caller, request)
        does = goal_answers.planned(goal, vm, self._doors.goals.problem(goal))
        return Reply([[*answers.plan_steps(plan), does]])

    async def _list_goals(self, call: Call) -> Reply:
        base = self._doors.contexts
        found = await self._queries.goals(call.caller)
        return Reply([[goal_answers.rules(goal, base, problem) for goal, problem in found]])

    async def _get_vm(self, call: Call) -> Reply:
        entry = await self._queries.vm(call.caller, call.body[0])
        return Reply([vm_path(entry.vm.name)])

    async def _get_vm_by_pid(self, call: Call) -> Reply:
        vm = await self._queries.vm_of_pid(call.caller, call.body[0])
        return Reply([vm_path(vm.name)])

    async def _get_vm_by_uuid(self, call: Call) -> Reply:
        vm = await self._queries.vm_of_uuid(call.caller, call.body[0])
        return Reply([vm_path(vm.name)])

    async def _list_vms(self, call: Call) -> Reply:
        vms = await self._queries.vms(call.caller)
        return Reply(
            [[[vm.name, vm.state.value, vm.unit, vm.owner_uid, vm_path(vm.name)] for vm in vms]]
        )

    async def _find_owners(self, call: Call) -> Reply:
        owners = await self._queries.owners(call.caller, call.body[0])
        return Reply(
            [
                [
                    answers.owner(vm, hold, vm_path(vm.name))
                    if sees(call.caller, vm)
                    else answers.held()
                    for vm, hold in owners
                ]
            ]
        )

    async def _verify(self, call: Call) -> Reply:
        repair, options = call.body
        wanted = wire.read_verify(repair, options)
        findings = await self._verify_.run(call.caller, wanted)
        return Reply([[answers.finding(one) for one in findings]])

    async def _matrix(self, call: Call) -> Reply:
        wire.no_options(call.body[0])
        cells, by_policy = await self._matrix_.run(call.caller)
        return Reply([[answers.cell(one, by_policy=by_policy) for one in cells]])

    async def _list_walls(self, call: Call) -> Reply:
        return Reply([[answers.wall(one) for one in await self._walls.views(call.caller)]])

    async def _clear_wall(self, call: Call) -> Reply:
        wall, subject, options = call.body
        wire.no_options(options)
        return Reply([await self._walls.clear(call.caller, wall, subject)])

    async def _list_foreign(self, call: Call) -> Reply:
        found = await self._foreign.listed(call.caller)
        return Reply([[answers.foreign(one) for one in found]])

    async def _backup(self, call: Call) -> Reply:
        wire.no_options(call.body[0])
        return Reply([0], (await self._backups.open(call.caller),))

    async def manager_properties(self, caller: Caller) -> dict[str, Variant]:
        """Return every property of org.svirt1.Manager."""
        counts = await self._queries.counts(caller)
        doors = self._doors
        return {
            "Version": Variant("s", svirtd.__version__),
            **_standing(doors.enforcement.now(), doors),
            "PairsTotal": Variant("t", doors.shape.total),
            "PairsInUse": Variant("t", counts.pairs_in_use),
            "PairsQuarantined": Variant("t", counts.pairs_quarantined),
            "GroupCategoriesTotal": Variant("t", len(doors.config.group_categories)),
            "GroupCategoriesInUse": Variant("t", counts.groups),
            "LibvirtAdopt": Variant("as", list(doors.config.libvirt_adopt)),
            "LibvirtRequireAdopted": Variant("b", doors.config.libvirt_require_adopted),
        }

    # -- org.svirt1.VM ----------------------------------------------------------------------

    async def _vm_release(self, call: Call) -> Reply:
        id_ = wire.read_id(call.body[0])
        await self._requests.release(call.caller, call.vm_name, id_)
        return Reply([])

    async def _open_channel(self, call: Call) -> Reply:
        socket, options = call.body
        id_ = wire.read_id(options)
        fd = await self._requests.open_channel(call.caller, call.vm_name, socket, id_)
        return Reply([0], (fd,))

    async def _follow(self, call: Call) -> Reply:
        pid, options = call.body
        await self._followed.follow(call.caller, call.vm_name, pid, wire.read_id(options))
        return Reply([])

    async def _ending(self, call: Call) -> Reply:
        await self._followed.ending(call.caller, call.vm_name, wire.read_id(call.body[0]))
        return Reply([])

    async def vm_properties(self, caller: Caller, name: str) -> dict[str, Variant]:
        """Return every property of one VM that the caller may see."""
        return _visible(caller, await self._queries.vm(caller, name))

    # -- org.svirt1.Job ---------------------------------------------------------------------

    async def _job_cancel(self, call: Call) -> Reply:
        wire.no_options(call.body[0])
        await self._jobs.cancel(call.caller, call.job)
        return Reply([])

    async def job_properties(self, caller: Caller, number: int) -> dict[str, Variant]:
        """Return every property of a job. Raises UnknownObject."""
        return answers.job_properties(await self._jobs.view(caller, number))

    def job_numbers(self) -> list[str]:
        """Return the path elements of the jobs, for introspection."""
        return [str(job.id) for job in self._jobs.all()]

    async def managed(self, caller: Caller) -> dict[str, dict[str, dict[str, Variant]]]:
        """Return every object with what the caller may see of it, for GetManagedObjects."""
        vms = {
            vm_path(entry.vm.name): {VM: _visible(caller, entry)}
            for entry in await self._queries.entries(caller)
        }
        jobs = {job_path(j.id): {JOB: answers.job_properties(j)} for j in self._jobs.all()}
        return vms | await self._groups.managed(caller) | jobs

    async def group_properties(self, caller: Caller, name: str) -> dict[str, Variant]:
        """Return every property of one group that the caller may see."""
        return await self._groups.properties(caller, name)

    async def group_children(self, caller: Caller) -> list[str]:
        """Return the path elements of the group objects, for introspection."""
        return await self._groups.children(caller)

    async def children(self, caller: Caller) -> list[str]:
        """Return the path elements of the VM objects, for introspection."""
        return [escape_path(vm.name) for vm in await self._queries.vms(caller)]

    # -- signals (engine.events.Listener) ---------------------------------------------------

    def added(self, entry: Entry, _cause: Cause) -> None:
        """A VM has entered the book."""
        path = vm_path(entry.vm.name)
        properties = answers.public_properties(entry.vm)
        self.emit(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, {VM: properties}])
        self.emit(ROOT, MANAGER, "VMAdded", "so", [entry.vm.name, path])
        self._groups.members_changed(set(entry.vm.groups))

    def changed(self, before: Entry, after: Entry, _cause: Cause) -> None:
        """A VM is not what it was."""
        public, others = answers.vm_changes((before.vm, before.holds), (after.vm, after.holds))
        if public or others:
            path = vm_path(after.vm.name)
            self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [VM, public, others])
        self._groups.members_changed(set(before.vm.groups) ^ set(after.vm.groups))

    def removed(self, entry: Entry, _cause: Cause) -> None:
        """A VM has left the book."""
        path = vm_path(entry.vm.name)
        self.emit(
            ROOT,
            OBJECT_MANAGER,
            "InterfacesRemoved",
            "oas",
            [path, [VM]],
        )
        self.emit(ROOT, MANAGER, "VMRemoved", "so", [entry.vm.name, path])
        self._groups.members_changed({*entry.vm.groups, *entry.vm.lasting})

    def group_added(self, view: GroupView, _cause: Cause) -> None:
        """A group has entered the book."""
        self._groups.added(view)

    def group_changed(self, before: GroupView, after: GroupView, _cause: Cause) -> None:
        """A group's lasting members or grants are not what they were."""
        self._groups.changed(before, after)

    def group_removed(self, view: GroupView, _cause: Cause) -> None:
        """A group has left the book."""
        self._groups.removed(view)

    def job_new(self, job: JobView) -> None:
        """A job has begun."""
        path = job_path(job.id)
        properties = answers.job_properties(job)
        self.emit(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, {JOB: properties}])
        self.emit(ROOT, MANAGER, "JobNew", "uo", [job.id, path])

    def job_changed(self, before: JobView, after: JobView) -> None:
        """A job has got further."""
        old = answers.job_properties(before)
        changes = {k: v for k, v in answers.job_properties(after).items() if v != old[k]}
        path = job_path(after.id)
        self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [JOB, changes, []])

    def job_removed(self, job: JobView) -> None:
        """A job has ended; its state says how."""
        path = job_path(job.id)
        self.emit(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [JOB]])
        self.emit(ROOT, MANAGER, "JobRemoved", "uos", [job.id, path, job.state.value])

    def enforcement(self, before: Standing, after: Standing) -> None:
        """The kernel does something else with labels than before, or by another policy."""
        old, new = _standing(before, self._doors), _standing(after, self._doors)
        changes = {name: value for name, value in new.items() if value != old[name]}
        if changes:
            self.emit(ROOT, PROPERTIES, "PropertiesChanged", "sa{sv}as", [MANAGER, changes, []])

    def drift(self, finding: Finding) -> None:
        """An object is not what the book says."""
        self.emit(ROOT, MANAGER, "DriftFound", "a{sv}", [answers.finding(finding)])


def _visible(caller: Caller, entry: Entry) -> dict[str, Variant]:
    if sees(caller, entry.vm):
        return answers.vm_properties(entry.vm, entry.holds)
    return answers.public_properties(entry.vm)


def _standing(standing: Standing, doors: Doors) -> dict[str, Variant]:
    """The properties that change with the kernel's mode and its policy."""
    features = ["caller-lifetime", "channels", "enrolled", "goals", "groups", "hotplug", "launch"]
    features += ["libvirt", "matrix", "nodes", "qcow2", "trees", "verify", "walls"]
    features += ["machined"] * (doors.machined is not None)
    features += ["object-manager"] * standing.asks
    return {
        "Features": Variant("as", features),
        "SELinuxMode": Variant("s", standing.mode.value),
        "Enforced": Variant("b", standing.enforced),
        "PolicyName": Variant("s", standing.policy),
    }
