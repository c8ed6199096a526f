# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the steps of a random history come to; what each does is in histories_run.py.

A step that draws something that is not there, or could only be refused, takes what is there
instead, unless it insists: a history of refusals would say little.
"""

import copy
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.crash.histories_life import FILES, Stage
from tests.crash.histories_run import Run
from tests.crash.histories_steps import (
    DOMAINS,
    ENROLLED,
    LEAVES,
    NAMES,
    ROOTS,
    VMS,
    Ask,
    Change,
    Disturb,
    Domain,
    End,
    GiveBack,
    Groups,
    Lease,
    Refuse,
    Relabel,
    Service,
    Step,
    Unit,
    steps,
)
from tests.crash.model import Attach, Want


class Histories(RuleBasedStateMachine):
    """The machine; `stage` is set by the test."""

    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self.run = Run(self.stage)
        self._steps: list[Step] = []

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        self.run.check()

    def teardown(self) -> None:
        kind = sys.exc_info()[0]
        # What ends a history that came to its end is no error.
        failed = kind is not None and issubclass(kind, Exception)
        if failed:
            # What is found smaller may fail in another way, or not at all.
            print(traceback.format_exc(), *self._steps, sep="\n", flush=True)
        self.run.end(failed=failed)

    @rule(it=steps)
    def step(self, it: Step) -> None:
        self._steps.append(it)
        match it:
            case Change():
                self._change(it)
            case Groups():
                self._groups(it)
            case Unit():
                self._unit(it)
            case Domain():
                self._domain(it)
            case Ask():
                self._ask(it)
            case Lease():
                self._lease(it)
            case GiveBack():
                self._give_back(it)
            case End():
                self._end(it)
            case Service():
                self._service(it)
            case Relabel():
                self._relabel(it)
            case Disturb():
                self._disturb(it)
            case Refuse():
                self._refuse(it)

    # -- the daemon and what it is asked for ------------------------------------------------------

    def _service(self, it: Service) -> None:
        if it.what == "start":
            self.run.start(it.cut, again=it.again)
        elif self.run.up and it.what == "kill":
            self.run.kill()
        elif self.run.up:
            self.run.stop()

    def _serve(self, cut: str) -> None:
        """Have a daemon that serves, and that ends at a fail point if it comes to it."""
        if cut or not self.run.up:
            self.run.start(cut)

    def _one_of(self, name: str, fitting: Iterable[str], *, insist: bool = False) -> str:
        """The VM that was drawn, or one that fits."""
        some = sorted(fitting)
        return name if insist or name in some or not some else some[0]

    def _unused(self, it: Ask) -> str:
        """A VM that can be acquired; if there is none, one is made so."""
        known = self.run.world.vms
        fitting = [
            name
            for name in VMS
            if name not in known or (known[name].persistent and known[name].state == "reserved")
        ]
        if not fitting and not it.insist:
            self.run.release(it.vm)
        return self._one_of(it.vm, fitting, insist=it.insist)

    def _wanted(self, it: Ask) -> list[Want]:
        """What was drawn; without what would be refused or is there twice."""
        if it.insist:
            return list(it.wants)
        world, found = self.run.world, dict[int, Want]()
        for want in it.wants:
            file = world.at(want.path)
            if file is None or world.cannot_open(want):
                continue
            if not any(world.against(one) for one, _ in world.with_chains([want])):
                found.setdefault(file.ino, want)
        return list(found.values())

    def _lay_over(self, wants: Iterable[Want]) -> None:
        """Somebody makes images of files that are asked for as such and are none."""
        world = self.run.world
        for want in wants:
            name = want.path.partition("/")[2]
            others = [one for one in FILES if one in world.files and one != name]
            if want.chain and self._mutable(name) and not world.files[name].over and others:
                over = f"disks/{others[len(name + want.access) % len(others)]}"
                self.run.disks.overlay(name, over)
                world.files[name].over = over

    def _groups(self, it: Groups) -> None:
        self._serve(it.cut)
        run, vms = self.run, self.run.world.vms.values()
        kept = [vm for vm in vms if vm.persistent and vm.state == "reserved"]
        if it.what == "make":
            run.make_group(it.group)
        elif it.what == "delete":
            if it.group in run.world.groups or it.insist:
                run.delete_group(it.group)
        elif it.what == "grant":
            run.make_group(it.group)
            run.allow(it.vm, it.group, grants=True)
        elif it.what == "revoke":
            fitting = [
                name
                for name in VMS
                if not copy.deepcopy(run.world).revoke(name, it.group) or it.insist
            ]
            if not fitting:
                run.make_group(it.group)
                run.allow(it.vm, it.group, grants=True)
            run.allow(self._one_of(it.vm, fitting), it.group, grants=False)
        elif it.what == "join":
            if kept or it.insist:
                run.make_group(it.group)
                fitting = [vm.name for vm in kept]
                run.member(self._one_of(it.vm, fitting, insist=it.insist), it.group, joins=True)
        else:
            fitting = [vm.name for vm in kept if it.group in vm.lasting]
            if fitting or it.insist:
                run.member(self._one_of(it.vm, fitting, insist=it.insist), it.group, joins=False)

    def _for(self, it: Ask) -> tuple[str, list[Want]]:
        """For which VM what is asked for, with all in place for that."""
        self._serve(it.cut)
        if not it.insist:
            for name in sorted({want.group for want in it.wants if want.group}):
                self.run.make_group(name)
            self._lay_over(it.wants)
        return self._unused(it), self._wanted(it)

    def _lease(self, it: Lease) -> None:
        vm, wanted = self._for(it.ask)
        leased = [
            replace(want, at_end=it.at_end if it.every or not number else "")
            for number, want in enumerate(wanted)
        ]
        if leased:
            launch, persistent = it.ask.what == "Launch", it.ask.persistent
            self.run.lease(vm, leased, launch=launch, persistent=persistent, away=it.away)

    def _ask(self, it: Ask) -> None:
        (vm, wanted), foretold = self._for(it), ""
        if it.what.startswith("Plan"):
            foretold = self.run.plan(vm, wanted)
        if it.what != "Plan":
            launch = it.what == "Launch"
            self.run.request(
                vm,
                wanted,
                launch=launch,
                persistent=it.persistent,
                slot=it.slot,
                foretold=foretold,
            )

    def _change(self, it: Change) -> None:
        self._serve(it.cut)
        if not self._up(it) and not it.insist:
            what = "Launch" if it.resource % 2 else "Acquire"
            wants = (it.want, *(Want(f"disks/{name}", "exclusive") for name in FILES))
            wants = wants[: 1 + it.resource]
            self._ask(Ask(what, it.vm, wants, persistent=False, slot=None, insist=False, cut=""))
        vms, fitting = self.run.world.vms, self._up(it)
        if not fitting and not it.insist:
            return
        vm = self._one_of(it.vm, fitting, insist=it.insist)
        holds = [hold for hold in vms[vm].holds if not hold.tree] if vm in vms else []
        old = holds[it.resource % len(holds)] if holds else None
        if it.what == "detach":
            self.run.detach(vm, old.id if old is not None else "r1")
            return
        want, asked = it.want, Attach(it.want, it.id)
        if it.what != "attach" and old is not None:
            keeps, alike = it.what.startswith("keep"), it.what.endswith("alike")
            if alike:
                want = replace(want, access=old.access, group=old.group)
            asked = Attach(want, it.id, old.id, keeps, alike)
        self.run.attach(vm, asked if it.insist else self._attachable(vm, asked))

    def _up(self, it: Change) -> list[str]:
        """The VMs that can get one more resource, or have one that can be lost."""
        vms = self.run.world.vms.values()
        some = it.what != "attach"
        up = [vm for vm in vms if vm.state in ("labelled", "running") and not vm.libvirt]
        return [vm.name for vm in up if vm.holds or not some]

    def _attachable(self, vm: str, asked: Attach) -> Attach:
        """What was drawn; if that would be refused, as near to it as there is something."""
        want, groups = asked.want, sorted(self.run.world.vms[vm].groups)
        if want.group and want.group not in groups:
            group = groups[0] if groups else ""
            want = replace(want, access=want.access if group else "exclusive", group=group)
        folder = want.path.partition("/")[0]
        for name in (want.path.partition("/")[2], *NAMES):
            for id_ in (asked.id, ""):
                one = replace(asked, want=replace(want, path=f"{folder}/{name}"), id=id_)
                if not copy.deepcopy(self.run.world).attach(vm, one)[0]:
                    return one
        return asked

    def _give_back(self, it: GiveBack) -> None:
        self._serve(it.cut)
        vms = self.run.world.vms
        reserved = [vm.name for vm in vms.values() if vm.state == "reserved"]
        if it.what == "Forget" and (reserved or it.insist):
            self.run.forget(self._one_of(it.vm, reserved, insist=it.insist))
        elif vms or it.insist:
            self.run.release(self._one_of(it.vm, vms, insist=it.insist))

    # -- what libvirt does, and tells -----------------------------------------------------------

    def _domain(self, it: Domain) -> None:
        self._serve(it.cut)
        run, vms = self.run, self.run.world.vms
        up = [name for name in DOMAINS if name in vms and vms[name].state != "reserved"]
        name = it.name if it.what == "turn" else self._one_of(it.name, up, insist=it.insist)
        vm = vms.get(name)
        state = vm.state if vm is not None else "reserved"
        if it.insist or it.what in ("follow", "ending"):
            if it.what == "ending":
                run.ending(name)
            else:
                run.follow(name, alive=it.far > 0)
        elif it.what == "turn" and state in ("reserved", "labelled"):
            if state == "reserved":
                self._check_in(name, it.wants)
            if it.far > 0:
                run.libvirt_sets(name, back=False)
            if it.far > 1:
                run.follow(name)
        elif it.what in ("label", "back"):
            run.libvirt_sets(name, back=it.what == "back")
        elif vm is not None and it.what == "crash":
            run.end_process(vm.pid)
        elif vm is not None and state != "reserved":
            run.ending(name)
            run.end_process(vm.pid)
            if it.far > 0:
                run.libvirt_sets(name, back=True)
            if it.far > 1:
                run.over(name)

    def _check_in(self, name: str, wants: Iterable[Want]) -> None:
        run, found = self.run, dict[int, Want]()
        for group in sorted({want.group for want in wants if want.group}):
            run.make_group(group)
        for want in wants:
            file = run.world.at(want.path)
            # Its own label, put there by a third party, would mean that libvirt was here.
            if file is not None and not run.world.judge_check_in(name, [want]):
                found.setdefault(file.ino, want)
        run.check_in(name, list(found.values()))

    # -- the administrator's unit ---------------------------------------------------------------

    def _unit(self, it: Unit) -> None:
        run = self.run
        # It starts and ends while no daemon is there, too.
        if it.what not in ("turn", "kill") or not it.insist:
            self._serve(it.cut)
        vm = run.world.of_unit
        runs = vm is not None and vm.state == "running" and vm.name not in run.ended
        if runs and it.what in ("turn", "kill"):
            run.end_unit(kill=it.what == "kill")
        elif it.what in ("unenroll", "keep"):
            if (vm is not None and not runs) or it.insist:
                run.unenroll(keep=it.what == "keep")
        elif it.what == "enroll":
            if not runs or it.insist:
                self._enroll(it)
        elif vm is None or vm.name not in run.ended:
            if not it.insist:
                if not run.would_start:
                    self._enroll(it)
                run.refresh()
            run.start_unit()

    def _enroll(self, it: Unit) -> None:
        run = self.run
        wants = [replace(want, fd=False) for want in it.wants]
        name = it.vm if it.insist else run.world.enrolled[0] if run.world.enrolled else ENROLLED
        if not it.insist:
            for group in sorted({want.group for want in wants if want.group}):
                run.make_group(group)
            self._lay_over(wants)
            ask = Ask("Enroll", name, tuple(wants), True, None, it.insist, "")
            wants = self._wanted(ask) or [Want("disks/f0", "exclusive")]
        run.enroll(name, wants)

    def _end(self, it: End) -> None:
        run = self.run
        if it.cut and run.up:
            run.start(it.cut)
        running = [
            vm.name
            for vm in run.world.vms.values()
            if vm.state == "running" and vm.unit and not vm.enrolled and vm.name not in run.ended
        ]
        if run.callers and (it.what == "caller" or not running):
            run.caller_leaves(it.slot if it.slot in run.callers else min(run.callers))
        elif running:
            run.kill_vm(self._one_of(it.vm, running))

    # -- third parties --------------------------------------------------------------------------

    def _mutable(self, name: str) -> bool:
        file = self.run.world.files.get(name)
        return file is not None and not file.immutable

    def _relabel(self, it: Relabel) -> None:
        files, text = self.run.world.files, it.label
        if text in NAMES:
            if text not in files:
                return
            text = files[text].label
        if self._mutable(it.name):
            self.run.disks.relabel(it.name, text)
            self.run.world.relabel(it.name, text)

    def _disturb(self, it: Disturb) -> None:
        world, disks, name, to = self.run.world, self.run.disks, it.name, it.to
        old = world.files.get(name)
        text = old.label if old is not None and it.keep_label else None
        folder = name.rpartition("/")[0]
        if old is None and it.what == "make" and (not folder or folder in world.files):
            world.make(name, disks.make(name, text), text)
        if old is None or old.immutable:
            return
        if it.what in ("delete", "make"):
            os.unlink(disks.name(name))
            world.remove(name)
        if it.what == "make":
            # In the place of the old one: it gets its inode number, if nothing else holds that.
            world.make(name, disks.make(name, text), text)
        elif it.what == "replace":
            # As an editor does, or `cp -a` and `mv`.
            world.make("new", disks.make("new", text), text)
            os.rename(disks.name("new"), disks.name(name))
            world.rename("new", name)
        elif it.what in ("rename", "link") and name in LEAVES:
            # What leaves a tree takes its label along, so the whole tree goes.
            for one, other in zip((*ROOTS, "new"), ("new", *ROOTS), strict=True):
                os.rename(disks.name(one), disks.name(other))
                world.rename_tree(one, other)
        elif it.what == "rename" and world.files.get(to) is not old:
            if to not in world.files or self._mutable(to):
                os.rename(disks.name(name), disks.name(to))
                world.rename(name, to)
        elif it.what == "link" and to not in world.files:
            os.link(disks.name(name), disks.name(to))
            world.link(name, to)

    def _refuse(self, it: Refuse) -> None:
        world = self.run.world
        if it.name is None:
            self.run.disks.read_only(on=it.on)
            world.view_readonly = it.on
        elif it.name in world.files:
            self.run.disks.immutable(it.name, on=it.on)
            world.files[it.name].immutable = it.on
