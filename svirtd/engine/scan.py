# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that carry categories and belong to no VM: those in quarantine, and those in a folder."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from svirtd.book import groups, pool, registry
from svirtd.book import trees as book_trees
from svirtd.book.pool import Suspect
from svirtd.book.store import Database
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import VM
from svirtd.engine.doors import Doors
from svirtd.engine.foreign import Foreign
from svirtd.engine.jobs import Job
from svirtd.engine.quarantine import Quarantine
from svirtd.host import trees
from svirtd.host.trees import Labelled, Unread

# Directories and files that are looked at before the book is asked about them.
_AT_ONCE: Final = 256
_SETS_MAX: Final = 1024


class Scan:
    """Walks folders for a job."""

    def __init__(self, doors: Doors, foreign: Foreign, quarantine: Quarantine) -> None:
        self._doors = doors
        self._foreign = foreign
        self._quarantine = quarantine

    def _types(self) -> frozenset[str]:
        """The types of what VMs use, whatever their goal."""
        return self._doors.goals.image_types() | {self._doors.contexts.content.type}

    async def check(self, folders: Sequence[str]) -> None:
        """Raise InvalidArgs for what cannot be scanned."""
        for folder in folders:
            await self._doors.in_file_thread(trees.check_folder, folder)

    async def folder(
        self,
        folder: str,
        job: Job,
        advance: Callable[[float], None],
        tell: Callable[[], None],
        *,
        repair: bool,
    ) -> list[Finding]:
        """Return what is wrong below a folder. Raises Cancelled.

        `advance` is told from another thread which part was seen; `tell` from here, that it was.
        """
        walk = trees.labels_below(self._doors.kernel, folder, advance)
        findings: list[Finding] = []
        while True:
            job.refuse_cancelled()
            some, ended = await self._doors.in_file_thread(_some, walk)
            others = await self._foreign.sets()
            for one in some:
                found = await self._one(one, others, repair=repair)
                if found is not None:
                    findings.append(found)
            tell()
            if ended:
                return findings

    async def _one(
        self, one: Labelled | Unread, others: frozenset[frozenset[int]], *, repair: bool
    ) -> Finding | None:
        if isinstance(one, Unread):
            why = f"it could not be looked at: {one.why}"
            return Finding(
                FindingKind.FAILED, "", one.path, "", "", why, "nothing: look at it by hand"
            )
        context = _context(one.label)
        if context is None or context.type not in self._types() or not context.categories:
            return None
        known = await self._doors.store.read(
            lambda db: (
                registry.holds_on(db, one.identity)
                or book_trees.holds_above(db, one.identity, one.path)
                or pool.suspects_on(db, one.identity)
            )
        )
        if known and isinstance(known[0], Suspect):
            return await self._quarantine.found_at(known[0], one.path, repair=repair)
        if known or context.categories in others:
            return None  # its holder is looked at elsewhere; or it is in use by libvirt, say
        owners = await self._doors.store.read(lambda db: self._owners(db, context.categories))
        kept = not owners and await self._quarantine.keep(one, context.categories)
        group = await self._doors.store.read(lambda db: _group(db, context.categories))
        return _orphan(one, owners, group, kept=kept)

    def _owners(self, db: Database, categories: frozenset[int]) -> list[VM]:
        try:
            ranks = self._doors.shape.ranks_within(categories, _SETS_MAX)
        except ValueError:
            return []
        return registry.vms_by_ranks(db, ranks)


def _some(walk: Iterator[Labelled | Unread | None]) -> tuple[list[Labelled | Unread], bool]:
    """Take the next part of a walk, and say whether that was its end."""
    taken = list(itertools.islice(walk, _AT_ONCE))
    # An unlabelled object, and one without categories, is nobody's.
    found = [
        one for one in taken if isinstance(one, Unread) or (one is not None and ":c" in one.label)
    ]
    return found, len(taken) < _AT_ONCE


def _context(label: str) -> Context | None:
    try:
        return parse_context(label)
    except ValueError:
        return None


def _group(db: Database, categories: frozenset[int]) -> str:
    """Return the group that owns one of these categories, if there is one."""
    found = [groups.by_category(db, category) for category in sorted(categories)]
    return next((group.name for group in found if group is not None), "")


def _orphan(one: Labelled, owners: Sequence[VM], group: str, *, kept: bool) -> Finding:
    reason = "it carries categories of no VM"
    if owners:
        reason = f"it carries the categories of VM {owners[0].name!r}, which does not hold it"
    elif group:
        reason = f"it carries the category of group {group!r}, and no member holds it"
        if kept:
            reason += "; nobody else gets the category as long as it does"
    elif kept:
        reason += "; they are in quarantine as long as it does"
    return Finding(
        kind=FindingKind.ORPHAN,
        vm_name=owners[0].name if owners else "",
        path=one.path,
        expected="",
        found=one.label,
        reason=reason,
        repair="nothing: what it carried before is not known; if no VM uses it, restorecon -F or "
        "chcon gives it a label",
    )
