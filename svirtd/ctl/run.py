# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl run`: a VM as its file says, for as long as a service of systemd's runs.

The VM is a unit of svirtd's own; this process stands for it where an administrator starts, stops
and looks at services. It ends with the VM, and the VM with it.
"""

import asyncio
import json
import os
import re
import signal
import socket
import stat
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import click

from svirtd.core import vm_files
from svirtd.core.model import Access, Lifetime, State
from svirtd.core.names import check_vm_name
from svirtd.core.vm_files import FOLDER, FileDisk, VMFile
from svirtd.ctl import arguments
from svirtd.ctl.arguments import Disk
from svirtd.ctl.client import Client
from svirtd.ctl.failures import INVALID_FILE, Exit, Failure
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.render import shown
from svirtd.ctl.terminal import answer, ask
from svirtd.ctl.values import Options
from svirtd.errors import ConfigError, InvalidArgs
from svirtd.host import notify

_UNIT: Final = re.compile(r"svirt-vm@.+\.service")
# How a process has ended, as waitid(2) says it.
_EXITED: Final = 1
_SIGNALLED: Final = 128
# It has one client at a time: somebody else may be at it.
_MONITOR_S: Final = 5.0


def _name(text: str) -> str:
    try:
        return check_vm_name(arguments.carried(text))
    except InvalidArgs as error:
        raise ValueError(error.text) from None


@click.command()
@click.argument("name", callback=parsed(_name))
@click.option("--check", is_flag=True, help="Read the file, print the command, start nothing.")
@json_option
def run(name: str, check: bool) -> int:
    """Run VM NAME as /etc/svirtd/vms.d/NAME.toml says, until it ends.

    This is what the units svirt-vm@NAME.service do: "systemctl enable --now svirt-vm@NAME" has the
    VM run from now on, and after each boot. Ends with the exit status of the VM's command.
    """
    path = f"{FOLDER}/{name}.toml"
    found = read_file(path)
    if check:
        argv = ask(lambda client: _command(client, path, name, found))
        answer({"name": name, "command": argv}, lambda: " ".join(map(shown, argv)) + "\n")
        return Exit.OK
    return ask(lambda client: _Run(client, path, name, found).run())


def read_file(path: str) -> VMFile:
    """Read the file of a VM. Raises Failure."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
                raise _bad(f"{path}: others than root can write it, and it says what runs as whom")
            tables = tomllib.load(file)
        return vm_files.read(path, tables)
    except FileNotFoundError:
        raise _bad(f"{path}: is not there; it says what the VM is, see svirtd.vms.d(5)") from None
    except OSError as error:
        raise _bad(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad(f"{path}: is not TOML: {error}") from error
    except ConfigError as error:
        raise _bad(str(error)) from error


def _bad(text: str) -> Failure:
    return Failure(INVALID_FILE, text, Exit.USAGE)


async def _command(client: Client, path: str, name: str, found: VMFile) -> list[str]:
    goals: Mapping[str, Any] = {one["name"]: one for one in await client.goals()}
    goal = goals.get(found.goal or "isolated")
    if goal is None:
        raise _bad(f"{path}: goal: {found.goal!r} is not known; expected {', '.join(goals)}")
    try:
        words = vm_files.command_of(
            name,
            found,
            os.uname().machine,
            Access(goal["default-access"]),
            overlays=goal["written"] == "overlay",
        )
    except ConfigError as error:
        raise _bad(f"{path}: {error}") from error
    return list(words)


def _disk(one: FileDisk) -> Disk:
    terms = {
        "id": one.id,
        "group": one.group,
        "level": one.level,
        "format": one.format,
        "backing": one.backing,
        "overlay": one.overlay,
    }
    said = tuple((k, str(v)) for k, v in terms.items() if v)
    return Disk(one.path, one.access, said, recursive=one.recursive)


class _Run:
    """One run of a VM, from its launch to its end."""

    def __init__(self, client: Client, path: str, name: str, found: VMFile) -> None:
        self._client = client
        self._path = path
        self._name = name
        self._found = found
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Launch the VM and stay until it or this process is ended; returns an exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        client, found = self._client, self._found
        argv = await _command(client, self._path, self._name, found)
        kept = found.persistent if found.persistent is not None else await self._is_enabled()
        options = Options(
            uuid=found.uuid,
            goal=found.goal,
            level=found.level,
            persistent=kept,
            # Whatever ends this process, the VM does not outlive it.
            lifetime=Lifetime.CALLER,
            groups=found.groups,
            user=found.user,
            environment=found.environment,
            working_directory=found.directory,
            properties=[self._property(*one) for one in found.properties],
        )
        ending = await client.hear_of_end(self._name)
        disks = [_disk(one) for one in found.disks]
        _, unit = await client.launch(self._name, argv, disks, options)
        notify.ready(f"runs as {unit}")
        code = await self._wait(ending)
        if kept and found.persistent is None and not await self._is_enabled():
            await self._forget()
        return code

    def _property(self, name: str, value: str) -> arguments.Property:
        try:
            return arguments.parse_property(f"{name}={value}")
        except ValueError as error:
            raise _bad(f"{self._path}: [properties] {error}") from None

    async def _wait(self, ending: "asyncio.Future[dict[str, Any]]") -> int:
        stop = asyncio.ensure_future(self._stop.wait())
        gone = asyncio.ensure_future(self._client.ended(self._name, holds=True))
        await asyncio.wait({stop, gone}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if gone.done():
            gone.result()
            return _exit_code(ending, self._name)
        notify.stopping()
        await self._power_down(gone)
        if not gone.done():
            gone.cancel()
            await self._client.release(self._name)
        return Exit.OK

    async def _power_down(self, gone: "asyncio.Future[None]") -> None:
        """Press the power button, and give the guest the time that its file says to end."""
        if self._found.qemu is None or not self._found.qemu.shutdown_s:
            return
        try:
            with await self._client.open_channel(self._name, "qmp") as stream:
                await asyncio.to_thread(_press, stream)
                await asyncio.wait({gone}, timeout=self._found.qemu.shutdown_s)
        except (Failure, OSError) as error:
            click.echo(f"the VM was not asked to shut down: {error}; it is ended", err=True)

    async def _is_enabled(self) -> bool:
        """Say whether the unit that this process is starts at boot, too."""
        unit = await self._client.own_unit()
        return bool(_UNIT.fullmatch(unit)) and await self._client.is_enabled(unit)

    async def _forget(self) -> None:
        """Nobody wants it at the next boot: nothing of it stays."""
        vms = {row.name: row.state for row in await self._client.vms()}
        if vms.get(self._name) == State.RESERVED:
            await self._client.forget(self._name)


def _press(stream: socket.socket) -> None:
    """Say to QEMU's monitor what a power button does (blocking). Raises OSError."""
    stream.settimeout(_MONITOR_S)
    with stream.makefile("rw", encoding="utf-8", errors="replace") as lines:
        for command in ("qmp_capabilities", "system_powerdown"):
            lines.readline()
            lines.write(json.dumps({"execute": command}) + "\n")
            lines.flush()


def _exit_code(ending: "asyncio.Future[dict[str, Any]]", name: str) -> int:
    if not ending.done():
        text = f"VM {name!r} has ended; how is not known, since svirtd was not there to see it"
        raise Failure("org.svirt1.Error.UnitFailed", text, Exit.REFUSED)
    said = ending.result()
    if said["Result"] == "success":
        return Exit.OK
    status = int(said["ExecMainStatus"])
    code = status if said["ExecMainCode"] == _EXITED else _SIGNALLED + status
    # An end that is none of the command's own, such as a lack of memory.
    return code or Exit.REFUSED
