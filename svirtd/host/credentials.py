# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process may do and be looked into: capabilities, accounts, and the switches beside them.

For processes of one thread: each of these calls is about the thread that makes it.
"""

import ctypes
import os
from dataclasses import dataclass
from typing import Final

CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SYS_ADMIN: Final = 21
_CAP_LAST: Final = 63
_CAP_VERSION_3: Final = 0x20080522
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_GET_DUMPABLE: Final = 3
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process acts as. `groups` are all of its groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def become(account: Account) -> None:
    """Take an account for good, with nothing of root's left. Raises OSError if that did not take.

    Whoever has the same uid can send signals to this process then, and nothing else.
    """
    if account.uid == 0:
        raise PermissionError("root's authority is not for a child to take")
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    keep_capabilities()
    hide()
    _check(account)


def _check(account: Account) -> None:
    """Nothing is believed of the calls above: what is asked for next is asked as this account."""
    ids = (os.getresuid(), os.getresgid(), set(os.getgroups()), capabilities())
    wanted = ((account.uid,) * 3, (account.gid,) * 3, set(account.groups), (0, 0, 0))
    if ids != wanted or _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0):
        raise PermissionError(f"the account was not taken: {ids} instead of {wanted}")


def keep_capabilities(*kept: int) -> None:
    """Give up every capability but these, for good. Raises OSError."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(_CAP_LAST + 1):
        # Not possible without CAP_SETPCAP, which the unit's bounding set does not have; it bounds
        # what an exec() gives, and with no_new_privs that is nothing.
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    effective, permitted, _ = capabilities()
    mask = sum(1 << number for number in kept)
    _set_capabilities(effective & mask, permitted & mask)


def drop_capabilities(*dropped: int) -> None:
    """Give up these capabilities, for good. Raises OSError."""
    effective, permitted, _ = capabilities()
    mask = ~sum(1 << number for number in dropped)
    _set_capabilities(effective & mask, permitted & mask)


def may(capability: int) -> bool:
    """Say whether this thread has a capability. Raises OSError."""
    return bool(capabilities()[0] >> capability & 1)


def capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable set of this thread. Raises OSError."""
    header, sets = _Header(_CAP_VERSION_3, 0), (_Sets * 2)()
    if _libc.capget(ctypes.byref(header), sets):
        _fail("capget")
    low, high = sets
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _set_capabilities(effective: int, permitted: int) -> None:
    header, sets = _Header(_CAP_VERSION_3, 0), (_Sets * 2)()
    for index, one in enumerate(sets):
        one.effective = effective >> 32 * index & 0xFFFFFFFF
        one.permitted = permitted >> 32 * index & 0xFFFFFFFF
    if _libc.capset(ctypes.byref(header), sets):
        _fail("capset")


def hide() -> None:
    """Nobody of the same uid may look into this process, or stop it to. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent(parent: int, number: int) -> None:
    """Have the kernel send a signal when the parent is gone; ends at once if it is already.

    A change of account undoes it.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def no_new_privileges() -> None:
    """Nothing that this process executes gets more than it has. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def name_process(name: str) -> None:
    """Give this thread a name of at most 15 bytes. Raises OSError."""
    buffer = ctypes.create_string_buffer(name.encode(), 16)
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero):
        _fail(f"prctl {option}")


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
