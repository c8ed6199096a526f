# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon is doing when it is killed. A new boundary takes a scenario that reaches it.

A scenario is a list of steps; each says what the VM is once the caller was told that it is done.
Whatever a kill cuts off, the VM must then be what the last step that was told has left, or what
the step under way would have made of it.
"""

import asyncio
import enum
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from svirtd.failpoints import Point
from svirtd.host.bus import BusError, Variant
from tests.crash.world import COMMAND, GROUPED, TREE, World, options_of
from tests.support import ROOT, VM, Client

_TAKE_IN_S: Final = 0.02
CUT_OFF: Final = (
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    # What activation comes to where the service is not installed.
    "org.freedesktop.systemd1.NoSuchUnit",
)


class Fate(enum.StrEnum):
    """What a VM is, as a whole: there is nothing between these."""

    GONE = "gone"
    RESERVED = "reserved"
    LABELLED = "labelled"
    RUNNING = "running"
    # Labelled or running, and with more than it was started with: world.more.
    MORE = "one more"
    OTHER = "another in its place"
    KEPT = "another, over it"
    CHAIN = "an image and what it lies over"
    # What libvirt labels: entered, running as the process that libvirt told of, about to be over.
    CHECKED_IN = "checked in"
    FOLLOWED = "followed"
    ENDING = "ending"
    # Followed, and with one more: what it carried before is not known, or by now it is.
    PLUGGED = "followed, one plugged in"
    LEARNT = "followed, one plugged in and given back"


@dataclass(slots=True)
class Run:
    """One run of a scenario: the world, and what the caller asks for and is told."""

    world: World
    size: int
    name: str
    told: list[Fate] = field(default_factory=list)
    error: str = ""
    caller: Client | None = None

    @property
    def resources(self) -> list[dict[str, Variant]]:
        return [one.request for one in self.world.resources_of(self.size)]

    @property
    def options(self) -> dict[str, Variant]:
        return options_of(self.world.resources_of(self.size))

    def is_removed(self) -> bool:
        """Say whether the VM's end was announced. Nothing is asked: replies are counted, too."""
        client = self.world.client
        client.runner.run(asyncio.sleep(_TAKE_IN_S))
        return any(m.member == "VMRemoved" and m.body[0] == self.name for m in client.signals)

    def is_put_back(self) -> bool:
        """Say whether a label of the VM's was put back, and all of that is done."""
        client = self.world.client
        client.runner.run(asyncio.sleep(_TAKE_IN_S))
        found = [m.body[0] for m in client.signals if m.member == "DriftFound"]
        return any(one["vm"].value == self.name and one["repaired"].value for one in found)

    def close(self) -> None:
        """End what the run has beside the world."""
        if self.caller is not None:
            self.caller.close()
            self.caller = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is asked for, and what the VM is after it. `fails`: an error is the answer."""

    ask: Callable[[Run], None]
    fate: Fate
    fails: bool = False
    # Nobody is told: the VM is what `fate` says after the next start, however far this came.
    silent: bool = False
    # What the VM may also be if an end came in between: the next start finds nothing in the way.
    otherwise: Fate | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """`before` is done in peace, the daemon is killed during `steps`. `armed` may name
    the `labels` that an acquisition sets, the `middle` one of those that a release then takes back,
    and the last of a `third` run over all of them."""

    name: str
    steps: tuple[Step, ...]
    before: tuple[Step, ...] = ()
    armed: str = ""
    sizes: tuple[int, ...] = (1, 20)
    with_book: bool = True
    # What its steps are about is done by the comparison that follows a start.
    compared: bool = False

    def possible(self, told: int) -> frozenset[Fate]:
        """What the VM may be if `told` of the steps were answered before the end."""
        start = self.before[-1].fate if self.before else Fate.GONE
        fates = [start, *(step.fate for step in self.steps)]
        if told < len(self.steps) and self.steps[told].silent:
            return frozenset({fates[told + 1]})
        possible = fates[told : told + 2]
        if told < len(self.steps) and (other := self.steps[told].otherwise) is not None:
            possible.append(other)
        return frozenset(possible)

    def prepare(self, run: Run) -> None:
        """Do what comes before. Raises BusError if it is refused."""
        for step in self.before:
            try:
                step.ask(run)
            except BusError:
                if not step.fails:
                    raise
            # So that no commit of one step is shared with the next, or the count would differ.
            run.world.settle(stuck=step.fails)

    def act(self, run: Run, *, even_so: bool = False) -> None:
        """Take the steps until they are done or the daemon is gone.

        `even_so`: a step may also be refused because an error was put into it, which ends the run.
        """
        for step in self.steps:
            try:
                step.ask(run)
            except BusError as error:
                run.error = error.name
                if cut_off(error) or even_so:
                    return
                if not step.fails:
                    raise
            else:
                if step.silent and run.world.ended():
                    return
                assert not step.fails, "not refused"
            run.told.append(step.fate)
            try:
                run.world.settle(stuck=step.fails or even_so)
            except BusError as error:
                if not cut_off(error):
                    raise
            if run.world.ended():
                return


def cut_off(error: BusError) -> bool:
    """Say whether there is nobody any more who could answer."""
    return error.name in CUT_OFF


def _acquire(run: Run) -> None:
    run.world.client.call("Acquire", "saa{sv}a{sv}", run.name, run.resources, run.options)


def _acquire_persistent(run: Run) -> None:
    options = {"persistent": Variant("b", True)}
    run.world.client.call("Acquire", "saa{sv}a{sv}", run.name, run.resources, options)


def _acquire_for_caller(run: Run) -> None:
    run.caller = Client()
    options = {"lifetime": Variant("s", "caller")}
    run.caller.call("Acquire", "saa{sv}a{sv}", run.name, run.resources, options)


def _launch_for_caller(run: Run) -> None:
    run.caller = Client()
    options = {"lifetime": Variant("s", "caller")}
    run.caller.call("Launch", "sasaa{sv}a{sv}", run.name, COMMAND, run.resources, options)


def _caller_leaves(run: Run) -> None:
    run.close()
    run.world.wait("the VM of a caller that left", run.is_removed)


def _launch(run: Run) -> None:
    asked = (run.name, COMMAND, run.resources, run.options)
    run.world.client.call("Launch", "sasaa{sv}a{sv}", *asked)


def _launch_broken(run: Run) -> None:
    command = [str(run.world.broken)]
    run.world.client.call("Launch", "sasaa{sv}a{sv}", run.name, command, run.resources, {})


def _release(run: Run) -> None:
    run.world.client.release(run.name)


def _verify(run: Run) -> None:
    run.world.client.call("Verify", "ba{sv}", True, {})


def _forget(run: Run) -> None:
    run.world.client.call("Forget", "sa{sv}", run.name, {})


def _end_unit(run: Run) -> None:
    os.kill(run.world.main_pid(f"svirt-{run.name}.service"), signal.SIGKILL)
    run.world.wait("the VM of a unit that ended", run.is_removed)


def _attach(number: int, **options: str) -> Callable[[Run], None]:
    def ask(run: Run) -> None:
        wanted = run.world.more[number].request | {"id": Variant("s", f"more{number}")}
        if number == _IMAGE:
            wanted |= {"format": Variant("s", "qcow2"), "backing": Variant("s", "private")}
        told = {key: Variant("s", value) for key, value in options.items()}
        path = f"{ROOT}/vm/{run.name}"
        run.world.client.call("Attach", "a{sv}a{sv}", wanted, told, path=path, interface=VM)

    return ask


def _detach(number: int) -> Callable[[Run], None]:
    def ask(run: Run) -> None:
        path = f"{ROOT}/vm/{run.name}"
        run.world.client.call("Detach", "sa{sv}", f"more{number}", {}, path=path, interface=VM)

    return ask


def _check_in(run: Run) -> None:
    options = {
        "labelled-by": Variant("s", "libvirt"),
        "uuid": Variant("s", _UUID),
        "persistent": Variant("b", True),
    }
    run.world.client.call("Acquire", "saa{sv}a{sv}", run.name, run.resources, options)


def _libvirt_labels(run: Run) -> None:
    _check_in(run)
    run.world.libvirt.label(run.world.resources_of(run.size), run.name)


def _follow(run: Run) -> None:
    pid = run.world.libvirt.process()
    path = f"{ROOT}/vm/{run.name}"
    run.world.client.call("Follow", "ua{sv}", pid, {}, path=path, interface=VM)


def _ending(run: Run) -> None:
    path = f"{ROOT}/vm/{run.name}"
    run.world.client.call("Ending", "a{sv}", {}, path=path, interface=VM)


def _libvirt_forgets(run: Run) -> None:
    _ending(run)
    run.world.libvirt.end()


def _libvirt_gives_back(run: Run) -> None:
    _libvirt_forgets(run)
    run.world.libvirt.give_back(run.world.resources_of(run.size))


def _plug(number: int) -> Callable[[Run], None]:
    def ask(run: Run) -> None:
        run.world.libvirt.plug(run.world.more[number], run.name)
        _attach(number)(run)

    return ask


def _unplug_and_keep(run: Run) -> None:
    """libvirt unplugs something and does not give it back."""
    run.world.libvirt.plugged.clear()
    _detach(1)(run)


def _seen_unplugged(run: Run) -> None:
    """libvirt gives back what it unplugs, and the watch sees that before anybody tells of it."""
    run.world.client.signals.clear()
    run.world.libvirt.unplug(run.world.more[0])
    run.world.wait("the watch has put it back", run.is_put_back)


def _enroll(run: Run) -> None:
    unit = run.world.administrator.unit(run.name)
    run.world.client.call("Enroll", "ssaa{sv}a{sv}", unit, run.name, run.resources, {})


def _unenroll(run: Run) -> None:
    run.world.client.call("Unenroll", "sa{sv}", run.world.administrator.unit(run.name), {})


def _enroll_service(run: Run) -> None:
    _enroll(run)
    context = run.world.client.properties(run.name)["ProcessContext"]
    run.world.administrator.write(run.name, " ".join(COMMAND), context)


def _start_service(run: Run) -> None:
    runs = run.world.administrator.start(run.name)
    if runs:
        run.world.wait("it is known to run", lambda: _state(run) == "running")
    if run.world.ended():
        raise BusError(CUT_OFF[0], "nobody is there to say so")
    assert runs, run.world.daemon.output()[-4000:]


def _stop_service(run: Run) -> None:
    run.world.administrator.stop(run.name)
    run.world.wait("its labels are back", lambda: _state(run) == "reserved")


def _state(run: Run) -> str:
    ((state,),) = run.world.query(f"SELECT state FROM vm WHERE name = '{run.name}'")
    return str(state)


def _nothing(_run: Run) -> None:
    pass


_IMAGE: Final = 2
# A first one, some between, and a last one: what an acquisition and a release do with one resource
# and with twenty is killed there, and here what differs from these happens once.
_SOME: Final = (4,)
_UUID: Final = "6c3a6e6e-0000-4000-8000-000000000001"
_ATTACHED: Final = Step(_attach(0), Fate.MORE)
_REPLACED: Final = Step(_attach(1, replaces="more0"), Fate.OTHER)
ACQUIRED: Final = Step(_acquire, Fate.LABELLED)
LAUNCHED: Final = Step(_launch, Fate.RUNNING)
RELEASED: Final = Step(_release, Fate.GONE)
_KEPT: Final = Step(_acquire_persistent, Fate.LABELLED)
_PUT_AWAY: Final = Step(_release, Fate.RESERVED)
# The hook's calls in a domain's life; its set is kept from one to the next.
_KNOWN: Final = (Step(_check_in, Fate.CHECKED_IN), _PUT_AWAY)
_BY_LIBVIRT: Final = Step(_libvirt_labels, Fate.CHECKED_IN)
_FOLLOWED: Final = Step(_follow, Fate.FOLLOWED)
_RUNS_UNDER_LIBVIRT: Final = (_BY_LIBVIRT, _FOLLOWED)
_PLUGGED: Final = Step(_plug(0), Fate.PLUGGED)
_UNPLUGGED: Final = Step(_seen_unplugged, Fate.LEARNT)
_ENROLLED: Final = Step(_enroll_service, Fate.RESERVED)

SCENARIOS: Final = (
    Scenario("first-start", (Step(_nothing, Fate.GONE),), sizes=(0,), with_book=False),
    Scenario("acquire", (ACQUIRED,)),
    Scenario("launch", (LAUNCHED,)),
    Scenario("release", (RELEASED,), before=(ACQUIRED,)),
    Scenario("release-launched", (RELEASED,), before=(LAUNCHED,)),
    Scenario("unit-ends", (Step(_end_unit, Fate.GONE, silent=True),), before=(LAUNCHED,)),
    # Its last label is refused: everything is taken back.
    Scenario(
        "acquire-refused",
        (Step(_acquire, Fate.GONE, fails=True),),
        armed="label-write@{labels}=errno:ENOSPC",
    ),
    # Every label stands when it turns out that its command cannot be executed.
    Scenario("launch-refused", (Step(_launch_broken, Fate.GONE, fails=True),)),
    # The last label is refused, and the first that was set cannot be taken back: the operation
    # stays open until the next start.
    Scenario(
        "acquire-stuck",
        (Step(_acquire, Fate.GONE, fails=True),),
        armed="label-write@{labels}+=errno:EIO",
        sizes=(20,),
    ),
    Scenario(
        "release-stuck",
        (Step(_release, Fate.GONE, fails=True),),
        before=(ACQUIRED,),
        armed="label-write@{middle}+=errno:EROFS",
    ),
    # The VM is failed; its next start would finish the release, too.
    Scenario(
        "verify-finishes",
        (Step(_verify, Fate.GONE, silent=True),),
        before=(ACQUIRED, Step(_release, Fate.GONE, fails=True)),
        armed="label-write@{middle}=errno:EROFS",
        sizes=(1,),
    ),
    Scenario("persistent", (_PUT_AWAY, _KEPT, _PUT_AWAY), before=(_KEPT,), sizes=_SOME),
    Scenario(
        "persistent-refused",
        (Step(_acquire, Fate.RESERVED, fails=True),),
        before=(_KEPT, _PUT_AWAY),
        armed="label-write@{third}=errno:EDQUOT",
        sizes=_SOME,
    ),
    Scenario("forget", (Step(_forget, Fate.GONE),), before=(_KEPT, _PUT_AWAY), sizes=(1,)),
    Scenario(
        "caller-leaves",
        (Step(_caller_leaves, Fate.GONE, silent=True),),
        before=(Step(_acquire_for_caller, Fate.LABELLED),),
        sizes=_SOME,
    ),
    Scenario(
        "caller-of-a-unit-leaves",
        (Step(_caller_leaves, Fate.GONE, silent=True),),
        before=(Step(_launch_for_caller, Fate.RUNNING),),
        sizes=(1,),
    ),
    # What a group shares: it keeps its label as long as another member holds it, and what no other
    # has gets it and loses it.
    Scenario("acquire-grouped", (ACQUIRED,), sizes=(GROUPED,)),
    Scenario("release-launched-grouped", (RELEASED,), before=(LAUNCHED,), sizes=(GROUPED,)),
    # A tree: it is not known to be whole before the operation is closed, so that it is taken back.
    Scenario("acquire-tree", (ACQUIRED,), sizes=(TREE,)),
    Scenario("launch-release-tree", (LAUNCHED, RELEASED), sizes=(TREE,)),
    # A VM that is up gets one more, loses it, gets another in its place.
    Scenario("attach", (_ATTACHED,), before=(ACQUIRED,), sizes=(1,)),
    Scenario(
        "detach", (Step(_detach(0), Fate.LABELLED),), before=(ACQUIRED, _ATTACHED), sizes=(1,)
    ),
    Scenario("attach-launched", (_ATTACHED,), before=(LAUNCHED,), sizes=(1,)),
    Scenario(
        "attach-image",
        (Step(_attach(_IMAGE), Fate.CHAIN), Step(_detach(_IMAGE), Fate.LABELLED)),
        before=(ACQUIRED,),
        sizes=(1,),
    ),
    Scenario("replace", (_REPLACED,), before=(ACQUIRED, _ATTACHED), sizes=(1,)),
    Scenario(
        "keep",
        (Step(_attach(1, replaces="more0", keep="readonly"), Fate.KEPT),),
        before=(ACQUIRED, _ATTACHED),
        sizes=(1,),
    ),
    Scenario(
        "attach-refused",
        (Step(_attach(_IMAGE), Fate.LABELLED, fails=True),),
        before=(ACQUIRED,),
        armed="label-write@{second_after}=errno:ENOSPC",
        sizes=(1,),
    ),
    Scenario(
        "detach-refused",
        (Step(_detach(0), Fate.MORE, fails=True, otherwise=Fate.LABELLED),),
        before=(ACQUIRED, _ATTACHED),
        armed="label-write@{second_after}=errno:EROFS",
        sizes=(1,),
    ),
    # What is to be handed back cannot be: what came in its place goes again.
    Scenario(
        "replace-refused",
        (Step(_attach(1, replaces="more0"), Fate.MORE, fails=True, otherwise=Fate.OTHER),),
        before=(ACQUIRED, _ATTACHED),
        armed="label-write@{third_after}=errno:EROFS",
        sizes=(1,),
    ),
    # A domain's life with libvirt. What libvirt is about to start goes on, as does what runs.
    Scenario(
        "check-in",
        (Step(_check_in, Fate.CHECKED_IN), _PUT_AWAY),
        before=_KNOWN,
        sizes=_SOME,
    ),
    Scenario(
        "follow",
        (_FOLLOWED, Step(_ending, Fate.ENDING)),
        before=(_BY_LIBVIRT,),
        sizes=(1,),
    ),
    # Its process has ended: the next start, too, gives back what libvirt did not, and no more.
    Scenario(
        "libvirt-forgets",
        (Step(_release, Fate.RESERVED, silent=True),),
        before=(_BY_LIBVIRT, _FOLLOWED, Step(_libvirt_forgets, Fate.ENDING)),
        sizes=_SOME,
    ),
    Scenario(
        "libvirt-gives-back",
        (Step(_release, Fate.RESERVED, silent=True),),
        before=(_BY_LIBVIRT, _FOLLOWED, Step(_libvirt_gives_back, Fate.ENDING)),
        sizes=(1,),
    ),
    # What libvirt plugs in has its label when svirtd hears of it.
    Scenario("plugged-in", (_PLUGGED,), before=_RUNS_UNDER_LIBVIRT, sizes=(1,)),
    # libvirt has not given back what it plugged out: a guess does, and nothing is what it had.
    Scenario(
        "plugged-out",
        (Step(_unplug_and_keep, Fate.FOLLOWED),),
        before=(*_RUNS_UNDER_LIBVIRT, Step(_plug(1), Fate.PLUGGED)),
        sizes=(1,),
    ),
    # The watch takes what libvirt gives back for drift: what is found is entered as the earlier
    # label, and then the VM's is put back. Whatever lies between, the end gives back what it had.
    Scenario(
        "plugged-out-seen",
        (Step(_seen_unplugged, Fate.LEARNT, silent=True),),
        before=(*_RUNS_UNDER_LIBVIRT, _PLUGGED),
        sizes=(1,),
        compared=True,
    ),
    Scenario(
        "plugged-out-known",
        (Step(_detach(0), Fate.FOLLOWED),),
        before=(*_RUNS_UNDER_LIBVIRT, _PLUGGED, _UNPLUGGED),
        sizes=(1,),
    ),
    # An administrator's service, told of by systemd: its set is kept from one start to the next.
    Scenario("enroll", (Step(_enroll, Fate.RESERVED), Step(_unenroll, Fate.GONE)), sizes=(1,)),
    Scenario(
        "enrolled-starts", (Step(_start_service, Fate.RUNNING),), before=(_ENROLLED,), sizes=(1,)
    ),
    Scenario(
        "enrolled-ends",
        (Step(_stop_service, Fate.RESERVED, silent=True),),
        before=(_ENROLLED, Step(_start_service, Fate.RUNNING)),
        sizes=(1,),
    ),
    Scenario("nothing-held", (Step(_acquire, Fate.RESERVED), RELEASED), sizes=(0,)),
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A kill that leaves something open: at the middle one of a scenario's times at a point."""

    scenario: Scenario
    point: Point

    @property
    def name(self) -> str:
        return f"{self.scenario.name}-{self.point}"


_BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}

OPEN: Final = tuple(
    Opened(_BY_NAME[name], point)
    for name, point in (
        ("acquire", Point.LABEL_AFTER),  # some labels stand
        ("acquire", Point.CLOSE_BEFORE),  # all of them
        ("acquire-grouped", Point.LABEL_AFTER),
        ("release-launched-grouped", Point.UNDO_BEFORE),
        ("acquire-tree", Point.TREE_REMEMBERED),  # a part of the tree is labelled
        ("launch-release-tree", Point.UNDO_BEFORE),
        ("launch", Point.START_BEFORE),  # labelled, not started
        ("launch", Point.START_AFTER),  # the unit runs
        ("launch-refused", Point.UNDO_AFTER),  # some labels are back
        ("release-launched", Point.STOP_AFTER),  # the unit has ended, nothing is open
        ("release-launched", Point.UNDO_BEFORE),
        ("release", Point.CLOSE_BEFORE),  # all labels are back
        ("release-stuck", Point.FAILED_AFTER),
        ("persistent", Point.UNDO_SYNCED),
        ("attach", Point.LABEL_AFTER),
        ("attach-image", Point.UNDO_AFTER),  # part of it is back
        ("replace", Point.LABEL_AFTER),  # both are labelled
        ("replace", Point.UNDO_SYNCED),  # one is, the other is not any more
        ("check-in", Point.BEGIN_AFTER),  # entered, and its hook not answered
        ("libvirt-forgets", Point.UNDO_BEFORE),
        ("plugged-in", Point.BEGIN_AFTER),  # entered, and nobody was told
        ("plugged-out", Point.UNDO_AFTER),
        ("enrolled-starts", Point.LABEL_AFTER),  # labelled, and its service will not start
        ("caller-leaves", Point.BEGIN_BEFORE),
        ("unit-ends", Point.END_NOTICED),
    )
)
