# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options and arguments that several commands share, and completion of VM names."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from svirtd.core.model import Access, Lifetime, Override
from svirtd.ctl import arguments
from svirtd.ctl.client import Client
from svirtd.ctl.failures import Failure
from svirtd.ctl.resource_options import resource_options

DISK: Final = f"PATH[:{'|'.join(Access)}[,KEY=VALUE]]"
_COMPLETION_TIMEOUT_S: Final = 1.0


def parsed(parse: Callable[[str], Any]) -> Callable[[Any, click.Parameter, Any], Any]:
    """Make a click callback of a parser that raises ValueError."""

    def convert(_ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(one) for one in value)
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), param=param) from None

    return convert


def _complete_vm(ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    async def names() -> list[str]:
        address = ctx.find_root().params.get("bus")
        async with asyncio.timeout(_COMPLETION_TIMEOUT_S):
            async with Client.connected(address, None) as client:
                return [row.name for row in await client.vms()]

    try:
        found = asyncio.run(names())
    except (Failure, TimeoutError):
        return []  # a shell that waits for Tab has no place for a message
    return [CompletionItem(name) for name in found if name.startswith(begun) and name.isprintable()]


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["svirtd.ctl.json"] = True


json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_set_json,
    help="Print JSON, errors included.",
)
name_argument = click.argument(
    "name", shell_complete=_complete_vm, callback=parsed(arguments.carried)
)
override_option = click.option(
    "--override",
    "overrides",
    type=click.Choice([str(one) for one in Override]),
    multiple=True,
    help="Lift a rule about the disks, which takes an administrator. owner: they may be "
    "anybody's. links: they may have more than one name. Repeatable.",
)
_F = TypeVar("_F", bound=Callable[..., Any])

_ABOUT_THE_VM: Final = (
    click.option(
        "--goal",
        metavar="GOAL",
        callback=parsed(arguments.carried),
        help="What the labels must achieve; isolated is the default.",
    ),
    click.option(
        "--level",
        metavar="sN[-sM]",
        callback=parsed(arguments.carried),
        help="Sensitivity of the VM, where the policy has levels; s0 is the default.",
    ),
    click.option(
        "--uuid",
        metavar="UUID",
        callback=parsed(arguments.carried),
        help="Identity of the VM for other tools.",
    ),
    click.option(
        "--disk",
        "disks",
        metavar=DISK,
        multiple=True,
        type=click.Path(),
        callback=parsed(arguments.parse_disk),
        help="Image file, device, fifo or socket. exclusive (what most goals take if none is "
        "said): for this VM alone. "
        "readonly: so, and it only reads. public: any VM may read it. group=NAME: for the VMs "
        "of a group; readonly,group=NAME: so, and they only read. Repeatable.",
    ),
    click.option(
        "--group",
        "groups",
        metavar="NAME",
        multiple=True,
        callback=parsed(arguments.carried),
        help="Put the VM into this group for this run. Repeatable.",
    ),
)


def enrol_options(function: _F) -> _F:
    """Add what enroll takes, beside the unit."""
    function = resource_options(function)
    for option in _ABOUT_THE_VM:
        function = option(function)
    return function


def request_options(function: _F) -> _F:
    """Add what launch, acquire and plan take."""
    function = resource_options(function)
    for option in (
        click.option(
            "--lifetime",
            type=click.Choice([str(one) for one in Lifetime]),
            help="release: until somebody releases it (the default). caller: svirtctl stays, and "
            "the VM is released when it ends.",
        ),
        override_option,
        click.option("--persistent", is_flag=True, help="Keep name and categories after release."),
        *_ABOUT_THE_VM,
    ):
        function = option(function)
    return function
