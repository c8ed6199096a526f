# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which file systems an object may lie on, by the names that the kernel gives their kinds. Pure."""

from typing import Final

# What keeps a label as long as the file, and answers from the kernel: a list of what is allowed,
# since a kind that nobody thought of must not be trusted by default. Block devices lie on devtmpfs.
ALLOWED: Final = frozenset(
    {
        "bcachefs",
        "btrfs",
        "ceph",
        "devtmpfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "gfs2",
        "jfs",
        "nfs",
        "nfs4",
        "nilfs2",
        "ocfs2",
        "overlay",
        "tmpfs",
        "xfs",
        "zfs",
    }
)
UNKNOWN: Final = "unknown"


def may_hang(kind: str) -> bool:
    """Say whether a user's process answers for such a file system: it may choose never to.

    The kernel does not even end a process that waits for such an answer.
    """
    return kind.partition(".")[0] in ("fuse", "fuseblk")


def problem(kind: str) -> str:
    """Return what is wrong with a file system of this kind, empty if files on it are used."""
    if kind in ALLOWED:
        return ""
    if may_hang(kind):
        return (
            f"on a file system of kind {kind}, where a user's process answers for the kernel; move "
            "the file to one of the kernel's own (ext4, xfs, btrfs, tmpfs)"
        )
    return (
        f"on a file system of kind {kind}, which is none of those whose files svirtd labels "
        f"({', '.join(sorted(ALLOWED))}); move the file to one of them"
    )
