# SPDX-License-Identifier: LGPL-2.1-or-later
"""What objects get back whose label before svirtd is not known.

Such an object gets what the policy says a file at its path has, if that is a type that svirtd may
label files from: it is then what an administrator's restorecon would make of it. Otherwise it
keeps the VM's label, and its pair stays in quarantine until somebody has labelled it. Any other
label would be a choice for the administrator: the content type is read by every VM, the image type
without categories is even written by every VM, and one that no VM may use might be what a service
needs. On a kernel without SELinux an object has no label of its own: it is removed.
"""

import stat
from collections.abc import Mapping, Sequence
from typing import Final

from svirtd.book.pool import Suspect
from svirtd.core import levels
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.mcs import parse_context
from svirtd.core.model import VM, Hold, Identity, Step
from svirtd.core.nodes import is_character
from svirtd.engine import apply
from svirtd.engine.doors import Doors
from svirtd.host import files

_GUESSED: Final = (
    "its label before svirtd was not known; it got the one that the policy has for this path"
)
_KEPT: Final = (
    "its label before svirtd is not known, and the policy has none for this path that is in "
    "relabel-from: it keeps the VM's"
)
_GIVE: Final = "give it a label (for a disk image: chcon -t virt_image_t -l s0 FILE)"


async def guesses(doors: Doors, holds: Sequence[Hold]) -> Mapping[Identity, str | None]:
    """Return the label that each object without a known original is to get; the others keep it."""
    unknown = [hold for hold in holds if not hold.original_known]
    return await doors.in_file_thread(_look, doors, unknown) if unknown else {}


def _look(doors: Doors, holds: Sequence[Hold]) -> Mapping[Identity, str | None]:
    if not doors.kernel.enabled():
        return {hold.identity: None for hold in holds}
    found = [(hold, doors.kernel.default_label(hold.path, _kind(hold))) for hold in holds]
    rules = doors.rules
    return {
        hold.identity: levels.not_below(label, hold.label)
        for hold, label in found
        if label is not None
        and rules.may_take(parse_context(label).type, character=is_character(hold.device))
    }


def _kind(hold: Hold) -> int:
    try:
        return stat.S_IFMT(files.mode_of(hold.path))
    except OSError:
        return 0  # whatever kind: it is gone, and nothing will be labelled


def findings(vm: VM, holds: Sequence[Hold], steps: Sequence[Step]) -> list[Finding]:
    """Return what is to be reported of the objects whose original is not known."""
    given = {step.identity: step.new for step in steps}
    found = []
    for hold in holds:
        if hold.original_known:
            continue
        if hold.identity in given:
            kind, now, why, repair = (
                FindingKind.GUESSED,
                given[hold.identity],
                _GUESSED,
                "nothing: give it another label if that is not the right one",
            )
        else:
            kind, now, why, repair = FindingKind.STALE, hold.label, _KEPT, f"nothing: {_GIVE}"
        found.append(Finding(kind, vm.name, hold.path, "", now or "", why, repair))
    return found


def suspects(
    vm: VM, sets: Mapping[int, frozenset[int]], holds: Sequence[Hold], steps: Sequence[Step]
) -> list[Suspect]:
    """Return the objects that keep the VM's label."""
    given = {step.identity for step in steps}
    return [
        Suspect(0, key, vm.name, hold.identity, hold.path, hold.label, _KEPT)
        for key, categories in sets.items()
        for hold in holds
        if not hold.original_known
        and hold.identity not in given
        and apply.may_carry(hold.label, categories)
    ]
