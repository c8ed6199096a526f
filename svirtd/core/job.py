# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs as others see them: work that takes long, and how far it is."""

import enum
from dataclasses import dataclass


class JobState(enum.StrEnum):
    """Where a job is in its life; the contract words each."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobView:
    """What others may know of a job. `progress` goes from 0 to 1 and never back."""

    id: int
    kind: str
    owner_uid: int
    state: JobState
    progress: float
    error: tuple[str, str]
