# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's runtime folder, its control sockets, and the user it runs as.

The folder belongs to the VM, and a VM may be hostile: nothing in it is trusted by name.
"""

import errno
import os
import pwd
import socket
import stat
from dataclasses import dataclass

from svirtd.core.names import shown_to_judge
from svirtd.errors import Failed, InvalidArgs, LabelRefused, ResourceRefused
from svirtd.host import removal
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.scarcity import refuse_scarcity, refuse_without_descriptor


@dataclass(frozen=True, slots=True)
class Account:
    """Who a VM's processes run as."""

    name: str
    uid: int
    gid: int


def account(user: str, default_uid: int) -> Account:
    """Look up a user by name or number; an empty one is `default_uid`.

    Raises InvalidArgs, or LimitsExceeded where the look was not possible.
    """
    try:
        if user and not user.isdecimal():
            found = pwd.getpwnam(user)
        else:
            found = pwd.getpwuid(int(user) if user else default_uid)
    except (KeyError, ValueError, OverflowError):
        refuse_without_descriptor()
        raise InvalidArgs(f"user {user or default_uid!r} is not known on this host") from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def user_name(uid: int) -> str:
    """Return what to call a user where somebody decides by it."""
    try:
        return f"{shown_to_judge(pwd.getpwuid(uid).pw_name)} (uid {uid})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def check_executable(path: str) -> None:
    """Raise InvalidArgs if `path` cannot be a command: better now than after labelling."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InvalidArgs(f"command {path!r} cannot be run: {error.strerror}") from None
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise InvalidArgs(f"command {path!r} cannot be run: it is not an executable file")


def make_folder(kernel: Kernel, path: str, owner: Account, label: str) -> None:
    """Make the folder, owned by `owner` alone and labelled. Raises LabelRefused, Failed."""
    try:
        above = os.path.dirname(path)
        os.makedirs(above, exist_ok=True)
        # Whatever the umask: the VM's user passes through, and lists nothing.
        os.chmod(above, 0o711)  # noqa: S103 -- passing through is what it is for
        os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, owner.uid, owner.gid)
            kernel.check_context(label)
            kernel.write_label(fd, label)
        finally:
            os.close(fd)
    except OSError as error:
        refuse_scarcity(error)
        raise Failed(f"the runtime folder {path} cannot be made: {error.strerror}") from error


def remove_folder(path: str) -> None:
    """Remove the folder and what the VM left in it. Raises OSError."""
    if not os.path.lexists(path):
        return
    try:
        os.rmdir(path)  # takes no descriptor; most are empty by now
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        removal.empty(path)
        os.rmdir(path)


def connect(kernel: Kernel, folder: str, name: str, image_context: str, level_context: str) -> int:
    """Connect to a socket of the VM and return the descriptor; the caller closes it.

    The socket is held by descriptor and looked at before it is used: the VM could put a link to
    some service of the host under this name, and the daemon would talk to it for the caller.
    Raises ResourceRefused, LabelRefused, LimitsExceeded.
    """
    where = f"{folder}/{name}"
    try:
        held = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        refuse_scarcity(error)
        raise ResourceRefused(
            f"there is no socket {name!r} in the VM's runtime folder ({error.strerror}); have its "
            "command make one at {runtime}/" + name
        ) from None
    try:
        _refuse_odd_socket(kernel, held, where, folder, image_context)
        with kernel.sockets_at(level_context):
            try:
                stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                refuse_scarcity(error)
                raise
        try:
            # A unix socket connects at once or not at all.
            stream.connect(f"/proc/self/fd/{held}")
            stream.setblocking(True)
            return stream.detach()
        except OSError as error:
            raise ResourceRefused(f"{where} does not take a connection: {error.strerror}") from None
        finally:
            stream.close()
    finally:
        os.close(held)


def _refuse_odd_socket(
    kernel: Kernel, held: int, where: str, folder: str, image_context: str
) -> None:
    info, owner = os.fstat(held), os.stat(folder)
    if not stat.S_ISSOCK(info.st_mode):
        raise ResourceRefused(f"{where} is not a socket")
    if info.st_dev != owner.st_dev or info.st_uid != owner.st_uid or info.st_nlink != 1:
        raise ResourceRefused(f"{where} is not a socket that this VM made itself")
    if not kernel.enabled():
        return
    try:
        found = kernel.read_label(f"/proc/self/fd/{held}")
    except (NoLabels, OSError) as error:
        raise LabelRefused(f"the label of {where} cannot be read: {error}") from error
    if found != image_context:
        raise ResourceRefused(f"{where} carries {found}, not the VM's label {image_context}")
