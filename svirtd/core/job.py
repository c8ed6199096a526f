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
    """What others may know of a job. `progress` goes from 0 to 1 and never back.

    Of what is counted: `done` so far, `total` as it is guessed by now, `rate` in a second. All are
    0 where nothing is.
    """

    id: int
    kind: str
    owner_uid: int
    state: JobState
    progress: float
    error: tuple[str, str]
    done: int = 0
    total: int = 0
    rate: int = 0

    @property
    def remaining_us(self) -> int:
        """How long the rest takes if it goes on so; 0 if that is not known."""
        return max(0, self.total - self.done) * 1_000_000 // self.rate if self.rate else 0
