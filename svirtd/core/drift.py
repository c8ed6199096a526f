# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is a held object as the book says, and if not, may its label be put back? Pure."""

from svirtd.core.findings import Finding, FindingKind, Look
from svirtd.core.mcs import parse_context
from svirtd.core.model import VM, Hold, Labeller, State
from svirtd.core.nodes import is_character
from svirtd.core.rules import UNLABELLED_TYPE, Rules

PUT_BACK = "puts the label back"
_LEFT_ALONE = "nothing: "


def judge(hold: Hold, look: Look, rules: Rules) -> Finding | None:
    """Return what is wrong with a held object, None if nothing is."""
    if look.problem is None and look.label == hold.label:
        return None
    kind, reason = FindingKind.CHANGED, "somebody else changed its label"
    if look.problem is not None:
        kind, reason = look.problem, look.why
    return Finding(
        kind=kind,
        vm_name=hold.vm_name,
        path=hold.path,
        expected=hold.label,
        found=look.label or "",
        reason=reason,
        repair=_repair(look, rules, character=is_character(hold.device)),
    )


def stands(vm: VM) -> bool:
    """Say whether what a VM holds should carry its labels by now.

    libvirt sets them only after the VM was entered, and gives the earlier ones back by itself.
    """
    if vm.labeller is Labeller.LIBVIRT:
        return vm.state is State.RUNNING
    return vm.state in (State.LABELLED, State.RUNNING)


def may_put_back(finding: Finding) -> bool:
    """Say whether a repair does something about this finding of judge()."""
    return finding.repair == PUT_BACK


def _repair(look: Look, rules: Rules, *, character: bool) -> str:
    match look.problem:
        case None:
            why = why_not(look.label, rules, character=character)
            return _LEFT_ALONE + why if why else PUT_BACK
        case FindingKind.MISSING:
            return (
                _LEFT_ALONE
                + "bring the file back to its path, or release the VM; its categories stay out of "
                "use until the file is seen clean"
            )
        case FindingKind.REPLACED:
            return (
                _LEFT_ALONE
                + "the file that is there now was not given to the VM; put the old one back, or "
                "release the VM"
            )
        case _:
            return _LEFT_ALONE + "mend what keeps svirtd from the file"


def why_not(label: str | None, rules: Rules, *, character: bool) -> str:
    """Say why a label that somebody else set is left as it is; empty if it may be replaced.

    The rule is that of a first labelling. What `restorecon` sets is a plain type of the list. A
    type outside of it made the file the host's, and categories made it somebody else's VM's: taking
    either away could cut that one off, or give away what it wrote meanwhile.
    """
    if label is None:
        found, categories = UNLABELLED_TYPE, frozenset[int]()
    else:
        try:
            context = parse_context(label)
        except ValueError:
            return "what it carries is not a context; look who set it"
        found, categories = context.type, context.categories
    if categories:
        return "its label has categories, another VM may be using it; end that VM's use first"
    if not rules.may_take(found, character=character):
        key = "relabel-devices-from" if character else "relabel-from"
        return f"type {found} is not in [labels] {key}; release the VM, or chcon it back"
    return ""
