# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results to D-Bus values, as the contract words them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from svirtd.core.filesystems import Labels
from svirtd.core.findings import Finding
from svirtd.core.job import JobView
from svirtd.core.matrix import Cell
from svirtd.core.mcs import format_categories
from svirtd.core.model import VM, Hold
from svirtd.core.plan import Decision, Plan
from svirtd.engine.enrolled import EnrolledUnit
from svirtd.engine.foreign import Listed
from svirtd.engine.walls import View
from svirtd.host.bus import Variant

VM_PROPERTIES: Final[Mapping[str, tuple[str, Callable[[VM], object]]]] = {
    "Name": ("s", lambda vm: vm.name),
    "Id": ("s", lambda vm: vm.id),
    "UUID": ("s", lambda vm: vm.uuid),
    "Owner": ("u", lambda vm: vm.owner_uid),
    "State": ("s", lambda vm: vm.state.value),
    "StateReason": ("s", lambda vm: vm.reason),
    "Goal": ("s", lambda vm: vm.goal),
    "Groups": ("as", lambda vm: list(vm.groups)),
    "LastingGroups": ("as", lambda vm: list(vm.lasting)),
    "LabelledBy": ("s", lambda vm: vm.labeller.value or "svirtd"),
    "Unit": ("s", lambda vm: vm.unit),
    "MainPID": ("u", lambda vm: vm.main_pid),
    "ProcessContext": ("s", lambda vm: vm.process_context),
    "ImageContext": ("s", lambda vm: vm.image_context),
    "Categories": ("s", lambda vm: vm.categories),
    "RuntimeDirectory": ("s", lambda vm: vm.runtime_dir),
    "Persistent": ("b", lambda vm: vm.persistent),
    "Enrolled": ("s", lambda vm: vm.enrolled),
    "CreatedAt": ("t", lambda vm: vm.created_us),
}


# What everybody may know of a VM, and all that a signal carries, which goes to everybody: that it
# exists, in which state, and whose it is. What it uses is its owner's to know.
_PUBLIC: Final = ("Name", "Owner", "State")


def vm_properties(vm: VM, holds: Sequence[Hold]) -> dict[str, Variant]:
    """Return every property of org.svirt1.VM."""
    values = {name: Variant(sig, get(vm)) for name, (sig, get) in VM_PROPERTIES.items()}
    values["Resources"] = Variant("aa{sv}", [_hold(hold) for hold in holds])
    return values


def public_properties(vm: VM) -> dict[str, Variant]:
    """Return the properties of org.svirt1.VM that everybody may see."""
    return {name: Variant(VM_PROPERTIES[name][0], VM_PROPERTIES[name][1](vm)) for name in _PUBLIC}


def vm_changes(
    before: tuple[VM, Sequence[Hold]], after: tuple[VM, Sequence[Hold]]
) -> tuple[dict[str, Variant], list[str]]:
    """Return the properties whose values differ: public ones, and the names of the others."""
    changed = [n for n, (_, get) in VM_PROPERTIES.items() if get(before[0]) != get(after[0])]
    if tuple(before[1]) != tuple(after[1]):
        changed.append("Resources")
    public = public_properties(after[0])
    return (
        {name: value for name, value in public.items() if name in changed},
        [name for name in changed if name not in public],
    )


def _hold(hold: Hold) -> dict[str, Variant]:
    shown = {
        "path": Variant("s", hold.path),
        "access": Variant("s", hold.access.value),
        "context": Variant("s", hold.label),
    }
    if hold.recursive:
        shown["recursive"] = Variant("b", True)
    if hold.group:
        shown["group"] = Variant("s", hold.group)
    if hold.name:
        shown["id"] = Variant("s", hold.name)
    if hold.part_of:
        shown["part-of"] = Variant("s", hold.part_of)
    if hold.digest:
        shown["digest"] = Variant("s", f"sha256:{hold.digest}")
    if hold.until_us:
        shown["until"] = Variant("t", hold.until_us)
        shown["at-end"] = Variant("s", hold.at_end.value)
    if hold.original_known:
        shown["original"] = Variant("s", hold.original or "")
    return shown


def plan_steps(plan: Plan) -> list[dict[str, Variant]]:
    """Return a plan as Plan answers it."""
    steps = []
    for decision in plan.decisions:
        step = {
            "path": Variant("s", decision.seen.path),
            "access": Variant("s", decision.seen.access.value),
            "group": Variant("s", decision.seen.terms.group),
            "from": Variant("s", decision.seen.label or ""),
            "to": Variant("s", decision.target),
        }
        if decision.stays and decision.refusal is None:
            step["stays"] = Variant("s", _stays(decision))
        if decision.refusal is not None:
            step["error"] = Variant("s", decision.refusal.name)
            step["reason"] = Variant("s", decision.refusal.text)
        steps.append(step)
    return steps


def _stays(decision: Decision) -> str:
    mount = decision.seen.mount
    if mount.labels is Labels.FIXED:
        return f"{mount.point} is mounted with it (context=), and gives it to all that is there"
    return "it is another user's, and every VM reads it by that already"


def held() -> dict[str, Variant]:
    """Return an owner as FindOwners answers it to whoever may not know who that is."""
    return {"held": Variant("b", True)}


def owner(vm: VM, hold: Hold | None, path: str) -> dict[str, Variant]:
    """Return one owner as FindOwners answers it; `path` is the VM's object."""
    found = {
        "vm": Variant("s", vm.name),
        "object": Variant("o", path),
        "state": Variant("s", vm.state.value),
    }
    if hold is not None:
        found["path"] = Variant("s", hold.path)
        found["access"] = Variant("s", hold.access.value)
    return found


def finding(one: Finding) -> dict[str, Variant]:
    """Return a finding as DriftFound carries it."""
    return {
        "kind": Variant("s", one.kind),
        "vm": Variant("s", one.vm_name),
        "path": Variant("s", one.path),
        "expected": Variant("s", one.expected),
        "found": Variant("s", one.found),
        "reason": Variant("s", one.reason),
        "repair": Variant("s", one.repair),
        "repaired": Variant("b", one.repaired),
    }


def foreign(one: Listed) -> dict[str, Variant]:
    """Return a foreign set as ListForeign answers it."""
    return {
        "context": Variant("s", one.found.context),
        "categories": Variant("s", format_categories(one.found.categories)),
        "pid": Variant("u", one.found.pids[0]),
        "processes": Variant("u", len(one.found.pids)),
        "owner": Variant("u", one.facts.uid),
        "name": Variant("s", one.facts.name),
        "unit": Variant("s", one.facts.unit),
        "groups": Variant("as", list(one.groups)),
    }


def enrolled(one: EnrolledUnit, path: str) -> dict[str, Variant]:
    """Return an enrolled unit as ListEnrolled tells it; `path` is the object of its VM."""
    return {
        "unit": Variant("s", one.enrolment.unit),
        "vm": Variant("s", one.vm.name),
        "object": Variant("o", path),
        "state": Variant("s", one.vm.state.value),
        "since": Variant("t", one.enrolment.since_us),
        "context": Variant("s", one.context),
        "drop-in": Variant("s", one.drop_in),
        "problem": Variant("s", one.problem),
    }


def cell(one: Cell, *, by_policy: bool) -> dict[str, Variant]:
    """Return a cell of the matrix, as Matrix tells it."""
    return {
        "vm": Variant("s", one.vm_name),
        "kind": Variant("s", "vm" if one.is_vm else "resource"),
        "object": Variant("s", one.what),
        "identity": Variant("s", one.identity),
        "group": Variant("s", one.group),
        "granted": Variant("as", sorted(one.granted)),
        "allowed": Variant("as", sorted(one.allowed)),
        "surplus": Variant("as", sorted(one.surplus)),
        "shortfall": Variant("as", sorted(one.shortfall)),
        "by": Variant("s", "policy" if by_policy else "algebra"),
    }


def wall(one: View) -> dict[str, Variant]:
    """Return a wall as ListWalls tells it."""
    return {
        "name": Variant("s", one.wall.name),
        "scope": Variant("s", one.wall.scope.value if one.configured else ""),
        "classes": Variant("aas", [list(groups) for groups in one.wall.classes]),
        "configured": Variant("b", one.configured),
        "entries": Variant("t", one.rows),
        "history": Variant(
            "aa{sv}",
            [
                {
                    "subject": Variant("s", row.subject),
                    "group": Variant("s", row.group),
                    "vm": Variant("s", row.vm_name),
                    "since": Variant("t", row.since_us),
                }
                for row in one.history
            ],
        ),
        "cleared": Variant(
            "aa{sv}",
            [
                {
                    "subject": Variant("s", row.subject),
                    "uid": Variant("u", row.uid),
                    "entries": Variant("t", row.count),
                    "at": Variant("t", row.at_us),
                }
                for row in one.cleared
            ],
        ),
    }


# Property of org.svirt1.Job → its signature, and where the value comes from.
JOB_PROPERTIES: Final[Mapping[str, tuple[str, Callable[[JobView], object]]]] = {
    "Id": ("u", lambda job: job.id),
    "Kind": ("s", lambda job: job.kind),
    "Owner": ("u", lambda job: job.owner_uid),
    "State": ("s", lambda job: job.state.value),
    "Progress": ("d", lambda job: job.progress),
    "Error": ("(ss)", lambda job: list(job.error)),
    "Done": ("t", lambda job: job.done),
    "Total": ("t", lambda job: job.total),
    "Rate": ("t", lambda job: job.rate),
    "Remaining": ("t", lambda job: job.remaining_us),
}


def job_properties(job: JobView) -> dict[str, Variant]:
    """Return every property of org.svirt1.Job."""
    return {name: Variant(sig, get(job)) for name, (sig, get) in JOB_PROPERTIES.items()}
