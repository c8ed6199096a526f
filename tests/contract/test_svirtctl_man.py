# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl(1) against the commands, options and exit codes of svirtctl."""

import re
from typing import Final

import click
import pytest

from svirtd.ctl.commands import COMMANDS
from svirtd.ctl.failures import Exit
from svirtd.ctl.main import cli
from svirtd.ctl.render import NOT_ENFORCED
from tests.contract import sources

_PAGE: Final = sources.page("svirtctl.1")


def _options(command: click.Command) -> set[str]:
    own = {
        word
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for word in parameter.opts
    }
    below = command.commands.values() if isinstance(command, click.Group) else ()
    # The entry's own are loaded when they are needed.
    return own.union(*map(_options, below)) if command is not cli else own


def _names() -> list[str]:
    """Every command as it is typed."""
    return [
        name if sub is None else f"{name} {sub}"
        for name, command in COMMANDS.items()
        for sub in (command.commands if isinstance(command, click.Group) else [None])
    ]


def test_commands() -> None:
    text = sources.section(_PAGE, "DESCRIPTION", "Commands")
    found = re.findall(r"^\.It (?:Xo\n\.)?Cm ([a-z]+(?: [a-z]+)*)(?= [A-Z]|$)", text, re.M)
    assert found == _names()


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_options(name: str) -> None:
    options = _options(COMMANDS[name] if name else cli)
    for option in options:
        assert f"Fl {option[1:]}" in _PAGE, option


def test_options_of_the_page_exist() -> None:
    known = set().union(*(_options(one) for one in (cli, *COMMANDS.values()))) | {"--help", "-h"}
    named = {f"-{word}" for word in re.findall(r"Fl (-\w[\w-]*|\w)\b", _PAGE)}
    assert named == known


def test_exit_codes() -> None:
    text = sources.section(_PAGE, "EXIT STATUS")
    assert re.findall(r"^\.It (\d+)$", text, re.M) == [str(int(code)) for code in Exit]


def test_the_notice_is_quoted() -> None:
    assert f".It {NOT_ENFORCED}\n" in _PAGE
