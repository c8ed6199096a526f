# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtd promises, as a world of values: written from the design and the manual pages.

No line of it comes from the engine, and it does nothing but count: it says what a request must lead
to, and what the files, the VMs and the quarantine must be afterwards. A path is "FOLDER/NAME"; both
folders show the same files, and the one named VIEW can be made read-only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final

Pair = frozenset[int]
# [labels] groups as it is by default.
GROUP_POOL: Final = frozenset(range(768, 1024))

VIEW: Final = "view"
PROCESS: Final = "system_u:system_r:svirt_t:s0"
IMAGE: Final = "system_u:object_r:svirt_image_t:s0"
CONTENT: Final = "system_u:object_r:virt_content_t:s0"
# [labels] relabel-from as it is by default; a file without a label is unlabeled_t.
TAKEN: Final = frozenset(
    {"virt_image_t", "virt_content_t", "virt_var_lib_t", "user_home_t", "user_tmp_t"}
)

BUSY: Final = "org.svirt1.Error.ResourceBusy"
REFUSED: Final = "org.svirt1.Error.ResourceRefused"
NO_LABEL: Final = "org.svirt1.Error.LabelRefused"
EXISTS: Final = "org.svirt1.Error.VMExists"
NO_VM: Final = "org.svirt1.Error.NoSuchVM"
NO_GROUP: Final = "org.svirt1.Error.NoSuchGroup"
EXHAUSTED: Final = "org.svirt1.Error.PoolExhausted"
DRIFT: Final = "org.svirt1.Error.Drift"
GONE: Final = "org.freedesktop.DBus.Error.UnknownObject"
FAILED: Final = "org.svirt1.Error.Failed"
TWICE: Final = "org.freedesktop.DBus.Error.InvalidArgs"


def text(pair: Pair) -> str:
    """Return a pair as a label ends with it."""
    return ",".join(f"c{category}" for category in sorted(pair))


def categories(label: str | None) -> Pair:
    """Return the categories of a label."""
    parts = (label or "").split(":", 4)
    found: set[int] = set()
    for part in parts[4].split(",") if len(parts) == 5 else ():
        first, _, last = part.partition(".")
        found |= set(range(int(first[1:]), int((last or first)[1:]) + 1))
    return frozenset(found)


@dataclass(slots=True)
class File:
    """One inode: what it carries, where it is found, whether it can be written.

    `theirs`: a third party put the label there that it carries.
    """

    ino: int
    label: str | None
    names: set[str]
    immutable: bool = False
    theirs: bool = True


@dataclass(frozen=True, slots=True)
class Want:
    """One resource of a request; `fd`: passed as a descriptor; `group`: whose members share it."""

    path: str
    access: str
    fd: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """A file for a VM that is up: under this id, in place of that one, which is handed back or,
    with `keeps`, stays under it and is only read. `alike`: the access is not said."""

    want: Want
    id: str = ""
    replaces: str = ""
    keeps: bool = False
    alike: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """One VM's use of one file, by the path that it was asked for. `part_of`: the id of that for
    whose sake the VM has it; `number`: above those of what the VM had before."""

    ino: int
    path: str
    access: str
    label: str
    original: str | None
    group: str = ""
    id: str = ""
    number: int = 0
    part_of: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM. `caller`: with whom it ends; `unit`: whether svirtd started it; `groups`: in this run;
    `lasting`: at each start."""

    name: str
    id: str
    pair: Pair
    state: str
    persistent: bool
    caller: int | None = None
    unit: bool = False
    holds: tuple[Hold, ...] = ()
    groups: frozenset[str] = frozenset()
    lasting: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class Suspect:
    """A file that may still carry a pair, or a group's category: what keeps it in quarantine."""

    pair: tuple[int, ...]
    path: str
    ino: int
    label: str
    original: str | None


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A difference that is reported, and left alone."""

    kind: str
    vm: str
    path: str


@dataclass(slots=True)
class World:
    """Files by name, VMs by name, the quarantine, and what was found since `findings` was read."""

    pool: Pair
    files: dict[str, File] = field(default_factory=dict)
    vms: dict[str, Guest] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    view_readonly: bool = False
    groups: dict[str, int] = field(default_factory=dict)

    # -- what there is ----------------------------------------------------------------------

    def at(self, path: str) -> File | None:
        """Return the file that a path leads to."""
        return self.files.get(path.rpartition("/")[2])

    def writable(self, path: str) -> bool:
        """Say whether the file at a path can be written and labelled by that path."""
        file = self.at(path)
        read_only = self.view_readonly and path.startswith(f"{VIEW}/")
        return file is not None and not file.immutable and not read_only

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
        if self.at(want.path) is None:
            return True
        return want.access in ("exclusive", "group") and not self.writable(want.path)

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
        refused = (
            len(file.names) > 1
            or (file.label is not None and file.label.split(":")[2] not in TAKEN)
            or self.of_a_vm(file.label)
        )
        return {REFUSED} if refused else set()

    def cannot_label(self, want: Want, pair: Pair) -> bool:
        """Say whether the file system will not take the label that a resource needs."""
        file = self.at(want.path)
        assert file is not None
        # One that is held already, or carries it by chance, needs none.
        needs = not self.holders(file.ino) and file.label != self.target(want, pair)
        return needs and not self.writable(want.path)

    def general(self, name: str, wants: Sequence[Want]) -> set[str]:
        """Return the errors that stand against a request as a whole."""
        found = set()
        known = self.vms.get(name)
        if known is not None and (known.state != "reserved" or not known.persistent):
            found.add(EXISTS)
        if known is None and not self.free():
            found.add(EXHAUSTED)
        if {want.group for want in wants} - {"", *self.groups}:
            found.add(NO_GROUP)
        inos = [file.ino for want in wants if (file := self.at(want.path)) is not None]
        if len(set(inos)) < len(inos):
            found.add(TWICE)
        return found

    def judge(self, name: str, wants: Sequence[Want]) -> set[str]:
        """Return the errors of which a request must meet one; empty if it must succeed."""
        found = self.general(name, wants)
        known = self.vms.get(name)
        for want in wants:
            if self.cannot_open(want):
                found.add(REFUSED)
                continue
            if want.group and want.group not in self.groups:
                continue
            against = self.against(want)
            found |= against
            # Which pair a new VM gets does not matter: no file that may be taken carries one.
            if not against and self.cannot_label(want, known.pair if known else Pair()):
                found.add(NO_LABEL)
        return found

    def grant(self, vm: Guest, wants: Sequence[Want]) -> None:
        """Label for a VM that the service has made: its pair must be one that may be given."""
        known = self.vms.get(vm.name)
        if known is None:
            assert vm.pair in self.free(), f"{text(vm.pair)} was handed out and is not free"
        else:
            assert (known.pair, known.id) == (vm.pair, vm.id), f"{vm.name} kept not pair and Id"
        holds = [self.take(vm, want, f"r{number + 1}", number) for number, want in enumerate(wants)]
        persistent = vm.persistent or (known is not None and known.persistent)
        lasting = known.lasting if known is not None else frozenset()
        groups = lasting | {want.group for want in wants if want.group}
        state = "running" if vm.unit else "labelled" if holds or groups else "reserved"
        self.vms[vm.name] = replace(
            vm,
            state=state,
            persistent=persistent,
            holds=tuple(holds),
            groups=groups,
            lasting=lasting,
        )

    def take(self, vm: Guest, want: Want, id_: str, number: int) -> Hold:
        """Label a file for a VM that does not have it yet."""
        file = self.at(want.path)
        assert file is not None
        others = self.holders(file.ino)
        original = others[0][1].original if others else file.label
        label = self.target(want, vm.pair)
        if not others:
            file.label, file.theirs = label, False
        return Hold(file.ino, want.path, want.access, label, original, want.group, id_, number)

    # -- Release, Forget, the ends of units and callers --------------------------------------

    def release(self, name: str) -> set[str]:
        """Give back what a VM holds; returns the errors of which one must be met."""
        vm = self.vms.get(name)
        if vm is None:
            return {NO_VM}
        if vm.state == "reserved":
            self._end(vm)
            return set()
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
            Suspect(tuple(sorted(carried)), h.path, h.ino, h.label, h.original)
            for carried in (vm.pair, *(frozenset({self.groups[one]}) for one in vm.groups))
            for h, fate in fates
            if fate and self._may_carry(carried, h, fate)
        ]

    def forget(self, name: str) -> set[str]:
        """Free a reservation; returns the errors of which one must be met."""
        vm = self.vms.get(name)
        if vm is None:
            return {NO_VM}
        if vm.state != "reserved":
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
            self.vms[vm.name] = Guest(
                vm.name, vm.id, vm.pair, "reserved", persistent=True, lasting=vm.lasting
            )

    def _give_back(self, vm: Guest, hold: Hold) -> str:
        """Give one label back; returns what is to be reported, empty for nothing."""
        fate, file = self._fate(vm, hold), self.at(hold.path)
        alone = all(other.name == vm.name for other, _ in self.holders(hold.ino))
        if not fate and alone and file is not None and file.label != hold.original:
            file.label, file.theirs = hold.original, True
        return fate

    def _fate(self, vm: Guest, hold: Hold) -> str:
        if any(other.name != vm.name for other, _ in self.holders(hold.ino)):
            return ""
        file = self.at(hold.path)
        if file is None:
            return "missing"
        if file.ino != hold.ino:
            return "replaced"
        if file.label == hold.original:
            return ""
        if file.label != hold.label:
            return "changed"
        return "" if self.writable(hold.path) else "failed"

    def _may_carry(self, carried: Pair, hold: Hold, fate: str) -> bool:
        if not carried <= categories(hold.label):
            return False
        file = self.at(hold.path)
        return fate != "changed" or (file is not None and carried <= categories(file.label))

    # -- Attach, Detach ---------------------------------------------------------------------

    def attach(self, name: str, asked: Attach) -> tuple[set[str], str]:
        """Label one more file for a VM that is up; returns the errors of which one must be met, or
        the id that the VM has it by."""
        vm, want = self.vms.get(name), asked.want
        if vm is None:
            return {GONE}, ""
        old = self._called(vm, asked.replaces)
        errors = set() if old is not None or not asked.replaces else {TWICE}
        if vm.state not in ("labelled", "running"):
            errors.add(FAILED)
        file = self.at(want.path)
        if file is None or self.cannot_open(want):
            return errors | {REFUSED}, ""
        own = next((hold for hold in vm.holds if hold.ino == file.ino), None)
        errors |= self._against_group(vm, want)
        if not errors:
            errors |= self._against_id(vm, own, asked.id)
            errors |= self._against_attaching(vm, asked, own, old)
        kept = old if asked.keeps else None
        if not errors and kept is not None and kept.access in ("exclusive", "group"):
            errors |= self._against_another(vm, kept, Want(kept.path, "readonly"))
        if errors:
            return errors, ""
        leaving = self._with_parts(vm, old) if old is not None and kept is None else []
        leaving = [hold for hold in leaving if hold.ino != file.ino]
        if not self.lose(vm, leaving):
            return {DRIFT}, ""
        got = self._get(vm, asked, own)
        gained = [got]
        if kept is not None:
            gained.append(self._read_only(vm, kept, got))
        gone = {hold.id for hold in (*leaving, *gained)}
        stay = tuple(hold for hold in vm.holds if hold.id not in gone)
        holds = sorted((*stay, *gained), key=lambda hold: hold.number)
        self.vms[name] = replace(vm, holds=tuple(holds))
        return set(), got.id

    def detach(self, name: str, id_: str) -> set[str]:
        """Give back one resource of a VM that is up, with what it has for its sake alone."""
        vm = self.vms.get(name)
        if vm is None:
            return {GONE}
        top = self._called(vm, id_)
        if top is None:
            return {TWICE}
        if vm.state not in ("labelled", "running"):
            return {FAILED}
        leaving = self._with_parts(vm, top)
        if not self.lose(vm, leaving):
            return {DRIFT}
        stay = tuple(hold for hold in vm.holds if hold not in leaving)
        self.vms[name] = replace(vm, holds=stay)
        return set()

    def _called(self, vm: Guest, id_: str) -> Hold | None:
        return next((hold for hold in vm.holds if hold.id == id_), None)

    def _with_parts(self, vm: Guest, top: Hold) -> list[Hold]:
        found = [top]
        for one in found:
            found += [hold for hold in vm.holds if hold.part_of == one.id and hold not in found]
        return found

    def _against_group(self, vm: Guest, want: Want) -> set[str]:
        if not want.group or want.group in vm.groups:
            return set()
        return {REFUSED} if want.group in self.groups else {NO_GROUP}

    def _against_id(self, vm: Guest, own: Hold | None, id_: str) -> set[str]:
        if own is not None:
            return {TWICE} if id_ not in ("", own.id) else set()
        return {TWICE} if self._called(vm, id_) is not None else set()

    def _against_attaching(
        self, vm: Guest, asked: Attach, own: Hold | None, old: Hold | None
    ) -> set[str]:
        want = asked.want
        if own is None:
            against = self.against(want)
            return against or ({NO_LABEL} if self.cannot_label(want, vm.pair) else set())
        if own == old:
            return {TWICE}
        if (own.access, own.group) != (want.access, want.group):
            return self._against_another(vm, own, want)
        return set() if old is not None else {BUSY}

    def _against_another(self, vm: Guest, own: Hold, want: Want) -> set[str]:
        """Return what stands against another access to what a VM has."""
        file = self.at(want.path)
        if file is None or file.ino != own.ino:
            return {REFUSED}
        if any(other.name != vm.name for other, _ in self.holders(own.ino)):
            return {BUSY}
        if file.label != own.label:
            return {REFUSED}
        # Other names that it has got since keep nobody from taking the right to write away.
        loses = want.access == "readonly" and not want.group
        if not loses and len(file.names) > 1:
            return {REFUSED}
        return set() if self.writable(want.path) else {NO_LABEL}

    def _get(self, vm: Guest, asked: Attach, own: Hold | None) -> Hold:
        number = self._number(vm)
        if own is None:
            taken = {hold.id for hold in vm.holds}
            made = (f"r{above}" for above in range(number + 1, number + len(taken) + 2))
            id_ = asked.id or next(one for one in made if one not in taken)
            return self.take(vm, asked.want, id_, number)
        want = asked.want
        if (own.access, own.group) == (want.access, want.group):
            # Named by itself, it is there for no other's sake.
            return replace(own, part_of="", number=number) if own.part_of else own
        return self._changed(vm, own, want, number)

    def _read_only(self, vm: Guest, kept: Hold, got: Hold) -> Hold:
        number = max(self._number(vm), got.number + 1)
        if kept.access not in ("exclusive", "group") and kept.part_of == got.id:
            return kept
        if kept.access in ("exclusive", "group"):
            kept = self._changed(vm, kept, Want(kept.path, "readonly"), number)
        return replace(kept, part_of=got.id, number=number)

    def _changed(self, vm: Guest, own: Hold, want: Want, number: int) -> Hold:
        file, label = self.at(want.path), self.target(want, vm.pair)
        assert file is not None
        file.label, file.theirs = label, False
        return Hold(
            own.ino, want.path, want.access, label, own.original, want.group, own.id, number
        )

    @staticmethod
    def _number(vm: Guest) -> int:
        return max((hold.number for hold in vm.holds), default=-1) + 1

    # -- groups -----------------------------------------------------------------------------

    def join(self, name: str, group: str) -> set[str]:
        """Have a persistent VM be in a group from its next start on."""
        vm = self.vms.get(name)
        if vm is None or group not in self.groups:
            return {NO_VM, GONE, NO_GROUP}
        if not vm.persistent or (vm.state != "reserved" and group not in vm.lasting):
            return {FAILED}
        self.vms[name] = replace(vm, lasting=vm.lasting | {group})
        return set()

    def leave(self, name: str, group: str) -> set[str]:
        """Have a VM not be in a group any more."""
        vm = self.vms.get(name)
        if vm is None or group not in self.groups:
            return {NO_VM, GONE, NO_GROUP}
        if group in vm.groups:
            return {FAILED}
        if group not in vm.lasting:
            return {TWICE}
        self.vms[name] = replace(vm, lasting=vm.lasting - {group})
        return set()

    def delete_group(self, group: str) -> set[str]:
        """Delete a group that no VM is in."""
        if group not in self.groups:
            return {NO_GROUP}
        if any(group in vm.groups | vm.lasting for vm in self.vms.values()):
            return {BUSY}
        del self.groups[group]
        return set()

    def create_group(self, group: str, category: int) -> None:
        """A group with a category that the service has chosen: one that nothing may carry."""
        assert category in GROUP_POOL - set(self.groups.values())
        assert (category,) not in {one.pair for one in self.suspects}, f"c{category} is suspected"
        self.groups[group] = category

    # -- a new start of the daemon ----------------------------------------------------------

    def restart(self, *, ended: Sequence[str] = (), gone: Sequence[int] = ()) -> None:
        """Settle failed releases, VMs whose unit or caller is gone, and the quarantine."""
        self.findings.clear()
        for vm in list(self.vms.values()):
            if vm.state == "failed" or vm.name in ended or vm.caller in gone:
                self.release(vm.name)
        self.suspects = [one for one in self.suspects if not self._clean(one)]
        for vm in self.vms.values():
            for hold in vm.holds if vm.state in ("labelled", "running") else ():
                self._put_back(hold)
        # Nobody is on the bus to hear of it.
        self.findings.clear()

    def _clean(self, suspect: Suspect) -> bool:
        """Say whether a pair is proven gone from a file, or can be taken off it now."""
        file = self.at(suspect.path)
        if file is None or file.ino != suspect.ino:
            return False
        if not frozenset(suspect.pair) <= categories(file.label):
            return True
        back = file.label == suspect.label and not self.holders(file.ino)
        if not back or not self.writable(suspect.path):
            return False
        file.label, file.theirs = suspect.original, True
        return True

    def _put_back(self, hold: Hold) -> None:
        """A label that had not reached the disk in a power cut: what was before it is there."""
        file = self.at(hold.path)
        if file is None or file.ino != hold.ino or file.label != hold.original:
            return
        plain = file.label is None or file.label.split(":")[2] in TAKEN
        if plain and not categories(file.label) and self.writable(hold.path):
            file.label, file.theirs = hold.label, False

    # -- third parties ----------------------------------------------------------------------

    def make(self, name: str, ino: int, label: str | None) -> None:
        """A new file; what an earlier one of its number was is over."""
        self.files[name] = File(ino, label, {name})

    def remove(self, name: str) -> None:
        """One name of a file goes."""
        self.files.pop(name).names.discard(name)

    def rename(self, name: str, to: str) -> None:
        """A file gets another name, over whatever had it."""
        if to in self.files:
            self.remove(to)
        file = self.files.pop(name)
        file.names = (file.names - {name}) | {to}
        self.files[to] = file

    def link(self, name: str, to: str) -> None:
        """A file gets one more name."""
        file = self.files[to] = self.files[name]
        file.names.add(to)

    def relabel(self, name: str, label: str | None) -> None:
        """Somebody else sets a label."""
        file = self.files[name]
        file.label, file.theirs = label, True
