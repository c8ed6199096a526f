# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands about the book itself."""

import click

from svirtd.ctl import arguments, copies, render
from svirtd.ctl.options import json_option, parsed
from svirtd.ctl.terminal import answer, ask

_file = click.argument("file", callback=parsed(arguments.absolute))


@click.command()
@_file
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def backup(file: str, force: bool) -> None:
    """Copy the book of svirtd, which runs on, to FILE.

    FILE appears once it is whole and was looked at. Only its owner can read it: it says who uses
    which disk. "svirtctl restore FILE" puts it back.
    """
    if not force:
        copies.refuse_existing(file)
    stream = ask(lambda client: client.backup())
    with stream:
        size = copies.receive(stream, file, force=force)
    answer(
        {"file": file, "bytes": size},
        lambda: f"{render.shown(file)} is a copy of the book, {size} bytes\n",
    )


@click.command()
@_file
@click.option(
    "--config",
    metavar="FILE",
    callback=parsed(arguments.absolute),
    help="Configuration of svirtd, which says where the book is; its default is svirtd's.",
)
@json_option
def restore(file: str, config: str | None) -> None:
    """Put FILE, a copy of the book, in the book's place.

    svirtd must be stopped. The book that is there is kept under another name. What has happened
    since the copy was made is not in it: VMs that run are entered again when svirtd starts, and
    "svirtctl verify --scan DIR" finds files of VMs that the copy does not know.
    """
    earlier = copies.run_daemon(
        ["--restore", file, *(["--config", config] if config is not None else [])]
    )
    kept = f"; the earlier book is {render.shown(earlier)}" if earlier else ""
    answer(
        {"file": file, "earlier": earlier},
        lambda: f"the book is that of {render.shown(file)} now{kept}\n",
    )
