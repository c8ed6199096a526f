# SPDX-License-Identifier: LGPL-2.1-or-later
"""One run of the sandbox: build it, run the command in it, take everything away."""

import os
import select
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox import cgroups, layout
from tests.sandbox.errors import Interrupted, SandboxError
from tests.sandbox.processes import Entrance, fork_init

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP_TIMEOUT_S = 10.0
_LOG_TIMEOUT_S = 5.0
_LOG_LINES = 30
# si_code of a signal that the kernel made itself, such as the terminal's on Ctrl-C.
_SI_KERNEL = 0x80

# Belongs to the session outside and means nothing, or something wrong, in here.
_FOREIGN = (
    "DBUS_SESSION_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
)


@dataclass(frozen=True, slots=True)
class _Running:
    """A manager that has come up."""

    init_pid: int
    entrance: Entrance
    env: Mapping[str, str]


def run(argv: Sequence[str], bus_files: Path, start_timeout_s: float) -> int:
    """Run `argv` in a fresh sandbox and return its exit code (128 + n after signal n).

    Changes the calling process for good (its signals, its children's pid namespace): meant to be
    the whole life of a process. Raises SandboxError.
    """
    if os.geteuid() != 0:
        raise SandboxError("needs root: it mounts file systems and makes cgroups")
    layout.check_needed()
    if not bus_files.is_dir():
        raise SandboxError(f"no such folder: {bus_files}")
    signal.pthread_sigmask(signal.SIG_BLOCK, [*_STOPPING, signal.SIGCHLD])
    with ExitStack() as undo:
        state = _make_state(undo)
        subtree = cgroups.create(state.name)
        undo.callback(subtree.remove)
        try:
            running = _boot(undo, state, subtree, bus_files, start_timeout_s)
        except Interrupted as interrupted:
            return 128 + interrupted.signum
        return _run_command(running, argv)


def _make_state(undo: ExitStack) -> Path:
    # A short path: a unix socket's name has 108 bytes. Readable, since tests act as other users.
    state = Path(tempfile.mkdtemp(prefix="svirt-", dir="/tmp"))
    undo.callback(shutil.rmtree, state)
    state.chmod(0o755)
    (state / "tmp").mkdir()
    (state / "tmp").chmod(0o1777)
    boot_id = uuid.uuid4()
    (state / layout.BOOT_ID).write_text(f"{boot_id}\n")
    (state / layout.CONSOLE_LOG).touch()
    undo.callback(_remove_private_tmp, boot_id.hex)
    return state


def _remove_private_tmp(boot_id: str) -> None:
    """Remove what PrivateTmp= of killed services left behind."""
    for parent in (Path("/tmp"), Path("/var/tmp")):
        for folder in parent.glob(f"systemd-private-{boot_id}-*"):
            shutil.rmtree(folder)


def _boot(
    undo: ExitStack,
    state: Path,
    subtree: cgroups.Subtree,
    bus_files: Path,
    start_timeout_s: float,
) -> _Running:
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    undo.callback(ready.close)
    ready.bind(str(state / "notify"))

    def prepare() -> None:
        subtree.enter()
        layout.install(state, bus_files)

    init_pid = fork_init(prepare, layout.MANAGER_ARGV, layout.manager_env(state / "notify"))
    undo.callback(_end, init_pid)
    in_time = _wait_ready(ready, init_pid, state, start_timeout_s)
    # It goes on telling, at each reload, and would wait for ever where nobody takes that in.
    ready.close()
    entrance = Entrance.of(init_pid)
    undo.callback(entrance.close)
    running = _Running(init_pid, entrance, _environment(state, subtree))
    units = ("show", "--value", "--property=ActiveState", layout.TARGET)
    if not in_time or _output(running, "systemctl", *units).strip() != "active":
        what = f"not every part came up within {start_timeout_s} s"
        raise SandboxError("\n".join([what, _console(state), _logs(running)]))
    return running


def _wait_ready(ready: socket.socket, init_pid: int, state: Path, timeout_s: float) -> bool:
    """Wait until systemd has done what it was started for; False if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if select.select([ready], [], [], 0.02)[0] and b"READY=1" in ready.recv(4096).split(b"\n"):
            return True
        for signum in signal.sigpending() & set(_STOPPING):
            raise Interrupted(signum)
        if _has_ended(init_pid):
            raise SandboxError(f"PID 1 ended before the sandbox was up\n{_console(state)}")
    return False


def _environment(state: Path, subtree: cgroups.Subtree) -> dict[str, str]:
    machine_id = Path("/etc/machine-id").read_text().strip()
    env = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
    return env | {
        "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={layout.BUS_SOCKET}",
        "SVIRT_SANDBOX": str(state),
        "SVIRT_SANDBOX_CONTROLLERS": " ".join(subtree.controllers),
        "SVIRT_SANDBOX_JOURNAL": f"/run/log/journal/{machine_id}",
        "TMPDIR": str(state / "tmp"),
    }


def _output(running: _Running, *argv: str) -> str:
    return running.entrance.output(argv, running.env, _LOG_TIMEOUT_S)


def _console(state: Path) -> str:
    lines = (state / layout.CONSOLE_LOG).read_text(errors="replace").splitlines()
    return "\n".join(["systemd before it had a journal:", *lines[-_LOG_LINES:]])


def _logs(running: _Running) -> str:
    quiet = ("--no-pager", "--plain", "--no-legend")
    failed = _output(running, "systemctl", *quiet, "--failed")
    jobs = _output(running, "systemctl", *quiet, "list-jobs")
    journal = _output(running, "journalctl", "--no-pager", f"--lines={_LOG_LINES}")
    return f"failed units:\n{failed}waiting jobs:\n{jobs}end of the journal:\n{journal}"


def _run_command(running: _Running, argv: Sequence[str]) -> int:
    # A scope makes the command a unit like any other caller's process, in a cgroup of its own.
    scope = ["systemd-run", "--quiet", "--scope", "--unit=sandbox-command", "--", *argv]
    command = running.entrance.start(scope, running.env)
    deadline: float | None = None
    while True:
        code = command.poll()
        if code is not None:
            return code if code >= 0 else 128 - code
        if deadline is not None and time.monotonic() > deadline:
            command.kill()
            command.wait()
            return 128 + signal.SIGKILL
        info = signal.sigtimedwait([*_STOPPING, signal.SIGCHLD], 1.0)
        if info is None or info.si_signo == signal.SIGCHLD:
            if command.poll() is None and _has_ended(running.init_pid):
                raise SandboxError("systemd ended while the command ran")
            continue
        # Ctrl-C has reached the command too: it shares the terminal.
        if not (info.si_signo == signal.SIGINT and info.si_code == _SI_KERNEL):
            command.send_signal(info.si_signo)
        deadline = deadline or time.monotonic() + _STOP_TIMEOUT_S


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(init_pid: int) -> None:
    """Kill PID 1; the kernel then kills the rest of its namespace before the wait returns."""
    os.kill(init_pid, signal.SIGKILL)
    os.waitpid(init_pid, 0)
