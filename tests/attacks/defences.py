# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main defences, each with what switches it off in a daemon of the tests.

An attack that is `against` one is mounted twice: it must fail as the daemon is, and succeed where
that defence is off; otherwise the test proves nothing. Nothing in svirtd knows of this: a forked
daemon replaces functions of its own before it starts (see tests/zygote.py).
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

# Makes the replacement out of the real thing.
Weakener = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Defence:
    """A rule, and which functions stand for it: by module and qualified name, with a weakener."""

    what: str
    places: tuple[tuple[str, str, Weakener], ...]


DEFENCES: Final[dict[str, Defence]] = {}


def switch_off(name: str) -> None:
    """Replace what stands for a defence in this process; never in the tester itself."""
    for module_name, qualified, weaken in DEFENCES[name].places:
        *owners, attribute = qualified.split(".")
        owner: Any = importlib.import_module(module_name)
        for one in owners:
            owner = getattr(owner, one)
        real = getattr(owner, attribute)
        weak = weaken(real)
        setattr(owner, attribute, weak)
        # Others have it by name: `from module import function`.
        for other in tuple(sys.modules.values()):
            if getattr(other, "__name__", "").startswith("svirtd"):
                for key, value in tuple(vars(other).items()):
                    if value is real:
                        setattr(other, key, weak)


def against(*names: str) -> pytest.MarkDecorator:
    """Mount the attack against the daemon as it is, and once with each of these defences off."""
    assert set(names) <= set(DEFENCES), names
    kinds: list[str | None] = [None, *names]
    ids = [f"without {name}" if name else "as it is" for name in kinds]
    return pytest.mark.parametrize("arena", kinds, indirect=True, ids=ids)
