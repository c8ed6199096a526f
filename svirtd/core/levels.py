# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levels: the sensitivity of a VM and of what it uses, and what a policy with levels (MLS) makes of
them. Pure.

A caller names sensitivities alone; categories are svirtd's to give. What a VM may do at its level
is the loaded policy's to decide. It is foretold here, by the rules of the reference policy for a
domain that is trusted with no other level: what could not work is refused before it is begun.
"""

from dataclasses import dataclass, replace

from svirtd.core.goals import Goal
from svirtd.core.mcs import Context, Level, Range, parse_context, parse_range
from svirtd.core.model import Access
from svirtd.core.plan import Decision, Plan
from svirtd.errors import InvalidArgs, ResourceRefused


@dataclass(frozen=True, slots=True, order=True)
class Sensitivities:
    """What a caller may say of a level: the lowest and the highest sensitivity, often the same."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"s{self.low}" if self.low == self.high else f"s{self.low}-s{self.high}"


def parse_sensitivities(text: str) -> Sensitivities:
    """Read `sN` or `sN-sM`. ValueError says what else was found, categories above all."""
    found = parse_range(text)
    if found.low.categories or found.high.categories:
        raise ValueError(
            "it names categories, which svirtd chooses: give sensitivities alone, such as "
            f"{Sensitivities(found.low.sensitivity, found.high.sensitivity)}"
        )
    return Sensitivities(found.low.sensitivity, found.high.sensitivity)


def default(base: Context) -> Sensitivities:
    """Return the level of whatever no level was asked for: the low one of its base context."""
    return Sensitivities(base.range.low.sensitivity, base.range.low.sensitivity)


def asked(text: str, base: Context) -> Sensitivities:
    """Return the level that was asked for; empty is the default."""
    return parse_sensitivities(text) if text else default(base)


def refuse_outside(goal: Goal, wanted: Sensitivities) -> None:
    """Raise InvalidArgs for a level that a goal does not have; the default one counts as well."""
    if goal.levels is None:
        return
    low, high = goal.levels
    if not low <= wanted.low <= wanted.high <= high:
        raise InvalidArgs(
            f"goal {goal.name!r} is for VMs at {Sensitivities(low, high)}, and this one would be "
            f"at {wanted}: give it such a level, or take another goal"
        )


def at(context: Context, wanted: Sensitivities) -> Context:
    """Return a context at other sensitivities, with the same categories at both ends.

    At the low one too: by it one process is kept from another and from what the other has.
    """
    found = context.range
    if found.low.categories == found.high.categories and (
        found.low.sensitivity,
        found.high.sensitivity,
    ) == (wanted.low, wanted.high):
        return context
    categories = context.categories
    low, high = Level(wanted.low, categories), Level(wanted.high, categories)
    return context.with_range(Range(low, high))


def beside(context: Context, process: Context) -> Context:
    """Return the context of what is a VM's own, at the VM's low level."""
    low = process.range.low.sensitivity
    return at(context, Sensitivities(low, low))


def made_by(process: Context, folder: Context) -> Context:
    """Return the context of what a process makes in a folder: the folder's type, its own low level.

    With all of its categories, those of its groups among them: the other members lack its pair.
    """
    return folder.with_range(Range(process.range.low, process.range.low))


def not_below(label: str, held: str) -> str:
    """Return a label, at the sensitivity of `held` if that is higher: what was labelled so may have
    been written so."""
    context, least = parse_context(label), parse_context(held).range.low.sensitivity
    if context.range.low.sensitivity >= least:
        return label
    return str(at(context, Sensitivities(least, least)))


def reads_down(process: Range, resource: Range) -> bool:
    """Say whether a process may read an object: what its low level dominates (no read up)."""
    return process.low.dominates(resource.low)


def writes_level(process: Range, resource: Range) -> bool:
    """Say whether a process may write an object: at its low level and no other (no write down, and
    none up either, where it could destroy what it cannot see)."""
    return process.low == resource.low


def obstacle(process: Range, resource: Range, access: Access) -> str:
    """Say which rule keeps a VM from using a resource like this; empty if none does."""
    if not reads_down(process, resource):
        return (
            f"it would be at {resource} and the VM runs at {process}: a VM reads what its low "
            "level dominates (no read up). Give the resource the VM's level or a lower one"
        )
    if access.writes and not writes_level(process, resource):
        return (
            f"it would be at {resource} and the VM runs at {process}: a VM writes only what is at "
            "its own low level, categories included (no write down). Give the resource the VM's "
            "level, or access 'readonly'"
        )
    return ""


def movement(original: Range, target: Range, access: Access) -> str:
    """Say how labelling an object would move what is in it to a lower level; empty if it does not.

    svirtd itself may do that, the policy trusts it to: so that nobody does it by way of svirtd.
    """
    before, after = original.high.sensitivity, target.low.sensitivity
    if after < before:
        return (
            f"it is at {original} and would come down to {target}; svirtd takes nothing to a lower "
            "level. Whoever may do that does it first (chcon -l)"
        )
    if access.writes and after > original.low.sensitivity:
        return (
            f"it is at {original}, and what the VM writes there at {target} would come down to "
            "that level when the label is given back; svirtd takes nothing to a lower level. Give "
            f"the file the VM's first: chcon -l s{after} FILE"
        )
    return ""


def placed(decided: Plan, process: Context, *, enforced: bool) -> Plan:
    """Return a plan with each resource at its level: its own, or else the low one of the VM.

    `enforced`: the policy has levels, so that what could not work is refused.
    """
    return Plan(tuple(_placed(one, process.range, enforced) for one in decided.decisions))


def _placed(decision: Decision, process: Range, enforced: bool) -> Decision:
    if not decision.target:
        return decision
    seen, low = decision.seen, process.low.sensitivity
    wanted = parse_sensitivities(seen.terms.level) if seen.terms.level else Sensitivities(low, low)
    held = decision.step is None and decision.refusal is None
    target = parse_context(decision.target)
    if not held:
        target = at(target, wanted)
        step = None if decision.step is None else replace(decision.step, new=str(target))
        decision = replace(decision, target=str(target), step=step)
    if decision.refusal is not None:
        return decision
    why = ""
    if held and seen.terms.level and default(target) != wanted:
        why = f"another VM holds it at {target.range}, so that it cannot be at {wanted} as well"
    if not why and not held and seen.label is not None:
        why = movement(parse_context(seen.label).range, target.range, seen.access)
    if not why and decision.stays and str(target) != seen.label:
        why = (
            f"it carries {seen.label}, which cannot be changed for this VM, and at its level it "
            f"would be {target}"
        )
    if not why and enforced:
        why = obstacle(process, target.range, seen.access)
    if why:
        return replace(decision, step=None, refusal=ResourceRefused(f"{seen.named}: {why}"))
    return decision
