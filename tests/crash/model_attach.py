# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Attach and Detach make of a VM that is up."""

from dataclasses import replace

from tests.crash.model import (
    BUSY,
    DRIFT,
    FAILED,
    GONE,
    NO_GROUP,
    NO_LABEL,
    REFUSED,
    TWICE,
    Attach,
    Guest,
    Hold,
    Want,
)
from tests.crash.model_labels import Labels


class Attaching(Labels):
    """A world in which a VM that is up gets a file more, or loses one."""

    __slots__ = ()

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
        others = bool(errors)
        errors |= self._against_id(vm, own, asked.id)
        if not others:
            errors |= self._against_attaching(vm, asked, own, old)
        kept = old if asked.keeps else None
        if kept is not None and kept.access in ("exclusive", "group"):
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
            alone = replace(own, part_of="", number=number, until=0, at_end="")
            return alone if own.part_of else own
        return self._changed(vm, own, want, number)

    def _read_only(self, vm: Guest, kept: Hold, got: Hold) -> Hold:
        number = max(self._number(vm), got.number + 1)
        if kept.access not in ("exclusive", "group") and kept.part_of == got.id:
            return kept
        if kept.access in ("exclusive", "group"):
            kept = self._changed(vm, kept, Want(kept.path, "readonly"), number)
        lease = got if kept.part_of else kept
        return replace(kept, part_of=got.id, number=number, until=lease.until, at_end=lease.at_end)

    def _changed(self, vm: Guest, own: Hold, want: Want, number: int) -> Hold:
        file, label = self.at(want.path), self.target(want, vm.pair)
        assert file is not None
        file.label, file.theirs = label, False
        return Hold(
            own.ino,
            want.path,
            want.access,
            label,
            own.original,
            want.group,
            own.id,
            number,
            until=0 if own.part_of else own.until,
            at_end="" if own.part_of else own.at_end,
        )

    @staticmethod
    def _number(vm: Guest) -> int:
        return max((hold.number for hold in vm.holds), default=-1) + 1
