# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command `matrix`: as a table, as JSON, as a picture."""

import sys
from typing import Any, Final

import click

from svirtd.ctl import picture, programs, render
from svirtd.ctl.client import Client
from svirtd.ctl.failures import Exit
from svirtd.ctl.options import json_option
from svirtd.ctl.terminal import answer, ask, screen, wants_json

_DRAW: Final = ("dot", "-Tsvg")
_DRAW_S: Final = 120.0
_MISSING: Final = "install the package graphviz, or have --dot drawn on another machine"


@click.command()
@click.option("--all", "everything", is_flag=True, help="Print every question that was asked.")
@click.option("--dot", "as_dot", is_flag=True, help="Print a picture, for: dot -Tsvg.")
@click.option("--svg", "as_svg", is_flag=True, help="Print a picture, drawn by Graphviz.")
@json_option
def matrix(everything: bool, as_dot: bool, as_svg: bool) -> int:
    """Compare what VMs can do with what was granted.

    The loaded policy is asked about each VM with each resource and each other VM. Prints what is
    granted and what differs. Exits with 1 if a VM can do more or less.
    """
    wanted = {"--all": everything, "--dot": as_dot, "--svg": as_svg, "--json": wants_json()}
    given = [option for option, is_given in wanted.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: one of them says what is printed")

    async def action(client: Client) -> Any:
        return await client.enforced(), await client.matrix()

    enforced, cells = ask(action)
    if as_dot or as_svg:
        drawn = picture.dot(cells, enforced=enforced)
        if as_svg:
            drawn = programs.run(_DRAW, text=drawn, limit_s=_DRAW_S, missing=_MISSING)
        sys.stdout.write(drawn)
        sys.stdout.flush()
    else:
        answer(
            {"enforced": enforced, "cells": cells},
            lambda: render.matrix(cells, screen(), everything=everything, enforced=enforced),
        )
    wrong = any(one["surplus"] or one["shortfall"] for one in cells)
    return Exit.REFUSED if wrong else Exit.OK
