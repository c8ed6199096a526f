# SPDX-License-Identifier: LGPL-2.1-or-later
"""Takes the steps of an operation, and takes them back. Idempotent; runs in a file thread.

A label is only ever changed from what the step expects: anything else was set by somebody else
and is left alone.
"""

import contextlib
import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.book.pool import Suspect
from svirtd.core.findings import Finding, FindingKind, Look
from svirtd.core.mcs import parse_context
from svirtd.core.model import VM, Hold, Identity, Step
from svirtd.core.nodes import is_character
from svirtd.errors import LabelRefused, ResourceRefused
from svirtd.failpoints import Point, reach
from svirtd.host import files
from svirtd.host.boot import is_device_node
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.opening import Opened

_MISSING: Final = "nothing is at this path any more"
_REPLACED: Final = "another file is at this path now"
BY_MOUNT: Final = "its mount gives it this label (context=)"
_CHANGED: Final = "somebody else changed its label; left alone"


class Fate(enum.StrEnum):
    """What became of one step."""

    DONE = "done"
    CHANGED = "changed"
    MISSING = "missing"
    REPLACED = "replaced"
    UNSYNCED = "unsynced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step, what became of it, what was found there and why."""

    step: Step
    fate: Fate
    found: str | None
    reason: str


class Undone(Exception):
    """An operation failed and was taken back. `outcomes` tells of each step that was undone."""

    def __init__(self, error: Exception, outcomes: tuple[Outcome, ...]) -> None:
        super().__init__(str(error))
        self.error = error
        self.outcomes = outcomes


def label(kernel: Kernel, steps: Sequence[Step], opened: Sequence[Opened]) -> None:
    """Take every step through the open descriptors, or none. Raises Undone."""
    fds = {one.seen.identity: one.handle for one in opened}
    taken: list[Step] = []
    try:
        for target in {step.new for step in steps if step.new is not None}:
            kernel.check_context(target)
        for step in steps:
            reach(Point.LABEL_BEFORE)
            _label_one(kernel, fds[step.identity], step)
            taken.append(step)
            reach(Point.LABEL_AFTER)
    except Exception as error:  # a defect, too, must leave nothing labelled
        outcomes = tuple(
            _take(kernel, fds[step.identity], step.undone(), durable=True)
            for step in reversed(taken)
        )
        raise Undone(error, outcomes) from error


def _label_one(kernel: Kernel, fd: int | str, step: Step) -> None:
    if not files.change_label(kernel, fd, step):
        raise ResourceRefused(
            f"{step.path} got another label while it was being looked at; try again"
        )


def take_found(kernel: Kernel, steps: Sequence[Step], *, durable: bool) -> tuple[Outcome, ...]:
    """Take each step that can be taken, finding its object by path and identity.

    `durable` brings the change to the disk, so that a power cut cannot bring the old label back.
    """
    return tuple(_take_found(kernel, step, durable=durable) for step in steps)


def all_stand(kernel: Kernel, steps: Sequence[Step]) -> bool:
    """Say whether every object is there and carries what its step set."""
    return all(_stands(kernel, step) for step in steps)


def look(kernel: Kernel, path: str, identity: Identity) -> Look:
    """Look at an object where the book has it."""
    try:
        return Look(files.label_of(kernel, path, identity))
    except files.Missing:
        return Look(None, FindingKind.MISSING, _MISSING)
    except files.Replaced:
        return Look(None, FindingKind.REPLACED, _REPLACED)
    except NoLabels:
        return Look(None, FindingKind.FAILED, "its file system cannot keep a label any more")
    except OSError as error:
        return Look(None, FindingKind.FAILED, f"its label cannot be read: {error.strerror}")


def carries(kernel: Kernel, path: str, identity: Identity, categories: frozenset[int]) -> bool:
    """Say whether an object may still carry these categories; when in doubt, it does."""
    try:
        return may_carry(files.label_of(kernel, path, identity), categories)
    except (files.Missing, files.Replaced, NoLabels, OSError):
        return True


def mount_carries(kernel: Kernel, path: str, categories: frozenset[int]) -> bool:
    """Say whether what had its label from its mount may still carry these categories there.

    Such a label goes with the mount and not with the file, so that the folder tells as well. When
    in doubt, it does.
    """
    for place in (path, os.path.dirname(path)):
        try:
            with files.held(place) as through:
                found = kernel.read_label(through)
        except files.Missing:
            continue
        except (NoLabels, OSError):
            return True
        if may_carry(found, categories):
            return True
    return False


def may_carry(label_found: str | None, categories: frozenset[int]) -> bool:
    """Say whether a label contains all these categories; one that cannot be read might."""
    if label_found is None:
        return False
    try:
        return categories <= parse_context(label_found).categories
    except ValueError:
        return True


def findings(vm: VM, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Return what is to be reported of these outcomes."""
    return [
        Finding(
            kind=FindingKind(one.fate.value),
            vm_name=vm.name,
            path=one.step.path,
            expected=one.step.old or "",
            found=one.found or "",
            reason=one.reason,
            repair="nothing: the VM's hold on it ends here",
        )
        for one in outcomes
        if one.fate is not Fate.DONE
    ]


def suspects(
    vm: VM,
    sets: Mapping[int, frozenset[int]],
    outcomes: Sequence[Outcome],
    holds: Sequence[Hold] = (),
) -> list[Suspect]:
    """Return the objects that may still carry a set of the VM's after these outcomes.

    `sets` are its private one and those of its groups, by the key that the quarantine has for each;
    `holds` are what the VM had.
    """
    characters = {hold.identity for hold in holds if is_character(hold.device)}
    return [
        Suspect(
            0,
            key,
            vm.name,
            one.step.identity,
            one.step.path,
            one.step.old or "",
            one.reason or BY_MOUNT,
            original=one.step.new,
            restorable=not may_carry(one.step.new, categories),
        )
        for key, categories in sets.items()
        for one in outcomes
        # What is on a mount with context= has the label that it says, before and after.
        if (one.fate is not Fate.DONE or may_carry(one.step.new, categories))
        # A public object never carried a category.
        and may_carry(one.step.old, categories)
        and not (one.fate is Fate.CHANGED and not may_carry(one.found, categories))
        and not (one.step.identity in characters and _is_unplugged(one))
    ]


def _is_unplugged(outcome: Outcome) -> bool:
    """Say whether a character device's node is gone with its device, as when somebody pulls a plug.

    The kernel makes and removes the nodes of devtmpfs by itself, and so is the label gone. Without
    this every stick that is taken out would cost a set until the next boot.
    """
    gone = outcome.fate in (Fate.MISSING, Fate.REPLACED)
    return gone and is_device_node(outcome.step.path)


def last_word(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return outcomes without those of a label that another step for the same object has taken.

    What cut off a change of access can leave an object with two labels that it may carry.
    """
    done = {one.step.identity for one in outcomes if one.fate is Fate.DONE}
    return tuple(
        one for one in outcomes if one.fate is not Fate.CHANGED or one.step.identity not in done
    )


def _take_found(kernel: Kernel, step: Step, *, durable: bool) -> Outcome:
    try:
        with files.handling(step.path, step.identity) as fd:
            return _take(kernel, fd, step, durable=durable)
    except files.Missing:
        return Outcome(step, Fate.MISSING, None, _MISSING)
    except files.Replaced:
        return Outcome(step, Fate.REPLACED, None, _REPLACED)
    except OSError as error:
        return _not_opened(kernel, step, error)


def _not_opened(kernel: Kernel, step: Step, error: OSError) -> Outcome:
    """An object that is there and cannot be opened: with a label that keeps us out, or else."""
    with contextlib.suppress(files.Missing, files.Replaced, NoLabels, OSError):
        found = files.label_of(kernel, step.path, step.identity)
        if found not in (step.old, step.new):
            return Outcome(step, Fate.CHANGED, found, _CHANGED)
    return Outcome(step, Fate.FAILED, None, f"it cannot be opened: {error.strerror}")


def _take(kernel: Kernel, fd: int | str, step: Step, *, durable: bool) -> Outcome:
    try:
        reach(Point.UNDO_BEFORE)
        changed = files.change_label(kernel, fd, step)
        reach(Point.UNDO_AFTER)
        found = step.new if changed else kernel.read_label(fd)
    except LabelRefused as error:
        return Outcome(step, Fate.FAILED, None, str(error))
    except (OSError, NoLabels) as error:
        return Outcome(step, Fate.FAILED, None, f"its label cannot be read: {error}")
    except Exception as error:  # noqa: BLE001 -- told as the reason; the other steps are taken
        return Outcome(step, Fate.FAILED, None, f"a fault of svirtd, {error!r}; report it")
    if found != step.new:
        return Outcome(step, Fate.CHANGED, found, _CHANGED)
    # Found as it should be without our doing: taken before, by a run that was cut off.
    try:
        if durable:
            files.sync(fd, step.path)
            reach(Point.UNDO_SYNCED)
    except OSError as error:
        reason = f"its label is back but not on the disk: {error.strerror}"
        return Outcome(step, Fate.UNSYNCED, found, reason)
    return Outcome(step, Fate.DONE, found, "")


def _stands(kernel: Kernel, step: Step) -> bool:
    try:
        return files.label_of(kernel, step.path, step.identity) == step.new
    except (files.Missing, files.Replaced, NoLabels, OSError):
        return False
