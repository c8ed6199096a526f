# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs: how they begin, move and end, and what is told of it."""

import asyncio
import contextlib

import pytest

from svirtd.config import Limits
from svirtd.core.job import JobState, JobView
from svirtd.core.model import Caller
from svirtd.engine.events import Events, Listener
from svirtd.engine.jobs import Jobs
from svirtd.errors import AccessDenied, Cancelled, Failed, LimitsExceeded, UnknownObject
from tests.authorities import root_only

ROOT = Caller(":1.1", 0)


class Told(Listener):
    def __init__(self) -> None:
        self.begun: list[JobView] = []
        self.ended: list[JobView] = []

    def job_new(self, job: JobView) -> None:
        self.begun.append(job)

    def job_removed(self, job: JobView) -> None:
        self.ended.append(job)


def run(error: Exception | None) -> tuple[Told, Jobs]:
    async def work() -> tuple[Told, Jobs]:
        events, told = Events(), Told()
        events.listen(told)
        jobs = Jobs(events, root_only(), Limits)
        expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
        with expected, jobs.running("verify", ROOT.uid) as job:
            job.advance(0.5)
            job.advance(0.25)
            assert [one.id for one in jobs.all()] == [1]
            if isinstance(error, Cancelled):
                await jobs.cancel(ROOT, 1)
                job.refuse_cancelled()
            elif error:
                raise error
        events.deliver()
        return told, jobs

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("error", "state", "name"),
    [
        (None, JobState.DONE, ""),
        (Failed("why"), JobState.FAILED, "org.svirt1.Error.Failed"),
        (Cancelled("why"), JobState.CANCELLED, "org.svirt1.Error.Cancelled"),
        (ValueError("a defect"), JobState.FAILED, ""),
    ],
)
def test_how_it_ends(error: Exception | None, state: JobState, name: str) -> None:
    told, jobs = run(error)
    (new,), (removed,) = told.begun, told.ended
    assert (new.state, new.progress) == (JobState.RUNNING, 0.0)
    # Progress never goes back.
    assert (removed.state, removed.progress, removed.error[0]) == (state, 0.5, name)
    assert jobs.all() == []
    with pytest.raises(UnknownObject):
        asyncio.run(jobs.cancel(ROOT, 1))


def test_a_job_is_its_owners() -> None:
    owner, stranger = Caller(":1.2", 1000), Caller(":1.3", 1001)

    async def work() -> None:
        jobs = Jobs(Events(), root_only(), lambda: Limits(jobs_per_user=1))
        with jobs.running("verify", owner.uid) as job:
            assert await jobs.view(stranger, job.view.id) == job.view
            with pytest.raises(AccessDenied, match="cancel jobs of other users"):
                await jobs.cancel(stranger, job.view.id)
            assert not job.cancelled
            with pytest.raises(LimitsExceeded, match="jobs-per-user allows 1"):
                jobs.refuse_too_many(owner.uid)
            for other in (stranger, ROOT):
                jobs.refuse_too_many(other.uid)
            with jobs.running("verify", stranger.uid), jobs.running("tree", ROOT.uid):
                await jobs.cancel(owner, job.view.id)
            assert job.cancelled

    asyncio.run(work())


def test_what_gives_labels_back_is_not_cancelled() -> None:
    async def work() -> None:
        jobs = Jobs(Events(), root_only(), Limits)
        with jobs.running("tree", ROOT.uid, ends=False) as job:
            with pytest.raises(Failed, match="done to its end"):
                await jobs.cancel(ROOT, job.view.id)
            assert not job.cancelled

    asyncio.run(work())


def test_what_is_counted_tells_how_long_the_rest_takes() -> None:
    async def work() -> None:
        jobs = Jobs(Events(), root_only(), Limits)
        with jobs.running("tree", ROOT.uid) as job:
            job.begun_s -= 2.0
            job.count(1000, 0.25)
            view = job.moved()
            assert (view.done, view.total, view.progress) == (1000, 4000, 0.25)
            assert 400 < view.rate <= 500
            assert view.remaining_us == 3000 * 1_000_000 // view.rate
            job.count(1200, 0.1)  # never back
            assert job.moved().progress == 0.25

    asyncio.run(work())
