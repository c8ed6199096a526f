# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd says of a VM's unit, as plain values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit."""

    name: str
    active: str
    result: str
    main_pid: int
    exit_code: int
    exit_status: int
    context: str
    sub: str = ""

    @property
    def ended(self) -> bool:
        """Whether no process of the unit is left."""
        return self.active in ("inactive", "failed")


@dataclass(frozen=True, slots=True)
class UnitDetails:
    """A loaded unit's state, and what it was told to run."""

    state: UnitState
    user: str
    argv: tuple[str, ...]
    environment: tuple[str, ...]
    started_us: int
