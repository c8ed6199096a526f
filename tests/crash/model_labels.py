# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds the files of the model, and what Acquire, Launch and Release make of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from tests.crash.model import (
    BUSY,
    CONTENT,
    DRIFT,
    EXHAUSTED,
    EXISTS,
    FAILED,
    GROUP_POOL,
    IMAGE,
    NO_GROUP,
    NO_LABEL,
    NO_VM,
    REFUSED,
    TAKEN,
    TWICE,
    Earlier,
    File,
    Finding,
    Guest,
    Hold,
    Pair,
    Suspect,
    Want,
    categories,
    text,
)
from tests.crash.model_files import Files


@dataclass(slots=True)
class Labels(Files):
    """VMs by name, the quarantine, and what was found since `findings` was read."""

    vms: dict[str, Guest] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    # Which VMs, by name, may be in which group.
    grants: set[tuple[str, str]] = field(default_factory=set)
    # As which VM the administrator's unit is enrolled, and what it is to have.
    enrolled: tuple[str, tuple[Want, ...]] | None = None
    # The processes of libvirt's VMs that have not ended.
    alive: set[int] = field(default_factory=set)

    # -- what there is ----------------------------------------------------------------------

    def pairs(self) -> set[Pair]:
        """Return every pair that there is."""
        return {frozenset(two) for two in combinations(sorted(self.pool), 2)}

    def in_use(self) -> set[Pair]:
        """Return the pairs that belong to a VM."""
        return {vm.pair for vm in self.vms.values()}

    def quarantined(self) -> set[Pair]:
        """Return the pairs of no VM that a file may still carry."""
        return {frozenset(one.pair) for one in self.suspects if len(one.pair) > 1} - self.in_use()

    def free(self) -> set[Pair]:
        """Return the pairs that may be handed out."""
        return self.pairs() - self.in_use() - self.quarantined()

    def holders(self, ino: int) -> list[tuple[Guest, Hold]]:
        """Return who holds a file, under whatever name."""
        return [(vm, h) for vm in self.vms.values() for h in vm.holds if h.ino == ino]

    def whole(self, vm: Guest) -> Pair:
        """Return all categories of a VM's processes."""
        return vm.pair | {self.groups[name] for name in vm.groups}

    def of_a_vm(self, label: str | None) -> bool:
        """Say whether a label keeps or lets in some VM, of today or of any other day."""
        carried = categories(label)
        return any(pair <= carried for pair in self.pairs()) or bool(carried & GROUP_POOL)

    # -- Acquire, Launch, Plan --------------------------------------------------------------

    def target(self, want: Want, pair: Pair) -> str:
        """Return the label that a resource gets (design: the label algebra)."""
        if want.access == "public":
            return CONTENT
        sharing = frozenset({self.groups[want.group]}) if want.group else pair
        return f"{CONTENT if want.access == 'readonly' else IMAGE}:{text(sharing)}"

    def cannot_open(self, want: Want) -> bool:
        """Say whether the caller's right to a resource cannot be shown."""
        file = self.at(want.path)
        if file is None:
            return True
        # What is no image, or lies over what is not there, or over itself.
        if want.chain and self.at(file.over) in (None, file):
            return True
        return want.access in ("exclusive", "group") and not self.writable(want.path)

    def with_chains(self, wants: Sequence[Want]) -> list[tuple[Want, str]]:
        """Return what a request is for: what it names, then what that lies over, each with the id
        of that for whose sake alone it is there."""
        named = {file.ino for want in wants if (file := self.at(want.path)) is not None}
        below: dict[int, tuple[str, set[str]]] = {}
        for number, want in enumerate(wants):
            top = self.at(want.path)
            base = self.at(top.over) if top is not None and want.chain else None
            if top is not None and base is not None and base.ino not in named:
                below.setdefault(base.ino, (top.over, set()))[1].add(f"r{number + 1}")
        # What several lie over ends with the last of them.
        leases = {f"r{n + 1}": (want.until, want.at_end) for n, want in enumerate(wants)}
        last = [max((leases[one] for one in tops), key=_lasts) for _, tops in below.values()]
        found = [
            (Want(path, "public", until=until, at_end=at_end), tops)
            for (path, tops), (until, at_end) in zip(below.values(), last, strict=True)
        ]
        return [(want, "") for want in wants] + [
            (want, min(tops) if len(tops) == 1 else "") for want, tops in found
        ]

    def against(self, want: Want) -> set[str]:
        """Return the errors that stand against a resource that can be opened, by a plan's rules."""
        file = self.at(want.path)
        assert file is not None
        holders = self.holders(file.ino)
        if holders:
            held = holders[0][1]
            alike = (want.access, want.group) == (held.access, held.group)
            if not alike or not (want.group or want.access == "public"):
                return {BUSY}
            return set() if file.label == held.label else {REFUSED}
        found = set()
        for part in self.parts(want.path):
            # One that has another's number: the book knows a file by that.
            if part is not file and any(h.access == "public" for _, h in self.holders(part.ino)):
                found.add(BUSY)
            if (
                len(part.names) > 1
                or (part.label is not None and part.label.split(":")[2] not in TAKEN)
                or self.of_a_vm(part.label)
            ):
                found.add(REFUSED)
        return found

    def cannot_label(self, want: Want, pair: Pair) -> bool:
        """Say whether the file system will not take the label that a resource needs."""
        file = self.at(want.path)
        assert file is not None
        # One that is held already, or carries it by chance, needs none.
        if self.holders(file.ino):
            return False
        needs = [part for part in self.parts(want.path) if part.label != self.target(want, pair)]
        return any(not self.writable(want.path, part) for part in needs)

    def general(self, name: str, wants: Sequence[Want], *, starts: bool = False) -> set[str]:
        """Return the errors that stand against a request as a whole; `starts`: by its unit."""
        found = set()
        known = self.vms.get(name)
        if known is not None and (
            known.state != "reserved" or not known.persistent or known.enrolled != starts
        ):
            found.add(EXISTS)
        if known is None and not self.free():
            found.add(EXHAUSTED)
        if {want.group for want in wants} - {"", *self.groups}:
            found.add(NO_GROUP)
        inos = [file.ino for want in wants if (file := self.at(want.path)) is not None]
        if len(set(inos)) < len(inos):
            found.add(TWICE)
        return found

    def judge(self, name: str, wants: Sequence[Want], *, starts: bool = False) -> set[str]:
        """Return the errors of which a request must meet one; empty if it must succeed."""
        found = self.general(name, wants, starts=starts)
        known = self.vms.get(name)
        for want, _ in self.with_chains(wants):
            if self.cannot_open(want):
                found.add(REFUSED)
                continue
            if want.group and want.group not in self.groups:
                continue
            against = self.against(want)
            found |= against
            # Which pair a new VM gets does not matter: no file that may be taken carries one.
            if not against and self.cannot_label(want, known.pair if known else Pair()):
                found |= {NO_LABEL, REFUSED} if want.tree else {NO_LABEL}
        return found

    def grant(self, vm: Guest, wants: Sequence[Want]) -> None:
        """Label for a VM that the service has made: its pair must be one that may be given."""
        known = self.vms.get(vm.name)
        if known is None:
            assert vm.pair in self.free(), f"{text(vm.pair)} was handed out and is not free"
        else:
            assert (known.pair, known.id) == (vm.pair, vm.id), f"{vm.name} kept not pair and Id"
        persistent = vm.persistent or (known is not None and known.persistent)
        lasting = known.lasting if known is not None else frozenset()
        groups = lasting | {want.group for want in wants if want.group}
        vm = replace(vm, groups=groups)
        holds = [
            replace(self.take(vm, want, f"r{number + 1}", number), part_of=part_of)
            for number, (want, part_of) in enumerate(self.with_chains(wants))
        ]
        state = "running" if vm.unit else "labelled" if holds or groups else "reserved"
        self.vms[vm.name] = replace(
            vm,
            state=state,
            persistent=persistent,
            holds=tuple(holds),
            lasting=lasting,
        )

    def take(self, vm: Guest, want: Want, id_: str, number: int) -> Hold:
        """Label a file for a VM that does not have it yet."""
        file = self.at(want.path)
        assert file is not None
        others = self.holders(file.ino)
        original = others[0][1].original if others else file.label
        inside: Earlier = others[0][1].inside if others else ()
        # What a VM of libvirt's has alone gets all that its processes have, and by libvirt.
        label = self.target(want, self.whole(vm) if vm.libvirt else vm.pair)
        if not others and not vm.libvirt:
            parts = self.parts(want.path)
            inside = tuple((part.ino, part.label) for part in parts) if want.tree else ()
            for part in parts:
                part.label, part.theirs = label, False
        return Hold(
            file.ino,
            want.path,
            want.access,
            label,
            original,
            want.group,
            id_,
            number,
            tree=want.tree,
            inside=inside,
            until=want.until,
            at_end=want.at_end if want.until else "",
        )

    # -- Release, Forget, the ends of units and callers --------------------------------------

    def release(self, name: str) -> set[str]:
        """Give back what a VM holds; returns the errors of which one must be met."""
        vm = self.vms.get(name)
        if vm is None:
            return {NO_VM}
        if vm.state == "reserved":
            self._end(vm)
            return set()
        if vm.state == "running" and vm.pid in self.alive:
            return {FAILED}
        fates = [(hold, self._give_back(vm, hold)) for hold in vm.holds]
        self.findings += [Finding(fate, name, h.path) for h, fate in fates if fate]
        if any(fate == "failed" for _, fate in fates):
            self.vms[name] = replace(vm, state="failed")
            return {DRIFT}
        self._suspect(vm, fates)
        self._end(vm)
        return set()

    def lose(self, vm: Guest, holds: Sequence[Hold]) -> bool:
        """Give back a part of what a VM holds, and tell of it; False, and it keeps all of it, if
        one of them cannot be."""
        stuck = [hold for hold in holds if self._fate(vm, hold) == "failed"]
        if stuck:
            # What somebody else has given back already comes back with the rest.
            for hold in holds:
                file = self.at(hold.path)
                alone = all(other.name == vm.name for other, _ in self.holders(hold.ino))
                back = file is not None and file.ino == hold.ino and file.label == hold.original
                if file is not None and alone and back and self.writable(hold.path):
                    file.label, file.theirs = hold.label, False
            return False
        fates = [(hold, self._give_back(vm, hold)) for hold in holds]
        self.findings += [Finding(fate, vm.name, h.path) for h, fate in fates if fate]
        self._suspect(vm, fates)
        return True

    def _suspect(self, vm: Guest, fates: Sequence[tuple[Hold, str]]) -> None:
        self.suspects += [
            Suspect(tuple(sorted(carried)), h.path, h.ino, h.label, h.original, h.inside)
            for carried in (vm.pair, *(frozenset({self.groups[one]}) for one in vm.groups))
            for h, fate in fates
            if fate and self._may_carry(carried, h, fate)
        ]

    def forget(self, name: str) -> set[str]:
        """Free a reservation; returns the errors of which one must be met."""
        vm = self.vms.get(name)
        if vm is None:
            return {NO_VM}
        if vm.state != "reserved" or vm.enrolled:
            return {FAILED}
        del self.vms[name]
        return set()

    def caller_left(self, caller: int) -> None:
        """Release every VM that lives as long as a caller."""
        for vm in list(self.vms.values()):
            if vm.caller == caller:
                self.release(vm.name)

    def _end(self, vm: Guest) -> None:
        del self.vms[vm.name]
        if vm.persistent:
            kept = Guest(vm.name, vm.id, vm.pair, "reserved", persistent=True, lasting=vm.lasting)
            self.vms[vm.name] = replace(kept, libvirt=vm.libvirt, enrolled=vm.enrolled)

    def _give_back(self, vm: Guest, hold: Hold) -> str:
        """Give one label back; returns what is to be reported, empty for nothing."""
        fate, file = self._fate(vm, hold), self.at(hold.path)
        alone = all(other.name == vm.name for other, _ in self.holders(hold.ino))
        if alone and file is not None and file.ino == hold.ino:
            self.give_back_parts(hold)
        return fate

    def give_back_parts(self, what: Hold | Suspect) -> None:
        """Whatever carries the label that it got has again what it had before."""
        for part in self.parts(what.path):
            if part.label == what.label and self.writable(what.path, part):
                part.label, part.theirs = earlier(what, part), True

    def _fate(self, vm: Guest, hold: Hold) -> str:
        if any(other.name != vm.name for other, _ in self.holders(hold.ino)):
            return ""
        file = self.at(hold.path)
        if file is None:
            return "missing"
        if file.ino != hold.ino:
            return "replaced"
        return self.left(hold)

    def left(self, what: Hold | Suspect) -> str:
        """Say what keeps some of it from having what it had before; empty if nothing does."""
        parts = [part for part in self.parts(what.path) if part.label != earlier(what, part)]
        got = [part for part in parts if part.label == what.label]
        if any(not self.writable(what.path, part) for part in got):
            return "failed"
        return "changed" if len(got) < len(parts) else ""

    def _may_carry(self, carried: Pair, hold: Hold, fate: str) -> bool:
        if not carried <= categories(hold.label):
            return False
        return fate != "changed" or self.carries(hold.path, carried)

    def carries(self, path: str, carried: Pair) -> bool:
        """Say whether a file, or what is in a folder, carries these categories."""
        return any(carried <= categories(part.label) for part in self.parts(path))


def _lasts(lease: tuple[int, str]) -> float:
    return lease[0] or float("inf")


def earlier(what: Hold | Suspect, part: File) -> str | None:
    """Return what a file, or an entry of a tree, carried before."""
    return dict(what.inside).get(part.ino, what.original)
