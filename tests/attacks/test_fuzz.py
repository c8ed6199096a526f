# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random and mutated messages: the daemon answers or ignores them, and nothing of them stays."""

import asyncio
import os
from pathlib import Path

from tests.attacks import fuzzer
from tests.attacks.arena import Arena
from tests.sandbox.accounts import Account
from tests.support import NAME, wait_for

_GROWTH_BYTES = 48 << 20


def _address() -> str:
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")


def test_random_bytes_in_the_parser(tmp_path: Path) -> None:
    """Every byte reaches the reader here: no bus has looked at it before."""
    bounds = fuzzer.Bounds()
    counts, journal, grown = asyncio.run(fuzzer.into_the_parser(tmp_path, bounds))
    bounds.tell("parser", counts)
    assert not journal.unexpected, journal.unexpected[:3]
    fds, tasks, objects = grown
    assert (fds, tasks) == (0, 0)
    # What is kept of signatures on purpose is bounded, and compiled: some dozen objects each.
    assert objects < 200_000, f"{objects} objects more than before {counts['sent']} messages"
    assert counts["sent"] > 1000
    assert counts["answered"] > counts["sent"] / 20


def test_random_messages_of_a_stranger(arena: Arena, nobody: Account) -> None:
    """What a bus lets through, to the daemon as it runs; now and then something that ends us."""
    bounds = fuzzer.Bounds()
    held = arena.victim(nobody, mode=0o666)
    arena.root.acquire("secret", held)
    book = arena.root.vms(), arena.root.properties("secret"), arena.root.manager()
    stranger = arena.stranger(nobody)
    run = (_address(), bounds.seed, bounds.number, bounds.seconds, NAME)
    # The daemon keeps signatures, callers and statements on purpose, up to a number.
    stranger.do(fuzzer.through_the_bus, _address(), bounds.seed + 1, 3000, 0.0, NAME)
    fds, memory = arena.fds(), fuzzer.rss(arena.pid)
    stranger.start(fuzzer.through_the_bus, *run)
    counts = stranger.result(3600.0)
    grown = fuzzer.rss(arena.pid) - memory
    bounds.tell(f"through the bus (svirtd grew by {grown >> 10} KiB)", counts)
    assert (arena.root.vms(), arena.root.properties("secret"), arena.root.manager()) == book
    assert grown < _GROWTH_BYTES, f"{grown} bytes"
    wait_for("no descriptor more", lambda: arena.fds() <= fds)
    assert counts["sent"] > 1000
    assert counts["answered"] > counts["sent"] / 2
    arena.root.release("secret")
