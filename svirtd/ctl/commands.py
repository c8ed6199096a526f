# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which commands there are, in the order of the manual page, and where each one is.

A unit's start and a domain's wait for svirtctl: a module is imported when a command of it is asked
for.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Final

import click

_PLACES: Final = {
    "launch": "vm_commands.launch",
    "acquire": "vm_commands.acquire",
    "release": "vm_commands.release",
    "attach": "hotplug_commands.attach",
    "detach": "hotplug_commands.detach",
    "forget": "vm_commands.forget",
    "plan": "vm_commands.plan",
    "goals": "goal_commands.goals",
    "foreign": "foreign_commands.foreign",
    "list": "vm_commands.list_",
    "show": "vm_commands.show",
    "owners": "vm_commands.owners",
    "verify": "vm_commands.verify",
    "matrix": "matrix.matrix",
    "backup": "book.backup",
    "restore": "book.restore",
    "channel": "vm_commands.channel",
    "enroll": "enrolled_commands.enroll",
    "unenroll": "enrolled_commands.unenroll",
    "enrolled": "enrolled_commands.enrolled",
    "run": "run.run",
    "group": "group_commands.group",
    "wall": "wall_commands.wall",
    "libvirt": "libvirt_commands.libvirt",
    "monitor": "vm_commands.monitor",
    "status": "vm_commands.status",
}


class _Commands(Mapping[str, click.Command]):
    """The commands by name."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = _PLACES[name].partition(".")
        found: click.Command = getattr(import_module(f"svirtd.ctl.{module}"), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


COMMANDS: Final[Mapping[str, click.Command]] = _Commands()
