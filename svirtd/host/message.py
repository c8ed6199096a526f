# SPDX-License-Identifier: LGPL-2.1-or-later
"""D-Bus messages to bytes and back.

They come from a bus daemon, which has validated them; what is nonetheless broken raises ValueError.
"""

import functools
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from dbus_next.constants import MessageFlag, MessageType

from svirtd.host.marshal import PAD, READING, U32, UNBOUNDED, encoders, signature_bytes

# The specification's ceiling, in bytes.
MESSAGE_MAX: Final = 128 * 1024 * 1024
_FIELDS_KEPT: Final = 512

_HEADER: Final = struct.Struct("<BBBBIII")
_HEADERS: Final = {ord("l"): _HEADER, ord("B"): struct.Struct(">BBBBIII")}
_TYPES: Final = {kind.value: kind for kind in MessageType}
_FLAGS: Final = tuple(MessageFlag(n) for n in range(8))
# What reading past the end, or into the wrong type, raises.
_BROKEN: Final = (struct.error, IndexError, KeyError, TypeError, RecursionError)
# Header fields by code: attribute and type.
_FIELDS: Final = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    6: ("destination", "s"),
    7: ("sender", "s"),
}
# The types of all fields that are known.
_KINDS: Final = {code: kind for code, (_, kind) in _FIELDS.items()} | {5: "u", 8: "g", 9: "u"}


@dataclass(slots=True)
class Message:
    """One D-Bus message; a header field that is absent is "" or 0. `unix_fds` belong to it.

    `raw` is a method call whose body is not read yet: see read_body. `unread` says why it was not
    read, and will not be. With `fds_lost` it came with descriptors that the kernel did not let us
    have; body and descriptors are empty then.
    """

    message_type: MessageType = MessageType.METHOD_CALL
    path: str = ""
    interface: str = ""
    member: str = ""
    signature: str = ""
    body: list[Any] = field(default_factory=list)
    destination: str = ""
    sender: str = ""
    error_name: str = ""
    reply_serial: int = 0
    serial: int = 0
    flags: MessageFlag = MessageFlag.NONE
    raw: bytes = b""
    body_at: int = 0
    unread: str = ""
    fds_lost: bool = False
    unix_fds: list[int] = field(default_factory=list)


def encode(msg: Message) -> bytes:
    """Return the bytes of a message. Raises ValueError if its body does not fit its signature."""
    body = bytearray()
    if msg.signature:
        try:
            for write, value in zip(encoders(msg.signature), msg.body, strict=True):
                write(body, value)
        except (struct.error, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"body does not fit signature {msg.signature!r}: {error}") from error
    fields = bytearray()
    for code, (name, kind) in _FIELDS.items():
        text = getattr(msg, name)
        if text:
            fields += PAD[-len(fields) & 7]
            fields += _text_field(code, kind, text)
    if msg.reply_serial:
        fields += PAD[-len(fields) & 7] + b"\x05\x01u\0" + U32.pack(msg.reply_serial)
    if msg.signature:
        fields += PAD[-len(fields) & 7] + b"\x08\x01g\0" + signature_bytes(msg.signature)
    if msg.unix_fds:
        fields += PAD[-len(fields) & 7] + b"\x09\x01u\0" + U32.pack(len(msg.unix_fds))
    kind_number, flags = msg.message_type.value, msg.flags.value
    head = _HEADER.pack(ord("l"), kind_number, flags, 1, len(body), msg.serial, len(fields))
    raw = b"".join((head, fields, PAD[-len(fields) & 7], body))
    if len(raw) > MESSAGE_MAX:
        raise ValueError(f"message of {len(raw)} bytes; D-Bus allows {MESSAGE_MAX}")
    return raw


def size(raw: bytes | bytearray, start: int) -> int:
    """Return the length of the message that begins at `start`, of which 16 bytes are there.

    Raises ValueError if these are not the beginning of a message.
    """
    header = _HEADERS.get(raw[start])
    if header is None:
        raise ValueError(f"no message: byte order {raw[start]:#x}")
    _, _, _, version, body, _, fields = header.unpack_from(raw, start)
    length = 16 + (fields + 7) // 8 * 8 + body
    if version != 1 or length > MESSAGE_MAX:
        raise ValueError(f"message of {length} bytes, protocol version {version}")
    return int(length)


def decode_header(raw: bytes) -> tuple[Message, int, int]:
    """Return a message without its body, where that begins, and how many descriptors it has.

    Raises ValueError.
    """
    try:
        reading = READING[raw[0]]
        _, kind, flags, _, _, serial, length = _HEADERS[raw[0]].unpack_from(raw, 0)
        msg = Message(_TYPES[kind], serial=serial, flags=_FLAGS[flags & 7])
        at, end, fds = 16, 16 + length, 0
        while at < end:
            at = (at + 7) & ~7
            code = raw[at]
            value, at = reading.variant(raw, at + 1)
            kind = _KINDS.get(code, value.signature)
            if value.signature != kind:
                raise ValueError(f"header field {code} of type {value.signature!r}")
            if code in _FIELDS:
                setattr(msg, _FIELDS[code][0], value.value)
            elif code == 5:
                msg.reply_serial = value.value
            elif code == 8:
                msg.signature = value.value
            elif code == 9:
                fds = value.value
        return msg, (end + 7) & ~7, fds
    except _BROKEN as error:
        raise ValueError(f"broken header: {error}") from error


def read_body(msg: Message, values_max: int = UNBOUNDED) -> None:
    """Read the body of a method call. Raises ValueError, also for one of more values than that.

    An entry of a dictionary counts as some elements of an array.
    """
    raw, msg.raw = msg.raw, b""
    if raw:
        decode_body(raw, msg.body_at, msg, values_max)


def decode_body(raw: bytes, at: int, msg: Message, values_max: int = UNBOUNDED) -> None:
    """Read the body that begins at `at` into the message. Raises ValueError."""
    try:
        READING[raw[0]].left = values_max
        for read in READING[raw[0]].decoders(msg.signature):
            value, at = read(raw, at)
            msg.body.append(value)
    except _BROKEN as error:
        raise ValueError(f"broken body: {error}") from error


@functools.lru_cache(_FIELDS_KEPT)
def _text_field(code: int, kind: str, text: str) -> bytes:
    raw = text.encode()
    return bytes((code, 1, ord(kind), 0)) + U32.pack(len(raw)) + raw + b"\0"
