# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that forks workers on trees: one thread, forked when the daemon has only one, too.

It reads nothing but how many workers are wanted: the tree and each worker's channel come as
descriptors, and what is to be done goes from the daemon to the worker. It keeps what labelling any
user's file takes, and gives the rest of root's rights up.
"""

import fcntl
import gc
import os
import signal
import socket
from typing import Final, NoReturn

from svirtd import failpoints
from svirtd.host import credentials, tree_worker
from svirtd.host.opener_server import close_all_but

WORKERS_MAX: Final = 4
_CAP_DAC_OVERRIDE: Final = 1
_CAP_FOWNER: Final = 3
_NOT_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(control: int, daemon: int) -> NoReturn:
    """Serve the process `daemon` over the descriptor `control`; exits. To be called in a process
    forked for it, which had one thread."""
    try:
        for number in _NOT_OURS:
            signal.signal(number, signal.SIG_IGN)
        # Workers are nobody's to wait for: their channel tells of their end.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        failpoints.disarm()
        close_all_but(control)
        # The last is for a kernel without SELinux, where a label is an attribute like others.
        credentials.keep_capabilities(_CAP_DAC_OVERRIDE, _CAP_FOWNER, credentials.CAP_SYS_ADMIN)
        credentials.no_new_privileges()
        credentials.name_process("svirtd-trees")
        credentials.hide()
        credentials.end_with_parent(daemon, signal.SIGKILL)
        gc.collect()
        gc.freeze()
        with socket.socket(fileno=control) as jobs:
            _serve(jobs)
    except BaseException as error:  # noqa: BLE001 -- the edge of a process that must end here
        _say(f"the server of workers on trees has ended: {error!r}")
        os._exit(1)
    os._exit(0)


def _serve(jobs: socket.socket) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(jobs, 16, WORKERS_MAX + 1)
        if not data:
            return
        for channel in fds[1:]:
            _start(fds[0], channel)
        for fd in fds:
            os.close(fd)


def _start(root: int, channel: int) -> None:
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _say(f"no worker can be made ({error.strerror}); raise TasksMax= of svirtd.service")
        return
    if pid == 0:
        # Whatever happens, none of the server's own code goes on here.
        try:
            # In these places, and with nothing else open: the channels of other workers neither.
            kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (root, channel)]
            for place, fd in enumerate(kept, 3):
                os.dup2(fd, place, inheritable=False)
            os.closerange(5, os.sysconf("SC_OPEN_MAX"))
            credentials.end_with_parent(server, signal.SIGKILL)
            tree_worker.run(3, 4)
        finally:
            os._exit(1)


def _say(text: str) -> None:
    os.write(2, f"<3>svirtd-trees: {text}\n".encode())
