# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that takes long enough to be watched, and to be given up."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from svirtd.config import Limits
from svirtd.core.job import JobState, JobView
from svirtd.core.model import Caller
from svirtd.engine.authorize import Action, Authority
from svirtd.engine.events import Events
from svirtd.errors import Cancelled, Failed, LimitsExceeded, SvirtError, UnknownObject

# A signal for each step would be more work than the steps.
_TELL_EVERY_S: Final = 0.2


class Job:
    """A job under way. `advance` and `cancelled` may be used from any thread."""

    def __init__(self, view: JobView, tell: Callable[["Job"], None], *, ends: bool = True) -> None:
        self.view = view
        self._progress = view.progress
        self._cancel = threading.Event()
        self._tell = tell
        self.ends = ends
        self.begun_s = self.told_s = time.monotonic()
        self.told = view

    def advance(self, progress: float) -> None:
        """Say how much of the work is done, 0 to 1."""
        self._progress = max(self._progress, min(progress, 1.0))

    def count(self, done: int, part: float) -> None:
        """Say how many of something are done, and which part of all of them that may be; tells of
        it. For the event loop."""
        self.advance(part)
        rate = int(done / max(0.001, time.monotonic() - self.begun_s))
        total = max(done, int(done / self._progress)) if self._progress else 0
        self.view = replace(self.view, done=done, total=total, rate=rate)
        self._tell(self)

    def cancel(self) -> None:
        """Ask the work to stop where it is."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._cancel.is_set()

    def refuse_cancelled(self) -> None:
        """Raise Cancelled if somebody asked the work to stop."""
        if self.cancelled:
            raise Cancelled("the job was cancelled; what it had done by then stays done")

    def moved(self) -> JobView:
        """Return the job with the progress that was made."""
        self.view = replace(self.view, progress=self._progress)
        return self.view


class Jobs:
    """The jobs under way, by number. Numbers are not used again in one run of the daemon."""

    def __init__(self, events: Events, authority: Authority, limits: Callable[[], Limits]) -> None:
        self._authority = authority
        self._limits = limits
        self._events = events
        self._jobs: dict[int, Job] = {}
        self._last = 0

    @contextlib.contextmanager
    def running(self, kind: str, uid: int, *, ends: bool = True) -> Iterator[Job]:
        """Have a job of this user's for as long as the block runs; how it ends is its result.

        `ends`: it can be cancelled.
        """
        self._last += 1
        view = JobView(self._last, kind, uid, JobState.RUNNING, 0.0, ("", ""))
        job = Job(view, self.tell, ends=ends)
        self._jobs[self._last] = job
        self._events.job_new(job.view)
        state, error = JobState.FAILED, ("", "")
        try:
            yield job
            state = JobState.DONE
        except Cancelled as reason:
            state, error = JobState.CANCELLED, (reason.name, reason.text)
            raise
        except SvirtError as reason:
            error = (reason.name, reason.text)
            raise
        finally:
            del self._jobs[job.view.id]
            self._events.job_removed(replace(job.moved(), state=state, error=error))

    def tell(self, job: Job) -> None:
        """Tell of the progress that was made, if there is some."""
        now = time.monotonic()
        if now - job.told_s < _TELL_EVERY_S:
            return
        job.told_s = now
        told, job.told = job.told, job.moved()
        if told != job.told:
            self._events.job_changed(told, job.told)

    async def cancel(self, caller: Caller, number: int) -> None:
        """Ask a job to stop. Raises UnknownObject if it is not under way (any more)."""
        # Numbers are not used again, so that the dialog cannot be about another one than this.
        owner_uid = self._get(number).view.owner_uid
        await self._authority.authorize(caller, Action.CANCEL, owner_uid=owner_uid)
        job = self._get(number)
        if not job.ends:
            raise Failed(
                f"job {number} gives labels back, which is done to its end; it goes on at the next "
                "start if svirtd is stopped"
            )
        job.cancel()

    async def view(self, caller: Caller, number: int) -> JobView:
        """Return a job that is under way. Raises UnknownObject."""
        await self._authority.authorize(caller, Action.READ)
        return self._get(number).view

    def refuse_too_many(self, uid: int) -> None:
        """Raise LimitsExceeded for a user who has as many jobs under way as he may."""
        limit = self._limits().jobs_per_user
        own = sum(job.view.owner_uid == uid for job in self._jobs.values())
        if uid != 0 and own >= limit:
            raise LimitsExceeded(
                f"you have {own} jobs under way; [limits] jobs-per-user allows {limit}: wait for "
                "one to end"
            )

    def _get(self, number: int) -> Job:
        job = self._jobs.get(number)
        if job is None:
            raise UnknownObject(f"there is no job {number}; it has ended")
        return job

    def all(self) -> list[JobView]:
        """Return every job under way, oldest first."""
        return [job.view for job in self._jobs.values()]
