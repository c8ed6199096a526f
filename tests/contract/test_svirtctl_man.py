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
    return {
        word
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for word in parameter.opts
    }


def test_commands() -> None:
    text = sources.section(_PAGE, "DESCRIPTION", "Commands")
    assert re.findall(r"^\.It (?:Xo\n\.)?Cm (\w+)", text, re.M) == list(COMMANDS)


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
