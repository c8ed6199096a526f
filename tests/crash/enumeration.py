# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a scenario once to learn its boundaries, and then again for each, killed there."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.failpoints import BOUNDARIES, Point
from svirtd.host.bus import BusError
from tests.crash.judge import Judge
from tests.crash.report import Report
from tests.crash.scenarios import Fate, Run, Scenario, cut_off
from tests.crash.world import TREE, World
from tests.support import ROOT, VM

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Place:
    """The n-th time since its start that the daemon reaches a point, and the call that does."""

    point: Point
    number: int
    site: str

    @property
    def armed(self) -> str:
        return f"{self.point}@{self.number}=kill"

    def __str__(self) -> str:
        return f"{self.point}@{self.number} ({self.site})"


def places(
    reached: Sequence[tuple[Point, str]], start: int, wanted: Collection[Point] = BOUNDARIES
) -> list[Place]:
    """Return those of the reached points that are wanted, from the `start`-th on, in order."""
    counted: Counter[Point] = Counter()
    found = []
    for position, (point, site) in enumerate(reached):
        counted[point] += 1
        if position >= start and point in wanted:
            found.append(Place(point, counted[point], site))
    return found


def thinned(all_places: Sequence[Place]) -> Sequence[Place]:
    """Return, of the times that one call reaches a point, first, second, a middle one, last two.

    What lies between is a step like its neighbours. SVIRT_CRASH_ALL=1 leaves nothing out.
    """
    if os.environ.get("SVIRT_CRASH_ALL") == "1":
        return all_places
    times: dict[tuple[Point, str], list[Place]] = {}
    for place in all_places:
        times.setdefault((place.point, place.site), []).append(place)
    kept: set[Place] = set()
    for some in times.values():
        kept.update([*some[:2], some[len(some) // 2], *some[-2:]])
    return [place for place in all_places if place in kept]


def of_recovery(start: Sequence[Place]) -> Sequence[Place]:
    """Return those places of a start that are in its recovery.

    Before it nothing that is open was looked at, and after it nothing is: how many resources it had
    makes no difference there. SVIRT_CRASH_ALL=1 leaves nothing out.
    """
    if os.environ.get("SVIRT_CRASH_ALL") == "1":
        return start
    points = [place.point for place in start]
    return start[points.index(Point.RECOVER_BEFORE) + 1 : points.index(Point.RECOVER_AFTER) + 1]


class Enumeration:
    """The cases of one scenario and size."""

    def __init__(self, world: World, report: Report, scenario: Scenario, size: int) -> None:
        self._world = world
        self._report = report
        self._scenario = scenario
        self._size = size
        labels = world.labels_of(size)
        self._armed = scenario.armed.format(
            labels=labels,
            middle=labels + labels // 2 + 1,
            third=3 * labels,
            second_after=labels + 2,
            third_after=labels + 3,
        )
        self._failures: list[str] = []

    def kill_everywhere(self) -> None:
        """Kill the daemon at every boundary that the scenario reaches."""
        for place in thinned(self.trace()):
            self._case(str(place), functools.partial(self._killed_at, place))
        self._verdict()

    def kill_recovery(self, first: Callable[[Sequence[Place]], Place], *, whole: bool) -> None:
        """Kill the daemon at one boundary, and the start after it at every one of its own.

        `whole`: at those before and after the recovery, too.
        """
        place = first(self.trace())
        run = self._run(place)
        seconds = thinned(self._recovery_places(run))
        for second in seconds if whole else of_recovery(seconds):
            self._case(
                f"{place}, then {second}", functools.partial(self._killed_twice, place, second)
            )
        self._verdict()

    def fail_once(self, point: Point, texts: Sequence[str]) -> None:
        """Have each transaction of the scenario fail once, with each text, and settle it."""
        self._fail(point, texts, "", self._settled_without_restart)

    def fail_on(self, point: Point, texts: Sequence[str]) -> None:
        """Have all transactions fail from each one of the scenario on, and start anew."""
        self._fail(point, texts, "+", self._settled_by_restart)

    def _fail(
        self, point: Point, texts: Sequence[str], more: str, settled: Callable[[Run], None]
    ) -> None:
        everywhere = self.trace([point])
        armed = [
            f"{point}@{place.number}{more}=raise:sqlite3.OperationalError:{text}"
            for place in everywhere
            for text in texts
        ]
        for one in armed:
            self._case(one, functools.partial(self._failed_at, one, settled))
        self._verdict()

    def _failed_at(self, armed: str, settled: Callable[[Run], None]) -> None:
        run = self._begin(armed)
        try:
            self._scenario.act(run, even_so=True)
            self._report.errors += 1
            settled(run)
        finally:
            run.close()

    def _settled_without_restart(self, run: Run) -> None:
        """What was told holds; a release brings back everything, if there is anything."""
        try:
            try:
                self._ask_back(run.name)
            except BusError as error:
                # Writes that came together were one transaction, so that the one that was to fail
                # is the release's own: it is told so, and the next does not fail.
                if not error.name.endswith(".Failed"):
                    raise
                self._ask_back(run.name)
        except BusError as error:
            # The end of a unit, which is noticed as well, may have been quicker.
            if not error.name.endswith(".NoSuchVM"):
                raise
            self._world.settle()
        self._judge(run, {Fate.GONE})
        self._world.rest()

    def _settled_by_restart(self, run: Run) -> None:
        self._world.daemon.kill()
        self._settled(run)

    def _judge(self, run: Run, possible: Collection[Fate]) -> None:
        judge = Judge(self._world, run.name, self._world.resources_of(self._size))
        problems = judge.problems(possible, bystander=self._scenario.with_book)
        assert not problems, f"told {run.told}, {run.error}; " + "; ".join(problems)

    def trace(self, wanted: Collection[Point] = BOUNDARIES) -> list[Place]:
        """Run the scenario to its end and return where it reaches the points that are wanted.

        A job on a tree tells of its progress where it takes long, as it does now and then: of these
        the shortest of three runs counts, whose points every run reaches.
        """
        runs = [self._traced(wanted) for _ in range(3 if self._size == TREE else 1)]
        return min(runs, key=len)

    def _traced(self, wanted: Collection[Point]) -> list[Place]:
        run = self._begin("")
        try:
            start = 0 if not self._scenario.with_book else len(self._world.reached())
            self._scenario.act(run)
            assert len(run.told) == len(self._scenario.steps), f"cut off: {run.error}"
            self._world.stop()
            reached = self._world.reached()
            self._report.reached(reached)
            self._settled(run)
        finally:
            run.close()
        return places(reached, start, wanted)

    # -- one case ---------------------------------------------------------------------------

    def _case(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except AssertionError as error:
            self._failures.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001 -- told with all the others
            self._failures.append(f"{what}: {error!r}")

    def _verdict(self) -> None:
        more = len(self._failures) - _SHOWN
        shown = "\n".join(self._failures[:_SHOWN]) + (f"\nand {more} more" if more > 0 else "")
        assert not self._failures, f"{len(self._failures)} cases of {self._scenario.name}:\n{shown}"

    def _begin(self, armed: str) -> Run:
        world, scenario = self._world, self._scenario
        run = Run(world, self._size, world.new_name())
        if world.begin(f"{self._armed} {armed}".strip(), with_book=scenario.with_book):
            scenario.prepare(run)
            world.client.signals.clear()
        return run

    def _run(self, place: Place) -> Run:
        """Run the scenario with the daemon killed at a place."""
        run = self._begin(place.armed)
        try:
            if not self._world.ended():
                self._scenario.act(run)
            self._world.stop()
        finally:
            run.close()
        self._ended_at(place)
        self._report.killed(place.point, place.site)
        return run

    def _settle(self) -> None:
        try:
            self._world.settle()
        except BusError as error:
            if not cut_off(error):
                raise

    def _ended_at(self, place: Place) -> None:
        """Fail unless the place was reached; other threads run on for a moment."""
        times = [site for point, site in self._world.reached() if point is place.point]
        assert times[place.number - 1 :][:1] == [place.site], f"{place.point} at {times}"

    def _killed_at(self, place: Place) -> None:
        self._settled(self._run(place))

    def _killed_twice(self, first: Place, second: Place) -> None:
        run = self._run(first)
        if self._world.start(second.armed):
            # What recovery has left to the writer's thread may end after it.
            self._settle()
        self._world.stop()
        self._ended_at(second)
        self._report.killed(second.point, second.site, in_recovery=True)
        self._settled(run)

    def _recovery_places(self, run: Run) -> list[Place]:
        assert self._world.start()
        self._settle()
        reached = self._world.reached()
        self._report.reached(reached)
        self._world.daemon.kill()
        self._settled(run)
        return places(reached, 0)

    def _settled(self, run: Run) -> None:
        """Start, look, start again: nothing may change; then take back what stands."""
        world, scenario = self._world, self._scenario
        possible = scenario.possible(self._done(run))
        self._start_in_peace()
        self._judge(run, possible)
        before = world.dump()
        world.daemon.kill()
        self._start_in_peace()
        after = world.dump()
        changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        assert not changed, f"the second start changed: {changed}"
        self._take_back(run.name)
        self._judge(run, {Fate.GONE})
        if scenario.with_book:
            world.rest()

    def _start_in_peace(self) -> None:
        assert self._world.start()
        # They wait for the comparison that follows a start; the first may have come before it.
        for _ in range(2 if self._scenario.compared else 0):
            self._world.client.call("Verify", "ba{sv}", False, {})
        self._world.settle()

    def _done(self, run: Run) -> int:
        """How many steps were announced, to the caller or by a signal: these hold, too."""
        signalled = {msg.member for msg in self._world.client.signals}
        done, there = len(run.told), bool(self._scenario.before)
        for number, step in enumerate(self._scenario.steps):
            wanted = "VMRemoved" if step.fate is Fate.GONE else None if there else "VMAdded"
            there = step.fate is not Fate.GONE
            if wanted in signalled:
                done = max(done, number + 1)
        return done

    def _take_back(self, name: str) -> None:
        """Have the daemon give back what a VM has. The book says the same as the daemon: that was
        compared, and costs no call."""
        libvirt, client = self._world.libvirt, self._world.client
        if libvirt.plugged:
            # As libvirt ends a domain: what it gives back now is no drift.
            client.call("Ending", "a{sv}", {}, path=f"{ROOT}/vm/{name}", interface=VM)
            for one in self._world.more:
                if one.path in libvirt.plugged:
                    libvirt.unplug(one)
        libvirt.end()
        for state, persistent, unit in self._world.query(
            f"SELECT state, persistent, enrolled FROM vm WHERE name = '{name}'"
        ):
            if state != Fate.RESERVED:
                client.release(name)
            if unit:
                self._world.administrator.wait_for_end(name)
                client.call("Unenroll", "sa{sv}", unit, {})
            elif state == Fate.RESERVED or persistent:
                client.call("Forget", "sa{sv}", name, {})
        self._world.settle()

    def _ask_back(self, name: str) -> None:
        """As _take_back, where nothing was compared."""
        client = self._world.client
        if client.vms().get(name, "reserved") != "reserved":
            client.release(name)
        if name in client.vms():
            client.call("Forget", "sa{sv}", name, {})
        self._world.settle()
