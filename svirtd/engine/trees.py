# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directory trees: labelled, given back, and looked at, by workers that the loop only waits for.

The label of the root is the operation's step, and in its hold; what entries had beside that is in
the book before the worker that has found it changes anything. So whatever is cut off, giving the
tree back needs nothing but the step and the book, as often as it takes.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from svirtd.book import trees
from svirtd.core import rules
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.mcs import parse_context
from svirtd.core.model import Caller, Hold, Identity, Kind, Override, Seen, Step
from svirtd.core.plan import Plan
from svirtd.core.rules import Asker
from svirtd.core.trees import Mode, Report, Rule, Sweep, Tally
from svirtd.engine.apply import Fate, Outcome, may_carry
from svirtd.engine.doors import Doors
from svirtd.engine.jobs import Job, Jobs
from svirtd.engine.openings import refuse_by_policy
from svirtd.errors import Cancelled, Failed, ResourceBusy, ResourceRefused, SvirtError
from svirtd.failpoints import Point, reach
from svirtd.host import files
from svirtd.host.crew import Offence, Other, Unwanted
from svirtd.host.journal import MessageId
from svirtd.host.opening import Opened

_TAKEN_BACK: Final = "the job was cancelled; every label is what it was"


@dataclass(frozen=True, slots=True)
class Asked:
    """For whom a tree is labelled, and which rules are lifted for it."""

    caller: Caller
    overrides: frozenset[Override]

    @property
    def asker(self) -> Asker:
        """As the rules take it."""
        return Asker(self.caller.uid, self.overrides)

    @property
    def owner_uid(self) -> int | None:
        """Who has to own every entry, None if that is not asked."""
        lifted = Override.OWNER in self.overrides or not self.caller.uid
        return None if lifted else self.caller.uid


class Trees:
    """What is done to trees. Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors, jobs: Jobs) -> None:
        self._doors = doors
        self._jobs = jobs

    def refuse_too_many(self, caller: Caller, opened: Sequence[Opened]) -> None:
        """Raise LimitsExceeded for a caller who has jobs enough under way already."""
        if any(one.seen.terms.recursive for one in opened):
            self._jobs.refuse_too_many(caller.uid)

    def job(self, uid: int) -> contextlib.AbstractContextManager[Job]:
        """Have a job that labels trees."""
        return self._jobs.running("tree", uid)

    @contextlib.contextmanager
    def job_of(self, steps: Sequence[Step], uid: int) -> Iterator[Job | None]:
        """Have a job that gives trees back, if there are some among these steps."""
        if not any(step.recursive for step in steps):
            yield None
            return
        with self._jobs.running("tree", uid, ends=False) as job:
            yield job

    async def label(self, step: Step, opened: Opened, asked: Asked, job: Job) -> None:
        """Take the step of a tree, entry by entry. What was done by then stands if it raises."""
        doors, seen = self._doors, opened.seen
        held = await doors.store.read(lambda db: trees.public_inodes(db, step.identity.dev))
        sweep = Sweep(
            Mode.SET,
            step.new,
            step.old,
            owner_uid=asked.owner_uid,
            links=Override.LINKS in asked.overrides,
            held=held - {step.identity.ino},
        )
        # What it can do with the root's own label was asked of a directory.
        self._refuse_label(_entry(seen, ".", label=seen.label), asked)
        allowed: set[str | None] = {step.new}

        async def remember(others: Sequence[Other]) -> None:
            for one in others:
                if one.label not in allowed:
                    self._refuse_label(_entry(seen, one.example, label=one.label), asked)
                    allowed.add(one.label)
            rows = [(one.label, one.inodes) for one in others]
            await doors.store.write(
                functools.partial(trees.remember, root=step.identity, others=rows)
            )
            reach(Point.TREE_REMEMBERED)

        reach(Point.LABEL_BEFORE)
        try:
            report = await doors.crew.sweep(
                opened.fd,
                sweep,
                remember=remember,
                told=job.count,
                unwanted=lambda: job.cancelled,
                limit=doors.config.limits.tree_files,
            )
        except Unwanted:
            raise Cancelled(_TAKEN_BACK) from None
        except Offence as offence:
            raise self._refusal(seen, offence, asked) from None
        reach(Point.LABEL_AFTER)
        if report.mounts.count:
            doors.journal.record(
                MessageId.WARNING,
                f"{seen.path}: what is mounted in it was not labelled: {report.mounts}",
                SVIRT_PATH=seen.path,
            )

    async def looked(self, plan: Plan, opened: Sequence[Opened], asked: Asked) -> Plan:
        """Return a plan with what is refused of the trees in it; each is walked for that."""
        found = {one.seen.identity: one for one in opened}
        decisions = []
        for one in plan.decisions:
            if one.refusal is None and one.step is not None and one.step.recursive:
                refusal = await self._look(found[one.seen.identity], asked)
                one = replace(one, refusal=refusal)  # noqa: PLW2901
            decisions.append(one)
        return Plan(tuple(decisions))

    async def _look(self, opened: Opened, asked: Asked) -> SvirtError | None:
        seen = opened.seen
        sweep = Sweep(
            Mode.LOOK,
            None,
            None,
            owner_uid=asked.owner_uid,
            links=Override.LINKS in asked.overrides,
            held=await self._doors.store.read(
                lambda db: trees.public_inodes(db, seen.identity.dev)
            ),
        )
        try:
            limit = self._doors.config.limits.tree_files
            report = await self._doors.crew.sweep(opened.fd, sweep, limit=limit)
            for rule, tally in report.faults.items():
                offence = Offence(rule, tally.examples[0], report.reasons[rule])
                return self._refusal(seen, offence, asked)
            for label, tally in report.labels.items():
                self._refuse_label(_entry(seen, tally.examples[0], label=label), asked)
        except Offence as offence:
            return self._refusal(seen, offence, asked)
        except SvirtError as error:
            return error
        return None

    async def back(self, step: Step, *, undone: bool, job: Job | None = None) -> Outcome:
        """Give every entry that carries `step.old` what it had before; it is on the disk then.

        `undone`: the tree was not labelled to its end, so that other labels say nothing.
        """
        doors = self._doors
        try:
            fd = await doors.in_file_thread(files.find, step.path, step.identity)
        except files.Missing:
            return Outcome(step, Fate.MISSING, None, "nothing is at this path any more")
        except files.Replaced:
            return Outcome(step, Fate.REPLACED, None, "something else is at this path now")
        except OSError as error:
            return Outcome(step, Fate.FAILED, None, f"it cannot be opened: {error.strerror}")
        try:
            return await self._back(step, fd, undone=undone, job=job)
        finally:
            os.close(fd)

    async def _back(self, step: Step, fd: int, *, undone: bool, job: Job | None) -> Outcome:
        doors = self._doors
        others = await doors.store.read(lambda db: trees.remembered(db, step.identity))
        reach(Point.UNDO_BEFORE)
        try:
            sweep = Sweep(Mode.BACK, step.old, step.new, others=others)
            report = await doors.crew.sweep(fd, sweep, told=_told(None if undone else job))
        except Offence as offence:
            return Outcome(step, Fate.FAILED, None, f"{offence.path}: {offence.found}")
        except Failed as error:
            return Outcome(step, Fate.FAILED, None, str(error))
        reach(Point.UNDO_AFTER)
        try:
            await doors.in_file_thread(files.sync_tree, fd)
        except OSError as error:
            reason = f"its labels are back but not on the disk: {error.strerror}"
            return Outcome(step, Fate.UNSYNCED, None, reason)
        reach(Point.UNDO_SYNCED)
        failed = report.faults.get(Rule.FAILED)
        if failed is not None:
            why = report.reasons[Rule.FAILED]
            return Outcome(step, Fate.FAILED, None, f"of its entries {failed}: {why}")
        return _left(step, report, undone=undone)

    async def carries(self, root: Identity, path: str, categories: frozenset[int]) -> bool:
        """Say whether something in a tree may carry these categories; when in doubt, it does."""
        try:
            report = await self._report(root, path)
        except (files.Missing, files.Replaced, OSError, Offence, Failed):
            return True
        return Rule.FAILED in report.faults or any(
            may_carry(one, categories) for one in report.labels
        )

    async def check(self, hold: Hold) -> tuple[Finding | None, frozenset[str | None]]:
        """Return what is wrong with a held tree beyond its root, told as one, and the labels that
        entries carry instead of the hold's."""
        try:
            report = await self._report(hold.identity, hold.path)
        except (files.Missing, files.Replaced):
            return None, frozenset()  # told of the root
        except (OSError, Offence, Failed) as error:
            return _finding(hold, FindingKind.FAILED, "", f"it cannot be looked at: {error}"), (
                frozenset()
            )
        odd = {label: tally for label, tally in report.labels.items() if label != hold.label}
        failed = report.faults.get(Rule.FAILED)
        if failed is not None:
            why = f"{failed}: {report.reasons[Rule.FAILED]}"
            return _finding(hold, FindingKind.FAILED, "", f"not all could be looked at: {why}"), (
                frozenset()
            )
        if not odd:
            return None, frozenset()
        return _changed(hold, odd), frozenset(odd)

    async def set_again(
        self, hold: Hold, sources: frozenset[str | None], *, lost: bool = False
    ) -> str:
        """Label again what carries one of `sources`, `lost`: and had that very one before; returns
        why that failed, empty if not."""
        doors = self._doors
        sweep = Sweep(Mode.CHANGE, hold.label, None, sources=sources)
        if lost:
            others = await doors.store.read(lambda db: trees.remembered(db, hold.identity))
            mode, had = Mode.AGAIN, hold.original
            sweep = Sweep(mode, hold.label, had, sources=sources, others=others)
        try:
            fd = await doors.in_file_thread(files.find, hold.path, hold.identity)
        except (files.Missing, files.Replaced):
            return "it is not there any more"
        except OSError as error:
            return f"it cannot be opened: {error.strerror}"
        try:
            report = await doors.crew.sweep(fd, sweep)
            await doors.in_file_thread(files.sync_tree, fd)
        except (Offence, OSError, Failed) as error:
            return str(error)
        finally:
            os.close(fd)
        return "; ".join(f"{t}: {report.reasons[rule]}" for rule, t in report.faults.items())

    async def _report(self, root: Identity, path: str) -> Report:
        doors = self._doors
        fd = await doors.in_file_thread(files.find, path, root)
        try:
            return await doors.crew.sweep(fd, Sweep(Mode.LOOK, None, None))
        finally:
            os.close(fd)

    # -- what is refused ----------------------------------------------------------------------

    def _refuse_label(self, entry: Seen, asked: Asked) -> None:
        """The rules about a label are those about a file's: an entry is not less than a file."""
        rules.refuse_type(entry, self._doors.rules)
        rules.refuse_carried(entry, self._doors.rules)
        if Override.OWNER not in asked.overrides:
            refuse_by_policy(self._doors.kernel, asked.caller, [entry])

    def _refusal(self, seen: Seen, offence: Offence, asked: Asked) -> SvirtError:
        """Return the refusal that a file of its own would get."""
        entry, found = _entry(seen, offence.path, label=seen.label), offence.found
        try:
            match offence.rule:
                case Rule.OWNER:
                    rules.refuse_owner(replace(entry, owner_uid=int(found)), asked.asker)
                case Rule.LINKS:
                    rules.refuse_links(replace(entry, links=int(found)), asked.asker)
                case Rule.SETID:
                    rules.refuse_setid(replace(entry, setid=True))
                case Rule.DEVICE:
                    return ResourceRefused(
                        f"{entry.named} is a device node; a tree with one is not labelled: take it "
                        "out, or name the device as a resource of its own"
                    )
                case Rule.HELD:
                    return ResourceBusy(
                        f"{entry.named} is held by a VM with access 'public'; release that VM "
                        "first, or take the file out of the tree"
                    )
                case Rule.FAILED:
                    return ResourceRefused(f"{entry.named} cannot be labelled: {found}")
        except SvirtError as error:
            return error
        return Failed(f"{entry.named} is refused by rule {offence.rule.value!r}, and passes it")


def _entry(seen: Seen, path: str, *, label: str | None) -> Seen:
    """Return an entry of a tree as what it is refused as: a plain file."""
    named = seen.named if path in ("", ".") else f"{seen.named}/{_printable(path)}"
    return replace(seen, named=named, kind=Kind.FILE, label=label, links=1, setid=False)


def _printable(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _told(job: Job | None) -> Callable[[int, float], None]:
    return (lambda _done, _part: None) if job is None else job.count


def _left(step: Step, report: Report, *, undone: bool) -> Outcome:
    """Judge what carries something else than what svirtd had set or found."""
    try:
        categories = parse_context(step.old or "").categories
    except ValueError:
        categories = frozenset()
    carrying = [label for label in report.labels if categories and may_carry(label, categories)]
    if not report.labels or (undone and not carrying):
        return Outcome(step, Fate.DONE, step.new, "")
    told = ", ".join(f"{label or 'no label'}: {tally}" for label, tally in report.labels.items())
    found = carrying[0] if carrying else next(iter(report.labels))
    reason = f"somebody else changed labels in it; they are left alone: {told}"
    return Outcome(step, Fate.CHANGED, found, reason)


def _changed(hold: Hold, odd: Mapping[str | None, Tally]) -> Finding:
    told = ", ".join(f"{label or 'no label'}: {tally}" for label, tally in odd.items())
    found = max(odd, key=lambda label: odd[label].count)
    return _finding(
        hold, FindingKind.CHANGED, found or "", f"entries of the tree have other labels: {told}"
    )


def _finding(hold: Hold, kind: FindingKind, found: str, reason: str) -> Finding:
    return Finding(kind, hold.vm_name, hold.path, hold.label, found, reason)
