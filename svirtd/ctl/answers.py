# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon tells, as plain values between the client and the rendering."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One VM as ListVMs tells it."""

    name: str
    state: str
    unit: str
    owner_uid: int
    path: str


@dataclass(frozen=True, slots=True)
class Event:
    """One signal. `time_s` is the wall clock, in seconds since the epoch, when it came here."""

    time_s: float
    kind: str
    path: str
    values: Mapping[str, Any] = field(default_factory=dict)
