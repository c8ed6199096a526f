# SPDX-License-Identifier: LGPL-2.1-or-later
"""The threads for files: what is cancelled waits for them, and no work starts a thread."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from svirtd.engine.doors import Doors, file_threads
from svirtd.errors import Failed

DEADLINE_S = 20.0


@pytest.fixture
def doors() -> Iterator[Doors]:
    doors = object.__new__(Doors)  # nothing else of it is used here
    doors.file_threads = file_threads(2)
    yield doors
    doors.file_threads.shutdown()


def test_who_is_cancelled_waits_for_what_cannot_be_stopped(doors: Doors) -> None:
    began, may_end, story = threading.Event(), threading.Event(), []

    def label() -> None:
        began.set()
        assert may_end.wait(DEADLINE_S)
        story.append("labelled")
        raise OSError("nobody hears this any more")

    async def request() -> None:
        try:
            await doors.in_file_thread(label)
        finally:
            story.append("descriptors closed")

    async def main() -> None:
        task = asyncio.ensure_future(request())
        await asyncio.to_thread(began.wait, DEADLINE_S)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert story == []
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert story == ["labelled", "descriptors closed"]


def test_what_waits_for_a_thread_when_it_is_cancelled_is_never_done(doors: Doors) -> None:
    may_end = threading.Event()
    story: list[str] = []

    async def main() -> None:
        busy = [asyncio.ensure_future(doors.in_file_thread(may_end.wait)) for _ in range(2)]
        last = asyncio.ensure_future(doors.in_file_thread(story.append, "done"))
        await asyncio.sleep(0)
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        may_end.set()
        assert await asyncio.gather(*busy) == [True, True]

    asyncio.run(main())
    assert story == []


def test_every_thread_is_there_from_the_start(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(doors.file_threads._threads) == 2

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def main() -> list[int]:
        work = [doors.in_file_thread(lambda number=number: number) for number in range(50)]
        return list(await asyncio.gather(*work))

    assert asyncio.run(main()) == list(range(50))
    with pytest.raises(Failed, match="can't start new thread"):
        file_threads(2)
