# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done to a directory tree, what was seen of one, and what is refused of it. Pure.

A tree is looked at and labelled in one walk, each entry by one descriptor for both: two walks would
take twice as long, and what a name leads to may change between them. What is refused on the way
has all of it taken back.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from svirtd.core.names import shown

# That a finding or an error shows.
EXAMPLES = 3


class Mode(enum.StrEnum):
    """What a walk does."""

    LOOK = "look"
    """Counts labels and offenders."""
    SET = "set"
    """Sets the label on all, remembering each that had another than the root."""
    CHANGE = "change"
    """Sets the label on what carries one of `sources`."""
    AGAIN = "again"
    """The same, on what carries the very one that it had before."""
    BACK = "back"
    """Gives what carries the label the one that it had before."""


class Rule(enum.StrEnum):
    """What an entry of a tree may offend against."""

    OWNER = "owner"
    LINKS = "links"
    SETID = "setid"
    DEVICE = "device"
    HELD = "held"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Sweep:
    """One walk. `target` is the label that is set, or taken back; `common` the root's own.

    `owner_uid` owns each entry, unless it is None; `links`: a file may have other names. `sources`
    are labels that CHANGE and AGAIN replace; `others` are, by label, the inodes that had another
    than `common`; `held` those that a VM uses, whatever they carry.
    """

    mode: Mode
    target: str | None
    common: str | None
    owner_uid: int | None = None
    links: bool = False
    sources: frozenset[str | None] = frozenset()
    others: Mapping[str | None, Sequence[int]] = field(default_factory=dict)
    held: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Tally:
    """How many entries had something in common, and some of them, by their paths below the root."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, more: "Tally") -> "Tally":
        """Return both together."""
        return Tally(self.count + more.count, (self.examples + more.examples)[:EXAMPLES])

    def __str__(self) -> str:
        some = ", ".join(shown(one) for one in self.examples)
        return f"{self.count} ({some}{', …' if self.count > len(self.examples) else ''})"


@dataclass(frozen=True, slots=True)
class Report:
    """What a walk has seen: entries by label, offenders by rule, mounts that were not entered.

    `done` counts the entries. Of BACK, CHANGE and AGAIN, labels are only of what was left alone.
    """

    done: int = 0
    labels: Mapping[str | None, Tally] = field(default_factory=dict)
    faults: Mapping[Rule, Tally] = field(default_factory=dict)
    reasons: Mapping[Rule, str] = field(default_factory=dict)
    mounts: Tally = Tally()

    def plus(self, more: "Report") -> "Report":
        """Return both together."""
        labels, faults = dict(self.labels), dict(self.faults)
        for label, tally in more.labels.items():
            labels[label] = labels.get(label, Tally()).plus(tally)
        for rule, tally in more.faults.items():
            faults[rule] = faults.get(rule, Tally()).plus(tally)
        return replace(
            self,
            done=self.done + more.done,
            labels=labels,
            faults=faults,
            reasons={**more.reasons, **self.reasons},
            mounts=self.mounts.plus(more.mounts),
        )
