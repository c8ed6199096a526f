# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which file systems an object may lie on, by the names that the kernel gives their kinds. Pure."""

import enum
from dataclasses import dataclass
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
        "hugetlbfs",
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
# What keeps none, or whose server decides, and is used all the same where the mount says the label
# of all that is on it: the kernel keeps that one.
_BY_MOUNT: Final = ALLOWED | {
    "9p",
    "cifs",
    "exfat",
    "iso9660",
    "msdos",
    "ntfs3",
    "smb3",
    "udf",
    "vfat",
    "virtiofs",
}
# The boolean that lets every VM use every file of a kind, whatever it carries, in policies that
# have it.
BOOLEANS: Final = {
    "cifs": "virt_use_samba",
    "nfs": "virt_use_nfs",
    "nfs4": "virt_use_nfs",
    "smb3": "virt_use_samba",
}
UNKNOWN: Final = "unknown"


class Labels(enum.StrEnum):
    """Where the labels of a mount's files come from."""

    KEPT = "kept"
    """Each file has its own, which can be changed."""
    FIXED = "fixed"
    """All have the one that the mount's option context= says."""
    NONE = "none"
    """The kernel makes one up for all of them."""


@dataclass(frozen=True, slots=True)
class Mount:
    """Where an object lies: the kind of the file system, where that is mounted, and its labels.

    `opened_by` is the boolean that lets VMs use all of its files now, empty if none does.
    """

    kind: str = UNKNOWN
    point: str = ""
    labels: Labels = Labels.KEPT
    opened_by: str = ""


def may_hang(kind: str) -> bool:
    """Say whether a user's process answers for such a file system: it may choose never to.

    The kernel does not even end a process that waits for such an answer.
    """
    return kind.partition(".")[0] in ("fuse", "fuseblk")


def problem(mount: Mount, target: str = "") -> str:
    """Return what is wrong with a mount, and what can be done; empty if files on it are used.

    `target` is the label that a file is to have there, which a mount might give it.
    """
    kind = mount.kind
    what = f"on a file system of kind {kind}" + (f", mounted at {mount.point}" * bool(mount.point))
    if may_hang(kind):
        # With context=, too: its label would be the kernel's, and its content a user's to exchange.
        return (
            f"{what}, where a user's process answers for the kernel; move the file to one of the "
            "kernel's own (ext4, xfs, btrfs, tmpfs)"
        )
    if kind not in _BY_MOUNT:
        return (
            f"{what}, which is none of those whose files svirtd labels "
            f"({', '.join(sorted(ALLOWED))}); move the file to one of them"
        )
    if mount.labels is Labels.FIXED or (kind in ALLOWED and mount.labels is Labels.KEPT):
        return ""
    option = f"the option context={quoted(target)}" if target else "an option context="
    text = (
        f"{what}, which cannot keep a label; move the file to one with extended attributes (ext4, "
        f"xfs, btrfs, tmpfs), or mount this one with {option}, by which everything on it has that "
        "label"
    )
    if kind in ("nfs", "nfs4"):
        text += (
            "; with NFS 4.2, files keep labels of their own if the server exports them with "
            "security_label"
        )
    if mount.opened_by:
        text += (
            f". The boolean {mount.opened_by} is on: by it every VM uses every such file that its "
            "user may open, unlabelled, and nothing keeps the VMs apart there"
        )
    elif kind in BOOLEANS:
        text += f". The boolean {BOOLEANS[kind]} is no way: it opens every such file to every VM"
    return text


def quoted(label: str) -> str:
    """Return a label as an option of mount takes it: what has a comma, in quotes."""
    return f'"{label}"' if "," in label else label
