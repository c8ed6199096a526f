# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a handler is called with, and what it answers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from svirtd.core.model import Caller


@dataclass(frozen=True, slots=True)
class Call:
    """One method call: who, on which VM, job or group (for their objects), with what."""

    caller: Caller
    vm_name: str
    job: int
    group: str
    body: list[Any]
    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a method returns; `fds` are closed once they are sent."""

    body: list[Any]
    fds: tuple[int, ...] = ()


Handler = Callable[[Call], Awaitable[Reply]]
