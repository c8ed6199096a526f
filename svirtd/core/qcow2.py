# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a qcow2 image says that it lies over: read from its first bytes, with strict bounds. Pure.

A guest has written what is read here, or could have. Everything is taken for a lie until it fits:
what is not understood to its end is refused, since QEMU might see in it another file than svirtd
does. Nothing is probed: what a file is, its image says, and a raw one is the end of its chain.

A lie gains nothing in any case: what an image names is opened by the rights of whoever asked, and
labelled by the same rules as if it had been named outright; and QEMU opens it once more by itself,
under the VM's label.
"""

import re
import struct
from dataclasses import dataclass
from typing import Final

from svirtd.core.model import Format
from svirtd.core.names import shown

# Files below one image: more than anybody's snapshots, and what svirtd opens for one request.
CHAIN_MAX: Final = 16
# The first read; enough for every image with clusters of the usual size.
HEAD_BYTES: Final = 1 << 16
NAME_MAX_BYTES: Final = 1023

_MAGIC: Final = b"QFI\xfb"
# magic, version, where and how long the backing name is, bits of a cluster, size of the disk.
_FIRST: Final = struct.Struct(">4sIQIIQ")
_BITS: Final = range(9, 22)
_V2_BYTES: Final = 72
_V3_BYTES: Final = 104
_FEATURES_AT: Final = 72
_HEADER_LENGTH_AT: Final = 100
_EXTENSION: Final = struct.Struct(">II")
_EXTENSIONS_MAX: Final = 256
_END: Final = 0
_BACKING_FORMAT: Final = 0xE2792ACA
_DATA_FILE: Final = 0x44415441
_HAS_DATA_FILE: Final = 1 << 2
# dirty, corrupt, data file, compression type, extended second tables
_KNOWN_FEATURES: Final = 0b11111
_SCHEME: Final = re.compile(r"[^/:]*:")


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says: the size of its disk in bytes, the file it lies over and what that is
    (empty and None: none), and the file that its data is in (empty: itself)."""

    size: int
    backing: str = ""
    backing_format: Format | None = None
    data_file: str = ""


def head_bytes(head: bytes) -> int:
    """Return how many of an image's first bytes parse() wants to see; at most 2 MiB.

    `head` are the first HEAD_BYTES. Raises ValueError for what is no such image.
    """
    return max(HEAD_BYTES, _cluster(head))


def parse(head: bytes) -> Header:
    """Read the header from the first bytes of an image, of which there may be fewer than wanted.

    Raises ValueError that says what is wrong with it, and what to do.
    """
    cluster = _cluster(head)
    _, version, name_at, name_bytes, _, size = _FIRST.unpack_from(head)
    header_bytes, features = _V2_BYTES, 0
    if version == 3:
        _within(head, _V3_BYTES, "its header")
        (features,) = struct.unpack_from(">Q", head, _FEATURES_AT)
        (header_bytes,) = struct.unpack_from(">I", head, _HEADER_LENGTH_AT)
        if not _V3_BYTES <= header_bytes <= cluster or header_bytes % 8:
            raise ValueError(f"its header says that it has {header_bytes} bytes")
        if features & ~_KNOWN_FEATURES:
            raise ValueError(
                f"it has features that svirtd does not know ({features & ~_KNOWN_FEATURES:#x}), "
                "which might name other files; use an image without them"
            )
    backing = ""
    end = min(cluster, len(head))
    if name_at:
        if not 0 < name_bytes <= NAME_MAX_BYTES:
            raise ValueError(
                f"the name of the file below it has {name_bytes} bytes; the format allows 1 to "
                f"{NAME_MAX_BYTES}"
            )
        if not header_bytes <= name_at <= cluster - name_bytes:
            raise ValueError("the name of the file below it lies outside of its first cluster")
        _within(head, name_at + name_bytes, "the name of the file below it")
        backing = _name(head[name_at : name_at + name_bytes], "the file below it")
        end = name_at
    found = _extensions(head, header_bytes, end)
    form = None
    if backing:
        form = _format(found.get(_BACKING_FORMAT), backing)
    data_file = ""
    if features & _HAS_DATA_FILE:
        if _DATA_FILE not in found:
            raise ValueError(
                "its data is in another file that it does not name; name it in the image (qemu-img "
                "amend -o data_file=/PATH IMAGE)"
            )
        data_file = _name(found[_DATA_FILE], "its data file")
        if not data_file.startswith("/"):
            # QEMU takes it from where its own process happens to be, and nobody knows that here.
            raise ValueError(
                f"it names its data file {shown(data_file)} without a folder; give it an absolute "
                "path (qemu-img amend -o data_file=/PATH IMAGE)"
            )
    return Header(size, backing, form, data_file)


def _cluster(head: bytes) -> int:
    _within(head, _V2_BYTES, "its header")
    magic, version, _, _, bits, _ = _FIRST.unpack_from(head)
    if magic != _MAGIC:
        raise ValueError("it does not begin as one does; say format 'raw' if it is none")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}, and versions 2 and 3 are known")
    if bits not in _BITS:
        raise ValueError(f"its clusters have 2^{bits} bytes; the format allows 2^9 to 2^21")
    return 1 << int(bits)


def _within(head: bytes, end: int, what: str) -> None:
    if end > len(head):
        raise ValueError(f"{what} is cut off: the file ends before it does")


def _extensions(head: bytes, at: int, end: int) -> dict[int, bytes]:
    """Return the header's extensions, each with what is in it. None goes on past `end`."""
    found: dict[int, bytes] = {}
    for _ in range(_EXTENSIONS_MAX):
        if at > end - _EXTENSION.size:
            return found  # QEMU, too, takes the end for the end
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == _END:
            return found
        at += _EXTENSION.size
        if length > end - at:
            raise ValueError(f"the extension {kind:#x} of its header has {length} bytes, too many")
        if kind in found:
            raise ValueError(f"its header has the extension {kind:#x} twice")
        found[kind] = head[at : at + length]
        at += -(-length // 8) * 8
    raise ValueError(f"its header has more than {_EXTENSIONS_MAX} extensions")


def _name(raw: bytes, what: str) -> str:
    """Return a name that can be opened and shown, and that nobody reads in another way."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or len(raw) > NAME_MAX_BYTES or not name.isprintable():
        raise ValueError(f"the name that it has for {what} is {raw[:64]!r}; rename that file")
    if _SCHEME.match(name):
        raise ValueError(
            f"it names {what} as {shown(name[:64])}, which is no path; svirtd labels files, and "
            "follows no protocol and no json: give it a path (qemu-img rebase -u -b /PATH -F "
            "FORMAT IMAGE), or say format 'raw' and name each file yourself"
        )
    return name


def _format(raw: bytes | None, backing: str) -> Format:
    if raw is None:
        raise ValueError(
            f"it lies over {shown(backing)} and does not say of what format that is; it is not "
            "guessed, since a guest that writes a raw disk could make it look like any: say it in "
            "the image (qemu-img rebase -u -b FILE -F FORMAT IMAGE)"
        )
    try:
        return Format(raw.decode("ascii", "replace"))
    except ValueError:
        raise ValueError(
            f"it lies over {shown(backing)} of format {raw[:16]!r}, and svirtd follows 'raw' and "
            "'qcow2' only; convert that file, or say format 'raw' and name each file yourself"
        ) from None
