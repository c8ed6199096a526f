# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases in a history: a VM gets something for a moment, and loses it when that is over.

A lease is given and ends within one step, or what is held in between would depend on the clock.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from svirtd.host.bus import BusError, Variant
from tests.crash.histories_life import Life, figures
from tests.crash.model import Guest, Want
from tests.crash.model_world import World
from tests.support import wait_for

_LONG_ENOUGH_US: Final = 400_000


class Leases(Life):
    """A history in which things are leased."""

    def lease(
        self, name: str, wanted: Sequence[Want], *, launch: bool, persistent: bool, away: bool
    ) -> None:
        """Acquire or Launch with what is `leased` of it until soon; `away`: that ends while no
        daemon is there."""
        until = _now_us() + _LONG_ENOUGH_US
        wanted = [replace(want, until=until if want.at_end else 0) for want in wanted]
        errors, answered = self.world.judge(name, wanted), False

        def over() -> World:
            world = copy.deepcopy(self.world)
            if name in self.seen()["vms"]:
                guest = self._guest(name, persistent=persistent, caller=None)
            else:
                # It had nothing else, and its set is free again.
                guest = Guest(name, "", min(world.free(), key=sorted), "", persistent)
            world.grant(replace(guest, unit=launch), wanted)
            world.end_leases(name)
            return world

        with self.maybe_dying(lambda: [] if errors else [over()]):
            if self._ask_for(errors, name, wanted, launch=launch, persistent=persistent):
                self.world, answered = over(), True
        if answered:
            self._end(name, until, away=away)

    def _ask_for(
        self, errors: set[str], name: str, wanted: Sequence[Want], *, launch: bool, persistent: bool
    ) -> bool:
        options = {"persistent": Variant("b", persistent), **self._groups(wanted)}
        with self._passed(wanted) as (asked, fds):
            arguments: tuple[Any, ...] = ("Acquire", "saa{sv}a{sv}", name, asked, options)
            if launch:
                command = ["/bin/sleep", "1000"]
                arguments = ("Launch", "sasaa{sv}a{sv}", name, command, asked, options)
            try:
                return self._answer(errors, *arguments, fds=fds) is not None
            except AssertionError as error:
                cause, until = error.__cause__, max(want.until for want in wanted)
                late = isinstance(cause, BusError) and "is over already" in cause.text
                # On a machine that has more to do it may be.
                if not late or _now_us() < until:
                    raise
                return False

    def _end(self, name: str, until: int, *, away: bool) -> None:
        if away:
            if self.up:
                self.kill()
            wait_for("its end", lambda: _now_us() >= until)
            self.start()
        told = [one for one in self.world.findings if one.kind == "expired"]
        with self.maybe_dying(list):
            # What is leased is not calm.
            self._seen_calm()
            wait_for("they are told", lambda: self._expired(name) >= len(told))
        figures["leases over"] += 1
        figures["leases over while it was away"] += away
        figures["leases told of"] += bool(told)

    def _expired(self, name: str) -> int:
        self.call("ListVMs", "")
        told = [msg.body[0] for msg in self.client.signals if msg.member == "DriftFound"]
        return sum((one["kind"].value, one["vm"].value) == ("expired", name) for one in told)


def _now_us() -> int:
    return time.time_ns() // 1000
