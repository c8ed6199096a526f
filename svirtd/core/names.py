# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM may be called, and the names derived from that. Pure."""

import hashlib
import re

from svirtd.errors import InvalidArgs

# 60 bytes, each escaped to four, still make a unit name below systemd's 255.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._@:+-]{0,58}[A-Za-z0-9._@:+-])?")
_NOT_PLAIN = re.compile(rb"[^A-Za-z0-9]|^[0-9]")
_SOCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_RESOURCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNIT_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_SHOWN_CHARS = 64
# All of printable ASCII but quotes, the backslash, and what markup and templates begin with.
_JUDGED_PLAIN = frozenset(chr(n) for n in range(0x20, 0x7F)) - frozenset("'\"\\<>&$")
_JUDGED_CHARS = 120
UNIT_PREFIX = "svirt-"


def check_vm_name(name: str) -> str:
    """Return `name` if it can be a VM's. Raises InvalidArgs that says the rule."""
    if not _NAME.fullmatch(name):
        raise InvalidArgs(
            f"name {shown(name)} is not a VM name; a name has 1 to 60 ASCII letters, digits, "
            "blanks or . _ @ : + -, begins with a letter or digit and does not end with a blank"
        )
    return name


def check_socket_name(name: str) -> str:
    """Return `name` if it can be a socket's in a runtime folder. Raises InvalidArgs."""
    if not _SOCKET.fullmatch(name):
        raise InvalidArgs(
            f"socket {shown(name)} is not a socket name; it has 1 to 32 ASCII letters, digits or "
            ". _ -, and begins with a letter or digit"
        )
    return name


def check_group_name(name: str) -> str:
    """Return `name` if it can be a group's, or a wall's. Raises InvalidArgs that says the rule."""
    if not _GROUP.fullmatch(name):
        raise InvalidArgs(
            f"group {shown(name)} is not a group name; it has 1 to 32 ASCII letters, digits or "
            ". _ -, and begins with a letter or digit"
        )
    return name


def check_resource_id(text: str) -> str:
    """Return `text` if a request can call a resource so. Raises InvalidArgs."""
    if not _RESOURCE_ID.fullmatch(text):
        raise InvalidArgs(
            f"id {shown(text)} cannot be a resource's; it has 1 to 32 ASCII letters, digits or "
            "_ -, and begins with a letter or digit"
        )
    return text


def check_uuid(text: str) -> str:
    """Return `text` in lower case if it is a UUID. Raises InvalidArgs."""
    if not _UUID.fullmatch(text):
        raise InvalidArgs(
            f"uuid {shown(text)} is not a UUID; expected 8-4-4-4-12 hexadecimal digits"
        )
    return text.lower()


def unit_name(vm_name: str) -> str:
    """Return the transient unit of a VM, its name escaped as systemd-escape does it."""
    escaped = "".join(c if c in _UNIT_PLAIN else f"\\x{ord(c):02x}" for c in vm_name)
    return f"{UNIT_PREFIX}{escaped}.service"


def machine_name(vm_name: str) -> str:
    """Return a name that machined takes for this VM: a host name of at most 64 characters."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", vm_name)
    return re.sub(r"\.+", ".", name).strip(".-") or "vm"


def machine_id(vm_id: str, uuid: str) -> bytes:
    """Return the 16 bytes by which machined knows a VM: its UUID, or made from its Id."""
    if uuid:
        return bytes.fromhex(uuid.replace("-", ""))
    return hashlib.blake2b(vm_id.encode(), digest_size=16).digest()


def shown(text: str) -> str:
    """Return what a caller sent quoted and cut for a message, without control characters."""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def shown_to_judge(text: str) -> str:
    """Return a name or path for a dialog in which somebody decides by what it says.

    Whoever wrote it wants a yes. So it is printable ASCII alone (no letter that looks like another,
    none that turns the direction of reading), has nothing that markup, a template or a second
    quoted name could be made of, and of a long one both ends are shown: a path is known by its
    beginning and by its end.
    """
    told = "".join(c if c in _JUDGED_PLAIN else f"\\u{ord(c):04x}" for c in text)
    if len(told) > _JUDGED_CHARS:
        half = _JUDGED_CHARS // 2
        told = f"{told[:half]} ... {told[-half:]}"
    return f"'{told}'"


def escape_path(label: str) -> str:
    """Return `label` as one element of an object path, escaped as sd-bus does it."""
    if not label:
        return "_"
    return _NOT_PLAIN.sub(lambda found: b"_%02x" % found[0][0], label.encode()).decode()


def unescape_path(element: str) -> str | None:
    """Return the label behind an escaped path element, None if it is not one."""
    if element == "_":
        return ""
    if not re.fullmatch(r"(?:[A-Za-z0-9]|_[0-9a-f]{2})+", element):
        return None
    raw = re.sub(r"_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), element)
    try:
        label = raw.encode("latin-1").decode()
    except UnicodeDecodeError:
        return None
    # Only the canonical spelling is an object: two paths for one VM would confuse every cache.
    return label if escape_path(label) == element else None
