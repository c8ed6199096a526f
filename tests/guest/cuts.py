# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cuts the guest's power under load, again and again, and holds what is there against what it said.

QEMU is killed at a random moment; its disk (see `disk`) loses any part of what the guest has not
flushed. The next boot from that disk tells its state first, then goes on with the load. Everything
random comes from one seed.
"""

import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.guest import machine, promises
from tests.guest.build import CACHE, Guest, run
from tests.guest.disk import Disk, Server

_MEMORY_MIB: Final = 768
_BOOT_S: Final = 180.0
# How long the load runs, and how much of it there is at least: on a busy machine that takes longer.
_LOAD_S: Final = 2.0, 8.0
_FACTS: Final = 12
_LOAD_MAX_S: Final = 60.0
# How long nothing happens before the cut, once the load says that it has stopped.
_QUIET_S: Final = 2.0
# What part of the unflushed blocks reaches the disk at a cut.
_SURVIVE: Final = 0.0, 0.5, 0.9
# What the target pulls in by the way, and a boot of some seconds does without.
_MASKED: Final = (
    *("systemd-udevd", "systemd-udev-trigger", "systemd-udev-load-credentials", "systemd-binfmt"),
    *("systemd-tmpfiles-setup", "systemd-tmpfiles-setup-dev", "systemd-tmpfiles-setup-dev-early"),
    *("systemd-random-seed", "systemd-sysctl", "systemd-modules-load", "systemd-journal-flush"),
    *("kmod-static-nodes", "modprobe@configfs", "modprobe@efi_pstore", "modprobe@fuse"),
)
_ARGUMENTS: Final = " ".join(
    (
        "svirt.run=cuts svirt.seed={seed} svirt.turn={turn} svirt.last={last}",
        "quiet systemd.show_status=0 systemd.unit=guest-cuts.target",
        *(f"systemd.mask={name}.service" for name in _MASKED),
    )
)


@dataclass(slots=True)
class _Account:
    """What was said so far, and what was seen."""

    world: promises.World = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    told: int = 0
    promises: int = 0
    unsynced: int = 0
    problems: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    def hear(self, line: str) -> str:
        """Take in a line of the guest; returns its first word."""
        what, _, text = line.partition(" ")
        if what == "TOLD":
            fact = json.loads(text)
            self.told += 1
            self.originals |= fact.get("originals", {})
            self.facts.append(fact)
        elif what == "STATE":
            self._judge(json.loads(text))
        return what

    def _judge(self, state: dict[str, Any]) -> None:
        when = state.pop("when")
        if when == "boot":
            possible = promises.told(self.world, self.facts)
            report = promises.judge(state, possible, self.originals)
            self.problems += report.problems
            self.promises += report.promises
            self.unsynced += report.unsynced
            self.world, self.state = promises.world(state), state
            self.facts.clear()
        elif when == "restart":
            self.problems += promises.changed(self.state, state)
        else:
            self.problems += promises.left(state, self.originals)


def cut(guest: Guest, cuts: int, seed: int, shown: IO[str]) -> bool:
    """Cut the power this often; says whether nothing was lost, and shows what was."""
    folder = CACHE / f"run-cuts-{guest.suite}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    image = folder / "disk.ext4"
    run(["cp", "--sparse=always", guest.image, image])
    # The image is made without a journal, for runs that end with the machine.
    run(["tune2fs", "-O", "has_journal", image])
    chance, account = random.Random(seed), _Account()
    start = time.monotonic()
    shown.write(f"{cuts} power cuts with seed {seed}\n")
    for turn in range(cuts + 1):
        line = _turn(guest, image, folder / f"turn-{turn}", account, chance, (turn, cuts, seed))
        shown.write(f"{line}, {time.monotonic() - start:.0f} s so far\n")
        shown.flush()
        if account.problems:
            break
    for problem in account.problems:
        shown.write(f"LOST: {problem}\n")
    if account.problems:
        shown.write(
            f"again: python -m tests.guest cuts --cuts {cuts} --seed {seed}\n"
            f"disk, consoles, journals and outputs are in {folder}\n"
        )
        return False
    image.unlink()
    shown.write(
        f"{cuts} power cuts, {account.told} facts told, {account.promises} VMs looked at after a"
        f" cut: nothing lost; {account.unsynced} labels of acquisitions had not reached the disk\n"
    )
    return True


def _turn(
    guest: Guest,
    image: Path,
    folder: Path,
    account: _Account,
    chance: random.Random,
    numbers: tuple[int, int, int],
) -> str:
    """One boot, and the cut that ends it; returns what to show of it."""
    turn, cuts, seed = numbers
    last = turn == cuts
    folder.mkdir()
    machine.prepare(folder, "")
    arguments = _ARGUMENTS.format(seed=seed, turn=turn, last=int(last))
    load_s, survive = chance.uniform(*_LOAD_S), chance.choice(_SURVIVE)
    before = account.told
    powered = _Powered(guest, image, folder, arguments)
    try:
        with open(folder / "output", encoding="utf-8", errors="replace") as said:
            lines = _Lines(said)
            problem = _listen(powered, lines, account, load_s, last=last)
            kept, lost = powered.cut(lambda: chance.random() < survive)
            # What was said until the cut was promised.
            for line in lines:
                account.hear(line)
    finally:
        powered.close()
    account.problems += [problem] * bool(problem)
    what = "the last boot" if last else f"cut {turn + 1} after {load_s:.1f} s of load"
    return f"{what}: {account.told - before} facts, {lost} unflushed blocks lost and {kept} kept"


def _listen(
    powered: "_Powered", lines: "_Lines", account: _Account, load_s: float, *, last: bool
) -> str:
    """Listen until it is time for the cut, or the last boot is done; returns what went wrong."""
    end, loaded = time.monotonic() + _BOOT_S, 0.0
    enough = account.told + _FACTS
    while True:
        for line in lines:
            what = account.hear(line)
            if what == "LOAD":
                loaded = time.monotonic()
                end = loaded + load_s
            elif what == "QUIET":
                end, enough = time.monotonic() + load_s / _LOAD_S[1] * _QUIET_S, 0
            elif line.startswith(machine.LAST):
                return "" if last and line == f"{machine.LAST}0" else f"the load has ended: {line}"
        if time.monotonic() > end:
            if not loaded:
                return f"the guest did not come to its load within {_BOOT_S:.0f} s"
            if account.told >= enough or time.monotonic() > loaded + _LOAD_MAX_S:
                return ""
        if powered.process.poll() is not None:
            return f"QEMU has ended by itself with {powered.process.returncode}"
        time.sleep(0.05)


class _Lines:
    """The whole lines that are there so far, each once."""

    def __init__(self, said: IO[str]) -> None:
        self._said = said
        self._part = ""

    def __iter__(self) -> Iterator[str]:
        while text := self._said.readline():
            self._part += text
            if self._part.endswith("\n"):
                line, self._part = self._part.rstrip(), ""
                yield line


class _Powered:
    """A guest that runs, with its disk."""

    def __init__(self, guest: Guest, image: Path, folder: Path, arguments: str) -> None:
        self._disk = Disk(image)
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            root = f"driver=nbd,server.type=fd,server.str={number},cache=writeback"
            command = machine.qemu_command(
                guest, folder, root=root, arguments=arguments, memory_mib=_MEMORY_MIB
            )
            self._server = Server(self._disk, ours)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env=machine.environment(guest.tree),
                pass_fds=[number],
            )

    def cut(self, survives: Callable[[], bool]) -> tuple[int, int]:
        """Cut the power; returns how many unflushed blocks reached the disk, and did not."""
        self.end()
        return self._disk.cut(survives)

    def end(self) -> None:
        """End QEMU and what serves its disk, if they have not ended yet."""
        self.process.kill()
        self.process.wait()
        self._server.end()

    def close(self) -> None:
        """Let go of the disk."""
        self.end()
        self._disk.close()
