# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ordinary users of the host: processes under their uid, driven by a test.

They are forked from the tester and give up everything that it has: user, groups, capabilities and
descriptors. What one is told to do is a function of a module, which gets the process's own view.
"""

import contextlib
import ctypes
import errno
import mmap
import multiprocessing.connection
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from svirtd.host.bus import BusError, Message
from tests.sandbox import kernel
from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S, MANAGER, ROOT, Client

_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_ROOT: Final = Account("root", 0, 0)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Me:
    """What a function that runs as a stranger works with."""

    def __init__(self, rights: socket.socket) -> None:
        self._rights = rights
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The process's own connection to the bus, made when it is first asked for."""
        if self._client is None:
            self._client = Client()
        return self._client

    def given(self) -> int:
        """Return the next descriptor that the test has given."""
        _, (fd,), _, _ = socket.recv_fds(self._rights, 1, 1)
        return fd


class Stranger(Client):
    """A client of the bus that is a process of its own under another uid.

    What a Client can do, it does there; `do` has it run anything else.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        ours, theirs = multiprocessing.connection.Pipe()
        self._rights, rights = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pipe = ours
        self.pid = _fork(
            account, lambda: _serve(theirs, Me(rights)), theirs.fileno(), rights.fileno()
        )
        theirs.close()
        rights.close()

    def close(self) -> None:
        """Let it leave at once, whatever it is doing."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self._pipe.close()
            self._rights.close()

    def give(self, fd: int) -> None:
        """Give it a descriptor of the test's; `Me.given` takes it."""
        socket.send_fds(self._rights, [b"x"], [fd])

    def start(self, deed: Callable[..., Any], *args: Any) -> None:
        """Have it do something; `result` waits for that."""
        self._pipe.send((deed, args))

    def ready(self) -> bool:
        """Say whether a result is there."""
        return self._pipe.poll(0)

    def result(self, timeout_s: float = DEADLINE_S * 2) -> Any:
        """Return what the function returned. Raises its BusError or OSError."""
        assert self._pipe.poll(timeout_s), f"{self.account.name} did not finish"
        kind, value = self._pipe.recv()
        if kind == "bus":
            raise BusError(*value)
        if kind == "os":
            raise OSError(*value)
        assert kind == "done", value
        return value

    def do(self, deed: Callable[..., Any], *args: Any) -> Any:
        """Have it do something and return the result."""
        self.start(deed, *args)
        return self.result()

    def message(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = ROOT,
        interface: str = MANAGER,
        fds: Sequence[int] = (),
    ) -> Message:
        """Call a method of svirtd as the stranger; descriptors are numbers of its process."""
        reply: Message = self.do(_message, member, signature, body, path, interface, tuple(fds))
        return reply


def _message(
    me: Me, member: str, signature: str, body: Sequence[Any], path: str, interface: str,
    fds: Sequence[int],
) -> Message:  # fmt: skip
    return me.client.message(member, signature, *body, path=path, interface=interface, fds=fds)


class Changer:
    """A process that changes what names lead to as fast as the kernel lets it."""

    def __init__(self, account: Account, change: Callable[[], None]) -> None:
        self._counter = mmap.mmap(-1, 8)

        def work() -> None:
            done = 0
            while True:
                for _ in range(64):
                    change()
                done += 64
                self._counter[:] = struct.pack("=q", done)

        self._pid = _fork(account, work)

    @property
    def count(self) -> int:
        """How many times they were changed so far."""
        (done,) = struct.unpack("=q", self._counter[:])
        return int(done)

    def close(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._counter.close()
        assert os.WIFSIGNALED(status), "the process that changes names ended by itself"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Swapper(Changer):
    """Exchanges two names, under an account."""

    def __init__(self, account: Account, first: str, second: str) -> None:
        arguments = (_AT_FDCWD, first.encode(), _AT_FDCWD, second.encode(), _RENAME_EXCHANGE)

        def swap() -> None:
            if _libc.renameat2(*arguments):
                number = ctypes.get_errno()
                if number != errno.ENOENT:
                    raise OSError(number, f"renameat2 {first} {second}")
                time.sleep(0.01)  # they are gone for now, or for good

        super().__init__(account, swap)


class Mounter(Changer):
    """Mounts one folder over another and takes the mount away: who has root do that is trusted."""

    def __init__(self, source: str, target: str) -> None:
        self._target = target

        def change() -> None:
            kernel.bind(source, target)
            kernel.detach(target)

        super().__init__(_ROOT, change)

    def close(self) -> None:
        """End it, and whatever it has left mounted."""
        super().close()
        with contextlib.suppress(OSError):  # nothing is mounted there (any more)
            while True:
                kernel.detach(self._target)


def become(account: Account) -> None:
    """Give up the tester's authority for good."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    # Cleared by the change of the user. As for any login: its own /proc is its own.
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)


def _fork(account: Account, work: Callable[[], None], *kept: int) -> int:
    """Do the work in a process of the account, which has no descriptors but the standard ones."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        # Not closed: a finaliser of the tester's may close the number, which must be nobody's then.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in (1, 2, null, *kept):
                os.dup2(null, fd, inheritable=False)
        os.umask(0o022)
        os.chdir("/")
        become(account)
        work()
    except BaseException:  # noqa: BLE001 -- a forked process must not return into the tester
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def _serve(pipe: "multiprocessing.connection.Connection", me: Me) -> None:
    while True:
        try:
            deed, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", deed(me, *args))
        except BusError as error:
            answer = ("bus", (error.name, error.text))
        except OSError as error:
            # A call's deadline is one without a number, and says whose answer was waited for.
            what = traceback.format_exc()
            answer = ("os", (error.errno, error.strerror)) if error.errno else ("failed", what)
        except Exception:  # noqa: BLE001 -- told to the test
            answer = ("failed", traceback.format_exc())
        pipe.send(answer)
