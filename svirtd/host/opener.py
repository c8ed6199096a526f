# SPDX-License-Identifier: LGPL-2.1-or-later
"""Has things done as somebody else: the daemon's end of the opener, a process forked at start.

A root daemon that opens what a stranger names is that stranger's tool. So it never does: a child of
the opener takes the stranger's account first and opens it then (opener_child.py). The daemon itself
cannot fork for that, since it has threads by then, and one of its own could not take an account,
since accounts are a process's.

An opener that has ended is not replaced: what is forked from a process with threads may find any
lock held. The daemon ends instead, and systemd starts both again.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from svirtd.errors import Failed, StartError
from svirtd.host import opener_server, walk
from svirtd.host.credentials import CAP_SETGID, CAP_SETUID, Account, drop_capabilities
from svirtd.host.kernel import Kernel
from svirtd.host.opener_child import ERRORS, FDS_AT_ONCE

DEADLINE_S: Final = 10
# Beyond the child's own deadline: for other jobs of the same account, which come first.
_QUEUE_S: Final = 5
_END_MS: Final = 5000
_GONE: Final = "the process that opens files for users has ended; svirtd starts again"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child has opened, and what it says beside that."""

    fds: list[int]
    told: list[Any]


class Opener:
    """Sends jobs to the opener. For one event loop; `start` must come before any thread."""

    def __init__(self, control: socket.socket, pid: int, deadline_s: int) -> None:
        self._control = control
        self._deadline_s = deadline_s
        # One at a time waits for room: the loop tells one of a descriptor.
        self._sending = asyncio.Lock()
        self.pid = pid

    @classmethod
    def start(cls, kernel: Kernel, deadline_s: int = DEADLINE_S) -> Self:
        """Fork the opener. Raises StartError if this process has threads already."""
        try:
            tasks = len(os.listdir("/proc/self/task"))
        except OSError as error:
            raise StartError(f"/proc cannot be read ({error.strerror}); mount it") from error
        if threading.active_count() > 1 or tasks > 1:
            raise StartError("the opener must be forked before the first thread is started")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon, pid = os.getpid(), os.fork()
        if pid == 0:
            opener_server.run(kernel, theirs.detach(), daemon, deadline_s)
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid, deadline_s)

    def close(self) -> None:
        """End the opener and its children, and wait for that."""
        self._control.close()
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_END_MS):
            os.kill(self.pid, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(self.pid, 0)

    async def lost(self) -> None:
        """Wait for the opener's end, and raise Failed then."""
        await _ready(self._control, reading=True)  # it never says anything
        raise Failed(_GONE)

    async def do(self, account: Account, job: dict[str, Any], passed: Sequence[int] = ()) -> Answer:
        """Have a child do a job as this account; returns what it answers.

        The caller closes its descriptors. Raises what the child has refused with, or Failed.
        """
        job = {**job, "uid": account.uid, "gid": account.gid, "groups": account.groups}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with ours:
            try:
                async with asyncio.timeout(self._deadline_s + _QUEUE_S):
                    with theirs:
                        await self._hand_over(account.uid, theirs)
                    await _send(ours, json.dumps(job).encode(), passed)
                    ours.shutdown(socket.SHUT_WR)
                    return await _answer(ours, self._deadline_s)
            except TimeoutError:
                raise Failed(
                    f"uid {account.uid} has other requests for files under way, and this one did "
                    f"not come to its end within {self._deadline_s + _QUEUE_S} s; a file system "
                    "may not answer"
                ) from None

    async def _hand_over(self, uid: int, channel: socket.socket) -> None:
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._control, [str(uid).encode()], [channel.fileno()])
                except BlockingIOError:
                    await _ready(self._control, reading=False)
                except OSError as error:
                    raise Failed(_GONE) from error
                else:
                    return


@contextlib.contextmanager
def beside_opener(kernel: Kernel) -> Iterator[Opener]:
    """Run what is inside beside an opener, and without what it takes to become another account.

    Raises StartError, OSError.
    """
    # Before anything that has a thread.
    opener = Opener.start(kernel)
    try:
        drop_capabilities(CAP_SETUID, CAP_SETGID)
        walk.prepare()
        yield opener
    finally:
        opener.close()


async def _send(stream: socket.socket, job: bytes, passed: Sequence[int]) -> None:
    try:
        for start in range(0, len(passed), FDS_AT_ONCE):
            # A blank before what is JSON, for the descriptors to go with.
            while True:
                try:
                    socket.send_fds(stream, [b" "], passed[start : start + FDS_AT_ONCE])
                    break
                except BlockingIOError:
                    await _ready(stream, reading=False)
        await asyncio.get_running_loop().sock_sendall(stream, job)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has ended: that there is no answer says so


async def _answer(stream: socket.socket, deadline_s: int) -> Answer:
    parts: list[bytes] = []
    fds: list[int] = []
    try:
        while True:
            try:
                data, new, _, _ = socket.recv_fds(
                    stream, 1 << 16, FDS_AT_ONCE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await _ready(stream, reading=True)
                continue
            except ConnectionResetError:
                break
            if not data:
                break
            parts.append(data)
            fds += new
        told = _read(b"".join(parts), len(fds), deadline_s)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Answer(fds, told)


def _read(answer: bytes, count: int, deadline_s: int) -> list[Any]:
    """Return what an answer tells; raises the error that it says, or that descriptors are lost."""
    if not answer:
        raise Failed(
            f"what was asked for did not come to its end within {deadline_s} s; a file system may "
            "not answer"
        )
    found = json.loads(answer)
    name, text = found["error"]
    if name:
        raise ERRORS.get(name, Failed)(text)
    if found["count"] != count:
        raise Failed("descriptors were lost between svirtd and its opener; raise LimitNOFILE=")
    return list(found["told"])


async def _ready(stream: socket.socket, *, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add: Callable[..., None] = loop.add_reader if reading else loop.add_writer
    remove: Callable[..., bool] = loop.remove_reader if reading else loop.remove_writer

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(stream, wake)
    try:
        await ready
    finally:
        remove(stream)
