# SPDX-License-Identifier: LGPL-2.1-or-later
"""Objects that may still carry the set of a VM that is gone, and keep it out of the pool."""

import functools
from collections.abc import AsyncIterator
from dataclasses import replace

from svirtd.book import groups, pool, registry
from svirtd.book import trees as book_trees
from svirtd.book.pool import Suspect
from svirtd.book.store import Database
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.model import Step
from svirtd.core.pool import RankTaken, category_of, key_of
from svirtd.engine import apply
from svirtd.engine.doors import Doors
from svirtd.engine.renumber import find_devices
from svirtd.engine.trees import Trees
from svirtd.host import processes
from svirtd.host.boot import is_device_node
from svirtd.host.journal import MessageId
from svirtd.host.trees import Labelled

# How many quarantined objects are read from the book at once.
_AT_ONCE = 1000
_PROCESS = "/proc/"
_SETS_MAX = 1024


class Quarantine:
    """Lets sets back into the pool whose every suspect is seen clean, and finds new suspects."""

    def __init__(self, doors: Doors, trees: Trees) -> None:
        self._doors = doors
        self._trees = trees

    async def recheck(self, *, restore: bool) -> list[Finding]:
        """Look at every suspect, and return what is kept out of the pool, and why.

        `restore`: a file that is back where it was, with exactly the label that svirtd gave it,
        gets its original; that finishes the release which did not find it.
        """
        await find_devices(self._doors, rebooted=False)
        findings = []
        async for suspect in self._all():
            if not await self._clean(suspect, restore=restore):
                findings.append(await self._doors.in_file_thread(self._finding, suspect))
        return findings

    async def forget_nodes(self) -> None:
        """Forget suspects that a reboot has ended: device nodes, with their labels.

        Called in the first start after it, before any request: whatever is in the book was labelled
        before. Without this a launched VM's volume would cost a set at each reboot, for ever.
        """
        async for suspect in self._all():
            if await self._doors.in_file_thread(is_device_node, suspect.path):
                seen = functools.partial(pool.seen_clean, suspect=suspect)
                await self._doors.store.write(seen, durable=False)

    async def _all(self) -> AsyncIterator[Suspect]:
        """Every suspect: those that stay must not keep others from being looked at."""
        last = 0
        while True:
            page = functools.partial(pool.suspects, limit=_AT_ONCE, after=last)
            some = await self._doors.store.read(page)
            for suspect in some:
                yield suspect
            if len(some) < _AT_ONCE:
                return
            last = some[-1].id

    async def found_at(self, suspect: Suspect, path: str, *, repair: bool) -> Finding | None:
        """Return the finding for a suspect that was seen at another path than the book has.

        `repair` gives it its original there; None if it is clean then.
        """
        if path != suspect.path:
            suspect = replace(suspect, path=path)
            moved = functools.partial(pool.suspect_moved, suspect=suspect)
            await self._doors.store.write(moved, durable=False)
        if await self._clean(suspect, restore=repair):
            return None
        return await self._doors.in_file_thread(self._finding, suspect)

    async def keep(self, found: Labelled, categories: frozenset[int]) -> bool:
        """Keep the sets that a file of no VM carries out of the pool as long as it does."""

        def work(db: Database) -> bool:
            try:
                ranks = self._doors.shape.ranks_within(categories, _SETS_MAX)
            except ValueError:
                return False
            kept = False
            for rank in ranks:
                try:
                    pool.claim(db, self._doors.permutation, rank)
                except RankTaken:
                    continue
                reason = "a file of no VM carries it"
                one = Suspect(0, rank, "", found.identity, found.path, found.label, reason)
                pool.suspect(db, [one])
                pool.retire(db, rank)
                kept = True
            return kept or self._keep_group(db, found, categories)

        return await self._doors.store.write(work)

    def _keep_group(self, db: Database, found: Labelled, categories: frozenset[int]) -> bool:
        """A group's label has one category. More than one lets in nobody who has only that."""
        if len(categories) != 1 or not categories <= self._doors.config.group_categories:
            return False
        (category,) = categories
        key, reason = key_of(category), "a file that no member of a group holds carries it"
        pool.suspect(db, [Suspect(0, key, "", found.identity, found.path, found.label, reason)])
        groups.keep(db, category)
        return True

    async def _clean(self, suspect: Suspect, *, restore: bool) -> bool:
        doors = self._doors
        tree = await doors.store.read(lambda db: book_trees.is_tree(db, suspect.identity))
        if not await self._looks_clean(suspect, tree=tree):
            if not restore or not suspect.restorable or await self._is_held(suspect):
                return False
            if not await self._restore(suspect, tree=tree):
                return False
            doors.journal.record(
                MessageId.RECOVERED,
                f"{suspect.path} was found with the label of VM {suspect.vm_name}, which is gone, "
                f"and has its original one back: {suspect.original or '(none)'}",
                SVIRT_VM=suspect.vm_name,
                SVIRT_PATH=suspect.path,
            )

        def forget(db: Database) -> None:
            pool.seen_clean(db, suspect)
            if tree:
                book_trees.tidy(db)

        await doors.store.write(forget, durable=False)
        return True

    async def _looks_clean(self, suspect: Suspect, *, tree: bool) -> bool:
        if not await self._doors.in_file_thread(self._is_clean, suspect):
            return False
        carried = self._doors.shape.carried(suspect.rank)
        return not tree or not await self._trees.carries(suspect.identity, suspect.path, carried)

    async def _restore(self, suspect: Suspect, *, tree: bool) -> bool:
        if not tree:
            return await self._doors.in_file_thread(self._give_back, suspect)
        step = Step(suspect.identity, suspect.path, suspect.label, suspect.original, recursive=True)
        return (await self._trees.back(step, undone=False)).fate is apply.Fate.DONE

    async def _is_held(self, suspect: Suspect) -> bool:
        """Say whether a VM holds the object: the persistent one of this set may have it again."""
        holds = await self._doors.store.read(lambda db: registry.holds_on(db, suspect.identity))
        return bool(holds)

    def _is_clean(self, suspect: Suspect) -> bool:
        kernel = self._doors.kernel
        if suspect.path.startswith(_PROCESS):
            return not processes.under(kernel, suspect.label)
        carried = self._doors.shape.carried(suspect.rank)
        if suspect.reason == apply.BY_MOUNT:
            return not apply.mount_carries(kernel, suspect.path, carried)
        return not apply.carries(kernel, suspect.path, suspect.identity, carried)

    def _give_back(self, suspect: Suspect) -> bool:
        step = Step(suspect.identity, suspect.path, old=suspect.label, new=suspect.original)
        (outcome,) = apply.take_found(self._doors.kernel, [step], durable=True)
        return outcome.fate is apply.Fate.DONE

    def _finding(self, suspect: Suspect) -> Finding:
        """Say what a suspect is today: a label that is seen is stale, else it may be there."""
        repair = "nothing: bring the file back to its path; it is looked at again by itself"
        if suspect.path.startswith(_PROCESS):
            kind, found = FindingKind.STALE, suspect.label
            repair = "nothing: end the process; its set comes free by itself"
        else:
            seen = apply.look(self._doors.kernel, suspect.path, suspect.identity)
            kind, found = FindingKind.QUARANTINE, seen.label or ""
            if seen.problem is None:
                kind = FindingKind.STALE
                repair = (
                    f"gives it back its original label, {suspect.original or '(none)'}"
                    if suspect.restorable and seen.label == suspect.label
                    else "nothing: its original is not known; give it one (restorecon -F, chcon)"
                )
        return Finding(
            kind=kind,
            vm_name=suspect.vm_name,
            path=suspect.path,
            expected=suspect.original or "",
            found=found,
            reason=f"keeps {_what(suspect)} out of the pool: {suspect.reason}",
            repair=repair,
        )


def _what(suspect: Suspect) -> str:
    if suspect.rank < 0:
        return f"c{category_of(suspect.rank)}, the category of a group,"
    return "the set of a VM that is gone"
