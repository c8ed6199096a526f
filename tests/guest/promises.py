# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of power cuts: what callers were told before, against what is there after. Pure.

A fact is a line that the load wrote out of the guest before a call ("try") and after it ("did",
"refused"). What was tried and not answered may have happened or not, but all of it or nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

# What leaves a VM without its resources.
_ENDS: Final = ("release", "end")
_STARTS: Final = ("acquire", "launch")


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM as a caller knows it: with the files that it holds, by path with their access."""

    id: str | None
    """None, as for `categories`: not known, since nobody was told."""
    categories: str | None
    persistent: bool
    launched: bool
    files: frozenset[tuple[str, str]]

    @property
    def held(self) -> bool:
        """Whether it is more than a reservation."""
        return bool(self.files) or self.launched

    def emptied(self) -> "Machine | None":
        """What is left of it when its resources were taken back."""
        return replace(self, launched=False, files=frozenset()) if self.persistent else None

    def fits(self, seen: "Machine") -> bool:
        """Say whether what is seen is this."""
        return (
            self.id in (None, seen.id)
            and self.categories in (None, seen.categories)
            and (self.persistent, self.launched, self.files)
            == (seen.persistent, seen.launched, seen.files)
        )


World = Mapping[str, Machine]


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong, and how much was looked at."""

    problems: tuple[str, ...]
    promises: int
    unsynced: int
    """Files of held VMs that show what they carried before: the book has it right, the label of an
    acquisition is not waited for. The daemon puts it back soon after its start."""


def world(state: Mapping[str, Any]) -> World:
    """Return the VMs of a book."""
    return {
        vm["name"]: Machine(
            vm["id"],
            vm["categories"],
            vm["persistent"],
            bool(vm["unit"]),
            frozenset((h["path"], h["access"]) for h in state["holds"] if h["vm"] == vm["name"]),
        )
        for vm in state["vms"]
    }


def told(before: World, facts: Iterable[Mapping[str, Any]]) -> dict[str, list[Machine | None]]:
    """Return what may be in the book of each VM after a cut, by what was said until then."""
    now: dict[str, Machine | None] = dict(before)
    tried: dict[str, Mapping[str, Any]] = {}
    for fact in facts:
        if "vm" not in fact:
            continue
        name = fact["vm"]
        now.setdefault(name, None)
        if fact["phase"] == "try":
            tried[name] = fact
            continue
        del tried[name]
        if fact["phase"] == "did":
            now[name] = _done(now[name], fact)
    return {
        name: _possible([machine, *_half_done(machine, tried.get(name))])
        for name, machine in now.items()
    }


def _done(machine: Machine | None, fact: Mapping[str, Any]) -> Machine | None:
    what = fact["what"]
    if what in _STARTS:
        files = frozenset(fact["files"].items())
        return Machine(
            fact.get("id"), fact.get("categories"), fact["persistent"], what == "launch", files
        )
    return machine.emptied() if what in _ENDS and machine is not None else None


def _half_done(machine: Machine | None, fact: Mapping[str, Any] | None) -> list[Machine | None]:
    if fact is None:
        return []
    done = _done(machine, fact)
    if fact["what"] in _STARTS and done is not None and machine is not None:
        done = replace(done, id=machine.id, categories=machine.categories)
    # A new persistent VM whose labels could not all be set may stay without them.
    return [done, done.emptied() if done is not None else None]


def _possible(machines: Sequence[Machine | None]) -> list[Machine | None]:
    """A unit does not outlive a reboot, and neither do its labels."""
    after = [one.emptied() if one is not None and one.launched else one for one in machines]
    return list(dict.fromkeys(after))


def judge(
    state: Mapping[str, Any],
    possible: Mapping[str, Sequence[Machine | None]],
    originals: Mapping[str, str],
) -> Report:
    """Hold the state after a boot against what was promised, and against itself."""
    problems: list[str] = []
    seen = world(state)
    for name in sorted(possible.keys() | seen.keys()):
        problems += _broken(name, seen.get(name), possible.get(name, [None]))
    unsynced = 0
    holds: dict[str, list[Mapping[str, Any]]] = {}
    for hold in state["holds"]:
        holds.setdefault(hold["path"], []).append(hold)
    for path, original in sorted(originals.items()):
        wrong, late = _wrong_file(path, original, state["files"].get(path), holds.get(path, []))
        problems += wrong
        unsynced += late
    problems += [
        f"{path} is held and was never told of" for path in holds.keys() - originals.keys()
    ]
    problems += _wrong_book(state)
    return Report(tuple(problems), len(possible), unsynced)


def _broken(name: str, seen: Machine | None, allowed: Sequence[Machine | None]) -> list[str]:
    for one in allowed:
        if one is None or seen is None:
            if one is seen:
                return []
        elif one.fits(seen):
            return []
    return [f"VM {name} is {seen}; by what was told it may be {' or '.join(map(str, allowed))}"]


def _wrong_file(
    path: str, original: str, found: str | None, holds: Sequence[Mapping[str, Any]]
) -> tuple[list[str], int]:
    problems = [
        f"{path}: its original label is {original}, the book of {hold['vm']} has {hold['original']}"
        for hold in holds
        if hold["original"] != original
    ]
    if len(holds) > 1 and {hold["access"] for hold in holds} != {"public"}:
        problems.append(f"{path} is held by {' and '.join(hold['vm'] for hold in holds)}")
    allowed = {hold["label"] for hold in holds} or {original}
    if found not in allowed | {original}:
        problems.append(f"{path} carries {found}; it may carry {' or '.join(sorted(allowed))}")
    return problems, int(bool(holds) and found == original and original not in allowed)


def _wrong_book(state: Mapping[str, Any]) -> list[str]:
    problems = [f"{unit} runs after a reboot" for unit in state["units"]]
    problems += [f"{folder} is left" for folder in state["folders"]]
    problems += [f"operation {one} is still open" for one in state["operations"]]
    problems += [
        f"{one['categories']} is in quarantine for {one['path']}: {one['reason']}"
        for one in state["quarantine"]
    ]
    taken: dict[str, str] = {}
    for vm in state["vms"]:
        if vm["state"] not in ("reserved", "labelled"):
            problems.append(f"VM {vm['name']} is {vm['state']}: {vm['reason']}")
        other = taken.setdefault(vm["categories"], vm["name"])
        if other != vm["name"]:
            problems.append(f"{vm['name']} and {other} have the same categories")
    for path, label in state["files"].items():
        categories = str(label).split(":s0:")[1:]
        if categories and categories[0] not in taken:
            problems.append(f"{path} carries {categories[0]}, which no VM has")
    return problems


def booted(before: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Return what is otherwise than before with the VMs that a boot starts: a run of theirs has
    another process, and the same categories, context and label as each before."""
    after = state["booted"]
    problems = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            problems.append(f"VM {name}, which the boot starts, is {now} instead of {was}")
            continue
        problems += [
            f"VM {name}, which the boot starts, has {key} {now[key]} instead of {was[key]}"
            for key in was
            if was[key] != now[key]
        ]
        problems += [
            f"VM {name}, which the boot starts, has {now[key]} without its own {now['categories']}"
            for key in ("process", "disk")
            if not str(now[key]).endswith(f":s0:{now['categories']}")
        ]
    sets = [vm["categories"] for vm in (*state["vms"], *after.values())]
    problems += [f"two VMs have {one}" for one in sorted(set(sets)) if sets.count(one) > 1]
    return problems


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what another start of the daemon has changed, which it must not.

    But for labels of what is held: one that had not reached the disk must be back by then.
    """
    labels = {hold["path"]: hold for hold in before["holds"]}
    files = {
        path: labels[path]["label"]
        if path in labels and found == labels[path]["original"]
        else found
        for path, found in before["files"].items()
    }
    expected = {**before, "files": files}
    return [
        f"a restart has changed {key} from {expected[key]} to {after[key]}"
        for key in expected
        if expected[key] != after[key]
    ]


def left(state: Mapping[str, Any], originals: Mapping[str, str]) -> list[str]:
    """Return what is left after every VM was released and forgotten, which is nothing."""
    problems = [f"VM {vm['name']} is left" for vm in state["vms"]]
    problems += [
        f"{path} carries {state['files'].get(path)} instead of {original}"
        for path, original in sorted(originals.items())
        if state["files"].get(path) != original
    ]
    return problems + _wrong_book(state)
