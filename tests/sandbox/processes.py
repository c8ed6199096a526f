# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two ways in which the sandbox starts processes: its PID 1, and programs beside it."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import kernel

_JOINED = {
    "mnt": kernel.CLONE_NEWNS,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "cgroup": kernel.CLONE_NEWCGROUP,
}


def fork_init(prepare: Callable[[], None], argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Start PID 1 of a new pid namespace; later children of the caller run in that namespace too.

    `prepare` runs in the new process before `argv` does. What it raises goes to standard error.
    Returns the process id as the caller sees it.
    """
    kernel.unshare(kernel.CLONE_NEWPID)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        kernel.die_with_parent()
        # Out of the terminal's reach: PID 1 takes SIGINT as a request to reboot.
        os.setsid()
        prepare()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execve(argv[0], list(argv), dict(env))
    except OSError as error:
        print(f"sandbox: cannot set it up: {error}", file=sys.stderr, flush=True)
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        traceback.print_exc()
    finally:
        os._exit(1)


@dataclass(frozen=True, slots=True)
class Entrance:
    """Open handles on the namespaces of a running PID 1."""

    fds: Mapping[str, int]

    @classmethod
    def of(cls, pid: int) -> "Entrance":
        """Open the namespaces of `pid`. Raises OSError."""
        return cls({name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in _JOINED})

    def close(self) -> None:
        """Close the handles: they would keep the namespaces alive."""
        for fd in self.fds.values():
            os.close(fd)

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], *, capture: bool = False
    ) -> "subprocess.Popen[str]":
        """Start `argv` in the namespaces, in the caller's working folder, no signal blocked."""
        folder = Path.cwd()

        def enter() -> None:
            for name, fd in self.fds.items():
                kernel.setns(fd, _JOINED[name])
            os.chdir(folder)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])

        return subprocess.Popen(
            argv,
            env=env,
            text=True,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            preexec_fn=enter,  # noqa: PLW1509 - the process has one thread
        )

    def output(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> str:
        """What `argv` prints on both of its outputs; a line that says so if it takes too long."""
        with self.start(argv, env, capture=True) as process:
            try:
                return process.communicate(timeout=timeout_s)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                return f"{argv[0]} did not end within {timeout_s} s\n"
