# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of injected errors share: a run with errors put in, and how it must have gone."""

import errno
import os
from collections.abc import Callable, Collection
from typing import Final

import pytest

from svirtd.failpoints import Point
from svirtd.host.bus import BusError
from tests.crash.judge import Judge
from tests.crash.report import Report
from tests.crash.scenarios import Fate, Run, Step
from tests.crash.world import Resource, World
from tests.support import wait_for

OWN: Final = "org.svirt1.Error."
ERRNOS: Final = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EPERM", "ENOTSUP", "ENOENT")
SIZE: Final = 5
FIRST_MIDDLE_LAST: Final = (1, 3, 5)


def reason(name: str) -> str:
    """What a message must say of an error: the kernel's words, or what they mean here."""
    other = {
        "EROFS": "read-only",
        "ENOTSUP": "cannot keep a label",
        "ENOSPC": "no space left",
        "ENOENT": "no such file",
    }
    return other.get(name, os.strerror(getattr(errno, name)).lower())


class Errors:
    """A world in which errors are put into steps."""

    def __init__(self, world: World, report: Report) -> None:
        self.world = world
        self._report = report
        self.run = Run(world, SIZE, "")
        self._with_book = True

    @property
    def resources(self) -> tuple[Resource, ...]:
        return self.world.resources_of(self.run.size)

    def start(self, *armed: str, before: Collection[Step] = (), with_book: bool = True) -> None:
        """Begin anew, with a daemon that is armed like this."""
        world, self._with_book = self.world, with_book
        self.run = Run(world, SIZE, world.new_name())
        assert world.begin(" ".join(armed), with_book=with_book)
        for step in before:
            step.ask(self.run)
        if before:
            world.settle()
        world.client.signals.clear()

    def refused(self, ask: Callable[[Run], None]) -> BusError:
        """Ask for what must be refused because of an injected error; return the refusal."""
        self._report.errors += 1
        with pytest.raises(BusError) as caught:
            ask(self.run)
        error = caught.value
        assert error.text.isprintable(), error.text
        assert "internal error" not in error.text
        return error

    def count(self) -> None:
        """Count an injected error that no refusal tells of."""
        self._report.errors += 1

    def stands(self, *fates: Fate) -> None:
        """Fail unless book, disk and processes are as if nothing had happened but this."""
        self.world.settle()
        judge = Judge(self.world, self.run.name, self.resources)
        problems = judge.problems(fates, bystander=self._with_book)
        assert not problems, "; ".join(problems)

    def failed(self, stuck: Resource, why: str) -> None:
        """Fail unless the VM is failed because of one object, and all others are back."""
        vm = self.world.client.properties(self.run.name)
        assert vm["State"] == "failed"
        assert str(stuck.path) in vm["StateReason"]
        assert why in vm["StateReason"].lower()
        assert len(self.world.rows("operation")) == 1
        assert self.world.rows("quarantine") == []
        assert self.world.client.manager()["PairsInUse"] == 2
        for one in self.resources:
            if one is not stuck:
                assert self.world.label(one) == one.original, one
        kept = self.world.label(stuck)
        assert kept is not None
        if stuck.access != "public":
            assert kept.decode().rstrip("\0").endswith(vm["Categories"])
        assert self.world.units() == []

    def restart(self) -> None:
        """Kill the daemon and start one that nothing is put into."""
        self.world.daemon.kill()
        assert self.world.start()

    def quarantined(self, what: Resource, why: str) -> None:
        """Fail unless the VM has gone and its pair is kept back because of one object."""
        (row,) = wait_for("the quarantine", lambda: self.world.rows("quarantine"))
        assert str(what.path) in row
        assert any(why in str(value).lower() for value in row), row
        assert self.run.name not in self.world.client.vms()
        assert self.world.client.manager()["PairsQuarantined"] == 1
        assert self.world.label(what) == what.original


def fail(point: Point, number: int, name: str) -> str:
    """An error at the n-th time that a point is reached."""
    return f"{point}@{number}=errno:{name}"
