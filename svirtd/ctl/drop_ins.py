# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drop-in of an enrolled unit as a file: written whole or not at all, removed without a trace.

svirtd cannot write below /etc, and should not: the administrator's own command does it.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from svirtd.core.enrolment import DROP_IN
from svirtd.ctl.failures import IO_ERROR, Exit, Failure

FOLDER: Final = "/etc/systemd/system"
_PART: Final = f".{DROP_IN}.part"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST: Final = 65_536


def path_of(unit: str) -> str:
    """Return where the drop-in of a unit lies."""
    return f"{FOLDER}/{unit}.d/{DROP_IN}"


def read(unit: str) -> str | None:
    """Return the text of a unit's drop-in, None if there is none. Raises Failure."""
    with _failing(unit):
        try:
            with _folder(unit) as folder:
                fd = os.open(DROP_IN, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                with open(fd, "rb") as file:
                    return file.read(_LONGEST).decode(errors="replace")
        except FileNotFoundError:
            return None


def write(unit: str, text: str) -> None:
    """Give a unit its drop-in, in the place of the one that it has. Raises Failure."""
    with _failing(unit):
        os.makedirs(f"{FOLDER}/{unit}.d", 0o755, exist_ok=True)
        with _folder(unit) as folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_PART, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(_PART, flags, 0o644, dir_fd=folder)
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o644)  # systemd wants it readable, whatever the umask
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.rename(_PART, DROP_IN, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)


def remove(unit: str) -> bool:
    """Take a unit's drop-in away, and its folder if nothing else is in it; whether it was there.

    Raises Failure.
    """
    there = False
    with _failing(unit):
        try:
            with _folder(unit) as folder:
                for name in (_PART, DROP_IN):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
                        there = there or name == DROP_IN
                os.fsync(folder)
        except FileNotFoundError:
            return False
        with contextlib.suppress(OSError):  # somebody else's drop-ins are in it
            os.rmdir(f"{FOLDER}/{unit}.d")
    return there


@contextlib.contextmanager
def _folder(unit: str) -> Iterator[int]:
    """Hold the folder of a unit's drop-ins, which must be one, of root's, and no link."""
    fd = os.open(f"{FOLDER}/{unit}.d", _DIRECTORY)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise PermissionError(0, "the folder is not root's alone to write")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failing(unit: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (NotADirectoryError, OSError) as error:
        why = "a part of it is no folder, or a link" if _is_link(error) else error.strerror
        raise Failure(IO_ERROR, f"{path_of(unit)}: {why}", Exit.REFUSED) from error


def _is_link(error: OSError) -> bool:
    return isinstance(error, NotADirectoryError)
