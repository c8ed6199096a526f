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
# Every so many boots the cut comes earlier: in this part of what a boot takes until svirtd serves.
_EARLY: Final = 4
_BOOT_PART: Final = 0.5, 1.0
_UP: Final = "guest: up for"
_END: Final = "the end"
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
        "svirt.enrols={enrols}",
        "quiet systemd.show_status=0 systemd.unit=guest-cuts.target",
        *(f"systemd.mask={name}.service" for name in _MASKED),
    )
)


@dataclass(slots=True)
class _Account:
    """What was said so far, and what was seen."""

    world: promises.World = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)
    booted: dict[str, Any] = field(default_factory=dict)
    """The VMs that a boot starts, with what they had when they were first started."""
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
            self.booted |= fact.get("booted", {})
            self.facts.append(fact)
        elif what == "STATE":
            self._judge(json.loads(text))
        return what

    def _judge(self, state: dict[str, Any]) -> None:
        when = state.pop("when")
        if when == "boot":
            possible = promises.told(self.world, self.facts)
            report = promises.judge(state, possible, self.originals)
            self.problems += [*report.problems, *promises.booted(self.booted, state)]
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
    account = _Account()
    turns = _Turns(guest, image, account, cuts, seed)
    start = time.monotonic()
    shown.write(f"{cuts} power cuts with seed {seed}\n")
    for number in range(cuts + 1):
        line = turns.turn(number, folder / f"turn-{number}")
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
        f" cut: nothing lost; {account.unsynced} labels had not reached the disk, and are back;"
        f" {len(account.booted)} VMs started by the last boot as they were before\n"
    )
    return True


class _Turns:
    """Boots, each with the cut that ends it."""

    def __init__(self, guest: Guest, image: Path, account: _Account, cuts: int, seed: int) -> None:
        self._guest = guest
        self._image = image
        self._account = account
        self._cuts = cuts
        self._seed = seed
        self._chance = random.Random(seed)
        self._boot_s = _BOOT_S

    def turn(self, number: int, folder: Path) -> str:
        """Boot, listen and cut; returns what to show of it."""
        chance, account, last = self._chance, self._account, number == self._cuts
        # The last cut is of a machine that has VMs which the boot after it starts.
        enrols = number == self._cuts - 1
        folder.mkdir()
        machine.prepare(folder, "")
        arguments = _ARGUMENTS.format(
            seed=self._seed, turn=number, last=int(last), enrols=int(enrols)
        )
        load_s, survive = chance.uniform(*_LOAD_S), chance.choice(_SURVIVE)
        boot_part = chance.uniform(*_BOOT_PART)
        early = number % _EARLY == _EARLY - 1 and not last and not enrols
        early_s = boot_part * self._boot_s if early else None
        before = account.told
        powered = _Powered(self._guest, self._image, folder, arguments)
        try:
            with open(folder / "output", encoding="utf-8", errors="replace") as said:
                lines = _Lines(said)
                when = self._listen(powered, lines, load_s, early_s)
                kept, lost = powered.cut(lambda: chance.random() < survive)
                # What was said until the cut was promised.
                for line in lines:
                    account.hear(line)
        finally:
            powered.close()
        if last and self._cuts and not account.booted:
            account.problems.append("no VM was enrolled that this boot would have started")
        if last is not (when == _END):
            account.problems.append(f"boot {number} ended otherwise than meant: {when}")
        return (
            f"{number + 1}: {when}, {account.told - before} facts; {lost} unflushed blocks lost, "
            f"{kept} kept"
        )

    def _listen(
        self, powered: "_Powered", lines: "_Lines", load_s: float, early_s: float | None
    ) -> str:
        """Listen until it is time for the cut, or the guest ends; returns what came first.

        `early_s`: the cut comes so long after the start, in the middle of the boot or of recovery.
        """
        start = time.monotonic()
        end, loaded, enough = start + (early_s or _BOOT_S), 0.0, self._account.told + _FACTS
        while True:
            for line in lines:
                what, now = self._account.hear(line), time.monotonic()
                if line.startswith(_UP):
                    self._boot_s = now - start
                elif what == "LOAD":
                    early_s, loaded, end = None, now, now + load_s
                elif what == "QUIET":
                    end, enough = now + load_s / _LOAD_S[1] * _QUIET_S, 0
                elif line.startswith(machine.LAST):
                    return _END if line == f"{machine.LAST}0" else line
            now = time.monotonic()
            if powered.process.poll() is not None:
                self._account.problems.append("QEMU has ended by itself")
                return "no cut"
            if now > end and early_s is not None:
                return f"cut {early_s:.1f} s after the start, {self._boot_s:.1f} s are a boot"
            if now > end and not loaded:
                self._account.problems.append(f"no load within {_BOOT_S:.0f} s")
                return "no load"
            if now > end and (self._account.told >= enough or now > loaded + _LOAD_MAX_S):
                return f"cut after {now - loaded:.1f} s of load"
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
