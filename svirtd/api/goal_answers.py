# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goals to D-Bus values, as the contract words them."""

from typing import Any

from svirtd.core.goals import Goal, GroupRule
from svirtd.core.model import VM, Contexts
from svirtd.errors import LabelRefused
from svirtd.host.bus import Variant


def rules(goal: Goal, base: Contexts, problem: str) -> dict[str, Variant]:
    """Return a goal as ListGoals answers it. `problem`: why the policy cannot keep it, if so."""
    contexts = goal.contexts(base)
    return {
        "name": Variant("s", goal.name),
        "description": Variant("s", goal.description),
        "source": Variant("s", goal.source),
        "process-type": Variant("s", contexts.process.type),
        "image-type": Variant("s", contexts.image.type),
        "accesses": Variant("as", sorted(one.value for one in goal.accesses)),
        "default-access": Variant("s", goal.default_access.value),
        "groups": _groups(goal),
        **_effects(goal),
        "levels": Variant("s", _levels(goal)),
        "problem": Variant("s", problem),
    }


def planned(goal: Goal, vm: VM, problem: str) -> dict[str, Variant]:
    """Return what a goal does to a VM, as the last entry of Plan's answer."""
    entry = {
        "goal": Variant("s", goal.name),
        "process": Variant("s", vm.process_context),
        "image": Variant("s", vm.image_context),
        **_effects(goal),
    }
    if problem:
        entry |= {"error": Variant("s", LabelRefused.name), "reason": Variant("s", problem)}
    return entry


def _effects(goal: Goal) -> dict[str, Variant]:
    return {
        "network": Variant("s", goal.network.value),
        "devices": _or_list("host" if goal.devices is None else goal.devices),
        "written": Variant("s", goal.written.value),
        "digest": Variant("b", goal.digest),
    }


def _groups(goal: Goal) -> Variant:
    if isinstance(goal.groups, GroupRule):
        return Variant("s", goal.groups.value)
    return _or_list(sorted(goal.groups))


def _or_list(value: Any) -> Variant:
    return Variant("s", value) if isinstance(value, str) else Variant("as", list(value))


def _levels(goal: Goal) -> str:
    if goal.levels is None:
        return ""
    low, high = goal.levels
    return f"s{low}" if low == high else f"s{low}-s{high}"
