# SPDX-License-Identifier: LGPL-2.1-or-later
"""The opener's process: forks a child for each job, bounds how many, and ends with the daemon.

It has one thread and keeps two capabilities, to take accounts. It reads nothing of a job but whose
it is; everything that a caller may have influenced is read by a child, as that caller.
"""

import collections
import contextlib
import gc
import os
import select
import selectors
import signal
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, NoReturn

from svirtd import failpoints
from svirtd.host import credentials, opener_child, walk
from svirtd.host.credentials import CAP_SETGID, CAP_SETUID
from svirtd.host.kernel import Kernel

# Children of one account at a time: one that hangs, and some cannot be ended, costs its own
# account and no other.
CHILDREN_PER_ACCOUNT: Final = 4
_UID_BYTES: Final = 16
# Signals for the daemon reach every process of its unit; only the daemon knows when all is done.
_NOT_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _Child:
    uid: int
    pid: int
    killed_at: float


def run(kernel: Kernel, control: int, daemon: int, deadline_s: int) -> NoReturn:
    """Serve the jobs of the process `daemon` that come over the descriptor `control`; exits.

    To be called in a process forked for it, which had one thread.
    """
    try:
        for number in _NOT_OURS:
            signal.signal(number, signal.SIG_IGN)
        failpoints.disarm()
        close_all_but(control)
        credentials.keep_capabilities(CAP_SETGID, CAP_SETUID)
        credentials.no_new_privileges()
        credentials.name_process("svirtd-opener")
        credentials.hide()
        credentials.end_with_parent(daemon, signal.SIGKILL)
        # What stands here is never garbage: no child need walk it, and no page is copied for that.
        gc.collect()
        gc.freeze()
        with socket.socket(fileno=control) as jobs:
            _Server(kernel, jobs, daemon, deadline_s).serve()
    except BaseException as error:  # noqa: BLE001 -- the edge of a process that must end here
        _say(f"the opener has ended: {error!r}")
        os._exit(1)
    os._exit(0)


def close_all_but(kept: int) -> None:
    """Close every descriptor but this one and the standard three."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    walk.prepare()


def _say(text: str) -> None:
    os.write(2, f"<3>svirtd-opener: {text}\n".encode())


class _Server:
    def __init__(self, kernel: Kernel, jobs: socket.socket, daemon: int, deadline_s: int) -> None:
        self._kernel = kernel
        self._jobs = jobs
        self._daemon = daemon
        self._deadline_s = deadline_s
        self._children: dict[int, _Child] = {}
        self._running: Counter[int] = Counter()
        self._waiting: dict[int, deque[int]] = collections.defaultdict(deque)
        self._selector = selectors.DefaultSelector()
        self._selector.register(jobs, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serve until the daemon has closed its end."""
        while True:
            for key, _ in self._selector.select(self._patience_s()):
                if key.fileobj is not self._jobs:
                    self._reap(key.fd)
                elif not self._take():
                    self._end()
                    return
            self._kill_overdue()

    def _take(self) -> bool:
        """Take a job in; False at the end of all."""
        data, fds, _, _ = socket.recv_fds(self._jobs, _UID_BYTES, 1)
        if not data:
            return False
        if not fds:  # lost for want of descriptors: the daemon sees that nobody will answer
            return True
        uid, (channel,) = int(data), fds
        if self._running[uid] < CHILDREN_PER_ACCOUNT:
            self._start(uid, channel)
        else:
            self._waiting[uid].append(channel)
        return True

    def _start(self, uid: int, channel: int) -> None:
        if _is_abandoned(channel):
            os.close(channel)
            return
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _say(f"no child can be made ({error.strerror}); raise TasksMax= of svirtd.service")
            os.close(channel)
            return
        if pid == 0:
            # Whatever happens, none of the server's own code goes on here.
            try:
                close_all_but(channel)
                opener_child.run(self._kernel, channel, server, self._deadline_s)
            finally:
                os._exit(1)
        os.close(channel)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = _Child(uid, pid, time.monotonic() + self._deadline_s + 1)
        self._running[uid] += 1
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(child.pid, 0)
        self._running[child.uid] -= 1
        if not self._running[child.uid]:
            del self._running[child.uid]
        waiting = self._waiting.get(child.uid)
        # Until one has been started: nobody may wait for the first of them any more.
        while waiting and self._running[child.uid] < CHILDREN_PER_ACCOUNT:
            self._start(child.uid, waiting.popleft())
        if not waiting:
            self._waiting.pop(child.uid, None)

    def _patience_s(self) -> float | None:
        if not self._children:
            return None
        first = min(child.killed_at for child in self._children.values())
        return max(0.0, first - time.monotonic()) if first != float("inf") else None

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for pidfd, child in self._children.items():
            if child.killed_at <= now:
                self._kill(pidfd, child)

    def _kill(self, pidfd: int, child: _Child) -> None:
        """End a child that its own alarm has not ended: stopped by a signal of its account, say.

        The account's right is enough for that, so that no capability to signal anybody is needed.
        """
        child.killed_at = float("inf")
        os.seteuid(child.uid)
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.seteuid(0)
            # A change of account has undone both.
            credentials.hide()
            credentials.end_with_parent(self._daemon, signal.SIGKILL)

    def _end(self) -> None:
        for pidfd, child in self._children.items():
            self._kill(pidfd, child)


def _is_abandoned(channel: int) -> bool:
    """Whether nobody waits for the answer of a job any more."""
    poll = select.poll()
    poll.register(channel, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
