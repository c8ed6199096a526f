# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of svirtd's without the time of their imports: forked from a process that has made them.

What runs is the real main() in a process of its own, a child of the tester like any other, with the
arguments, environment, folder and standard streams it is given, and with the signal dispositions
and the one thread of a fresh process. Three things differ: its command line in /proc, that its
modules were imported, and parts of svirtd's start gone through (see rehearsal.py), before its
environment was set (nothing of that looks at it), and that it ends, once main() has, without taking
the interpreter apart.
"""

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_REPO: Final = Path(__file__).resolve().parents[1]
_REQUEST_BYTES: Final = 128 * 1024
# A pipe takes this much, whoever reads.
_PIPE_BYTES: Final = 4096
_START_S: Final = 20.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Forked:
    """A process that a zygote has forked: what the tests use of Popen, in the same words."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return its exit code if it has ended: negative after a signal, as Popen has it."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self.fd)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        if self.returncode is None and not select.select([self.fd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not been waited for."""
        if self.returncode is None:
            signal.pidfd_send_signal(self.fd, number)


class Zygote:
    """The process that forks. `close` ends it; what it has forked lives on."""

    def __init__(self, program: str = "svirtd") -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", program], stdin=theirs.fileno(), cwd=_REPO
            )
        self._socket.settimeout(_START_S)
        assert self._socket.recv(16) == b"ready"

    def spawn(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        streams: tuple[int, int, int],
        user: int = 0,
        without: str = "",
    ) -> Forked:
        """Start the program with these arguments and standard streams.

        With `user` it runs as that user, of a group of the same number and no other. `without`
        names a defence that is switched off in it, see tests/attacks/defences.py.
        """
        request = {
            "arguments": list(arguments), "env": dict(env), "cwd": str(cwd), "user": user,
            "without": without,
        }  # fmt: skip
        with _adopting():
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            pid = int(self._socket.recv(16))
        return Forked(pid)

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        given: str = "",
        user: int = 0,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run the program with `given` on its standard input; returns how it ended and what it
        wrote. Past the timeout it is killed, and TimeoutExpired raised."""
        stdin, gives = os.pipe()
        with (
            open(stdin, "rb") as reads,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            with open(gives, "w") as writes:
                assert len(given) <= _PIPE_BYTES
                writes.write(given)
            streams = reads.fileno(), out.fileno(), err.fileno()
            process = self.spawn(arguments, env=env, cwd=cwd, streams=streams, user=user)
            try:
                code = process.wait(timeout)
            finally:
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait(_START_S)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(arguments, code, *texts)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        assert self._process.wait(_START_S) == 0


@contextmanager
def _adopting() -> Iterator[None]:
    """Whoever loses its parent below this process becomes its child meanwhile."""
    _subreaper(1)
    try:
        yield
    finally:
        _subreaper(0)


def _subreaper(value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(value), zero, zero, zero):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns None at the end, and in a forked process its request."""
    while True:
        data, fds, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 3)
        if not data:
            return None
        # Forked twice: the program is the tester's child once the one between has ended.
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.close(writer)
                return {"streams": fds, **json.loads(data)}
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.close(writer)
        for fd in fds:
            os.close(fd)
        os.waitpid(between, 0)
        channel.send(os.read(reader, 16))
        os.close(reader)


def _become(request: dict[str, Any]) -> None:
    """Make this process what it would be if it had been executed."""
    for number, fd in enumerate(request["streams"]):
        os.dup2(fd, number)
    for fd in request["streams"]:
        os.close(fd)
    # As a fresh process has them: whether they are buffered depends on what they are.
    for name, fd, mode, buffering in (
        ("stdin", 0, "r", -1),
        ("stdout", 1, "w", -1),
        ("stderr", 2, "w", 1),
    ):
        setattr(sys, name, open(fd, mode, buffering, closefd=False))  # noqa: SIM115 -- for good
    # Most of it is as it was; what is set anew is a page that is copied.
    for name in os.environ.keys() - request["env"].keys():
        del os.environ[name]
    os.environ.update(request["env"].items() - os.environ.items())
    time.tzset()
    os.chdir(request["cwd"])
    sys.argv[1:] = request["arguments"]
    if request["user"]:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])


def _svirtd() -> Callable[[Sequence[str]], int]:
    from svirtd.daemon import main
    from tests.rehearsal import rehearse

    rehearse()
    return main


def _svirtctl() -> Callable[[Sequence[str]], int]:
    from svirtd.ctl.commands import COMMANDS
    from svirtd.ctl.main import main

    dict(COMMANDS)  # with all that they import

    def ended(_: Sequence[str]) -> int:
        try:
            main()
        except SystemExit as end:
            return int(str(end.code))

    return ended


def main() -> int:
    """Serve on standard input until its other end is closed; in a forked process, run a program."""
    program = {"svirtd": _svirtd, "svirtctl": _svirtctl}[sys.argv[1]]()
    # What stands here is never garbage: no program need walk it, and no page is copied for that.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as channel:
        channel.send(b"ready")
        request = _serve(channel)
    if request is None:
        return 0
    _become(request)
    if request["without"]:
        from tests.attacks.defences import switch_off

        switch_off(request["without"])
    code = program(request["arguments"])
    # As a fresh process ends, but for the interpreter that takes itself apart: that would write to
    # each page that the process has in common with the zygote.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
