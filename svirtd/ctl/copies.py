# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of the book as files: received and looked at, or handed to the daemon's own program.

What a book is, only svirtd knows: its program looks at a copy and puts one in place.
"""

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Final

import svirtd
from svirtd.ctl import programs
from svirtd.ctl.failures import IO_ERROR, Exit, Failure

FILE_EXISTS: Final = "org.freedesktop.DBus.Error.FileExists"
_CHUNK_BYTES: Final = 256 * 1024
_IDLE_S: Final = 60.0
# A copy of half a million VMs takes a while to look at.
_LOOK_S: Final = 1800.0


def refuse_existing(path: str) -> None:
    """Raise Failure if there is a file of this name."""
    if os.path.lexists(path):
        raise Failure(FILE_EXISTS, f"{path} exists; --force replaces it", Exit.REFUSED)


def receive(stream: socket.socket, path: str, *, force: bool) -> int:
    """Write a stream to a file that appears once it is whole, and return its size.

    Mode 0600; looked at before it gets its name. `force` replaces a file of that name. Raises
    Failure.
    """
    part = f"{path}.part-{secrets.token_hex(4)}"
    try:
        with contextlib.ExitStack() as undo:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(_unlink, part)
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)
                stream.settimeout(_IDLE_S)
                while chunk := stream.recv(_CHUNK_BYTES):
                    file.write(chunk)
                file.flush()
                os.fsync(fd)
                size = file.tell()
            run_daemon(["--check-copy", part])
            _give_name(part, path, force=force)
            return size
    except FileExistsError:
        refuse_existing(path)
        raise
    except TimeoutError as error:
        text = f"svirtd has sent nothing for {_IDLE_S:.0f} s; there is no copy"
        raise Failure(IO_ERROR, text, Exit.REFUSED) from error
    except OSError as error:
        raise Failure(IO_ERROR, f"{path}: {error.strerror}", Exit.REFUSED) from error


def run_daemon(arguments: Sequence[str]) -> str:
    """Run the daemon's program for an errand and return what it answers. Raises Failure."""
    program, environment = _program()
    try:
        said = programs.run([*program, *arguments], limit_s=_LOOK_S, environment=environment)
    except Failure as failure:
        text = failure.text.removeprefix("svirtd: ")
        raise Failure(failure.name, text, failure.code) from failure
    return said.removesuffix("\n")


def _program() -> tuple[list[str], dict[str, str]]:
    """Return the svirtd that this svirtctl belongs to: beside it, or in the same tree."""
    here = os.path.realpath(sys.argv[0])
    beside = os.path.join(os.path.dirname(here), "svirtd")
    if os.path.basename(here) == "svirtctl" and os.access(beside, os.X_OK):
        return [beside], dict(os.environ)
    # Run as a module: by the same interpreter, from where our own modules are.
    tree = os.path.dirname(os.path.dirname(os.path.abspath(svirtd.__file__)))
    return [sys.executable, "-m", "svirtd"], {**os.environ, "PYTHONPATH": tree}


def _give_name(part: str, path: str, *, force: bool) -> None:
    if force:
        os.rename(part, path)
    else:
        # Fails where rename() would overwrite.
        os.link(part, path)
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
