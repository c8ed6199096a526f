# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's runtime folder, and the user it runs as.

The folder belongs to the VM, and a VM may be hostile: nothing in it is trusted by name.
"""

import errno
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from svirtd.core.names import shown_to_judge
from svirtd.core.overlays import Overlay
from svirtd.errors import Failed, InvalidArgs
from svirtd.host import removal
from svirtd.host.kernel import Kernel
from svirtd.host.scarcity import refuse_scarcity, refuse_without_descriptor


@dataclass(frozen=True, slots=True)
class Account:
    """Who a VM's processes run as. `groups` are those that systemd gives them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


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
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return Account(found.pw_name, found.pw_uid, found.pw_gid, tuple(groups))


def user_name(uid: int) -> str:
    """Return what to call a user where somebody decides by it."""
    try:
        return f"{shown_to_judge(pwd.getpwuid(uid).pw_name)} (uid {uid})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def make_folder(
    kernel: Kernel, path: str, owner: Account, label: str, overlays: Mapping[str, Overlay]
) -> None:
    """Make the folder, owned by `owner` alone and labelled, with overlays by name.

    Raises LabelRefused, Failed.
    """
    try:
        above = os.path.dirname(path)
        os.makedirs(above, exist_ok=True)
        # Whatever the umask: the VM's user passes through, and lists nothing.
        os.chmod(above, 0o711)  # noqa: S103 -- passing through is what it is for
        os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            kernel.check_context(label)
            # First: what is made in the folder gets its type.
            kernel.write_label(fd, label)
            # While the folder is still root's: nobody can have anything in it.
            for name, overlay in overlays.items():
                _make_overlay(kernel, fd, name, owner, label, overlay)
            os.fchown(fd, owner.uid, owner.gid)
        finally:
            os.close(fd)
    except OSError as error:
        refuse_scarcity(error)
        raise Failed(f"the runtime folder {path} cannot be made: {error.strerror}") from error


def _make_overlay(
    kernel: Kernel, folder: int, name: str, owner: Account, label: str, overlay: Overlay
) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        os.pwrite(fd, overlay.head, 0)
        os.ftruncate(fd, overlay.length)
        os.fchown(fd, owner.uid, owner.gid)
        kernel.write_label(fd, label)
    finally:
        os.close(fd)


def remove_folder(path: str) -> None:
    """Remove the folder and what the VM left in it. Raises OSError."""
    try:
        os.rmdir(path)  # takes no descriptor; most are empty by now
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        removal.empty(path)
        os.rmdir(path)
