# SPDX-License-Identifier: LGPL-2.1-or-later
"""`svirtctl attach` and `detach`: one resource more, or less, of a VM that runs."""

from collections.abc import Sequence

import click

from svirtd.ctl import arguments, render
from svirtd.ctl.arguments import Disk
from svirtd.ctl.client import Client
from svirtd.ctl.options import DISK, json_option, name_argument, override_option, parsed
from svirtd.ctl.terminal import answer, ask, warn


@click.command()
@name_argument
@click.argument("disk", metavar=DISK, callback=parsed(arguments.parse_disk))
@click.option(
    "--replaces",
    metavar="ID|PATH",
    callback=parsed(arguments.carried),
    help="Take this one from the VM in the same step. If no access is said, the new one gets its.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="With --replaces: do not take it, it lies under the new one and is only read from now on.",
)
@override_option
@json_option
def attach(
    name: str, disk: Disk, replaces: str | None, keep: bool, overrides: Sequence[str]
) -> None:
    """Label one disk more for VM NAME, which runs.

    First this, then the machine's own part, such as blockdev-add and device_add of QEMU's monitor:
    it can open the disk when this returns. A disk that the VM has already gets the access that is
    asked for. Prints the id of the disk in the VM.
    """
    if keep and replaces is None:
        raise click.UsageError("--keep goes with --replaces")

    async def action(client: Client) -> tuple[bool, str]:
        enforced = await client.enforced()
        return enforced, await client.attach(name, disk, overrides, replaces, keep=keep)

    enforced, id_ = ask(action)
    warn(enforced=enforced)
    answer(
        {"name": name, "id": id_, "enforced": enforced},
        lambda: f"{render.shown(name)} holds it as {render.shown(id_)}\n",
    )


@click.command()
@name_argument
@click.argument("disk", metavar="ID|PATH", callback=parsed(arguments.carried))
@json_option
def detach(name: str, disk: str) -> None:
    """Give a disk of VM NAME, which runs, its old label back.

    The machine's own part comes first, such as device_del and blockdev-del of QEMU's monitor: what
    still has the disk open cannot use it any more. ID is that of "svirtctl show NAME".
    """
    id_ = ask(lambda client: client.detach(name, disk))
    answer({"name": name, "id": id_}, lambda: f"{render.shown(name)} holds it no longer\n")
