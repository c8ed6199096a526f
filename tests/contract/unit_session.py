# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unit's limits against the daemon's work: run in a sandbox by test_unit_session.py.

Everything that the hardening could break is done once: another user's 0600 image is opened and
labelled, the book is written, a VM is started as another user, gets its runtime folder, is talked
to, survives a restart of the daemon, and is released.
"""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.contract import sources
from tests.sandbox import inside

_NOBODY: Final = 65534
_DEADLINE_S: Final = 20.0
_MANAGER: Final = ("org.svirt1", "/org/svirt1", "org.svirt1.Manager")
_VM: Final = ("org.svirt1", "/org/svirt1/vm/a", "org.svirt1.VM")
# A VM for the purpose: it makes a control socket and lives until it is ended.
_COMMAND: Final = (
    "import socket, sys, time\n"
    "server = socket.create_server(sys.argv[1], family=socket.AF_UNIX)\n"
    "time.sleep(600)\n"
)
_DROP_IN: Final = """[Service]
ExecStart=
ExecStart={python} -m svirtd
WorkingDirectory={repo}
Environment=PYTHONDONTWRITEBYTECODE=1
# As on every kernel without SELinux, which the tests must do with.
CapabilityBoundingSet=CAP_SYS_ADMIN
"""


def main() -> None:
    """Install the unit as it is, but for its command, and put it to work."""
    state = inside().state
    _install()
    image = _image(state)

    # Nothing has started the daemon: the first call does.
    _busctl("call", *_MANAGER, "ListVMs")
    assert _systemctl("is-active", "svirtd.service") == "active"

    _launch(image)
    assert _label(image)
    _look("the VM's socket takes a connection", _connects)
    folder = Path(_property("RuntimeDirectory"))
    assert folder.stat().st_uid == _NOBODY
    assert _mode("/var/lib/svirtd") == 0o700
    assert _mode("/var/lib/svirtd/book.sqlite") == 0o600

    _systemctl("reload", "svirtd.service")
    _systemctl("restart", "svirtd.service")
    assert _property("State") == "running"
    assert folder.is_dir()
    assert _connects()

    _busctl("call", *_MANAGER, "Release", "sa{sv}", "a", "0")
    assert _label(image) is None
    assert not folder.exists()
    _systemctl("stop", "svirtd.service")
    assert _systemctl("show", "--property=Result", "--value", "svirtd.service") == "success"


def _install() -> None:
    units = Path("/run/systemd/system")
    drop_ins = units / "svirtd.service.d"
    drop_ins.mkdir(parents=True)
    (units / "svirtd.service").write_bytes((sources.UNITS / "svirtd.service").read_bytes())
    text = _DROP_IN.format(python=sys.executable, repo=sources.REPO)
    (drop_ins / "command.conf").write_text(text, "utf-8")
    Path("/etc/svirtd/svirtd.toml").write_text('[selinux]\nrequire = "none"\n', "utf-8")
    _systemctl("daemon-reload")


def _image(folder: Path) -> Path:
    """Another user's file in that user's closed folder."""
    home = folder / "home"
    home.mkdir(0o700)
    image = home / "image.raw"
    image.write_bytes(b"")
    image.chmod(0o600)
    for path in (home, image):
        os.chown(path, _NOBODY, _NOBODY)
    return image


def _launch(image: Path) -> None:
    command = ["/usr/bin/python3", "-c", _COMMAND, "{runtime}/control"]
    _busctl(
        *("call", "--", *_MANAGER, "Launch", "sasaa{sv}a{sv}", "a"),
        *(str(len(command)), *command),
        *("1", "1", "path", "s", str(image)),
        *("1", "user", "s", "nobody"),
    )


def _connects() -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        _busctl("call", *_VM, "OpenChannel", "sa{sv}", "control", "0")
        return True
    return False


def _property(name: str) -> str:
    return _busctl("get-property", *_VM, name).partition(" ")[2].strip('"')


def _look(what: str, seen: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not seen():
        assert time.monotonic() < end, f"not seen within {_DEADLINE_S} s: {what}"
        time.sleep(0.05)


def _label(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, "security.selinux")
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _mode(path: str) -> int:
    return os.stat(path).st_mode & 0o7777


def _busctl(*arguments: str) -> str:
    return _output("busctl", "--timeout=60", *arguments)


def _systemctl(*arguments: str) -> str:
    return _output("systemctl", *arguments)


def _output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
