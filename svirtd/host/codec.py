# SPDX-License-Identifier: LGPL-2.1-or-later
"""D-Bus messages to bytes and back, compiled once for each signature.

dbus-next walks the signature for each value, checks it first and writes it then; with that, its
marshalling is the ceiling of a service. The bytes are the same, and a test holds them against
dbus-next's own. Messages come from a bus daemon, which has validated them; what is nonetheless
broken raises ValueError here.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.signature import SignatureTree

# The specification's ceilings, in bytes.
MESSAGE_MAX: Final = 128 * 1024 * 1024
_ARRAY_MAX: Final = 64 * 1024 * 1024
# Signatures come from callers: what is kept of them is bounded.
_SIGNATURES_KEPT: Final = 512

_PAD: Final = tuple(bytes(n) for n in range(8))
_U32: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<BBBBIII")
_TYPES: Final = {kind.value: kind for kind in MessageType}
_FLAGS: Final = tuple(MessageFlag(n) for n in range(8))
_NUMBERS: Final = {
    "n": struct.Struct("<h"),
    "q": struct.Struct("<H"),
    "i": struct.Struct("<i"),
    "u": _U32,
    "x": struct.Struct("<q"),
    "t": struct.Struct("<Q"),
    "d": struct.Struct("<d"),
    "h": _U32,
}
# Header fields by code: attribute and type.
_FIELDS: Final = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    6: ("destination", "s"),
    7: ("sender", "s"),
}

# Types by how they are aligned and written in arrays.
_WIDE: Final = frozenset("xtd({")
_BYTE: Final = frozenset("y")
_PAIR: Final = frozenset("{")

Encoder = Callable[[bytearray, Any], None]
Decoder = Callable[[bytes, int], tuple[Any, int]]


class Variant(NamedTuple):
    """A value with its signature."""

    signature: str
    value: Any


@dataclass(slots=True)
class Message:
    """One D-Bus message; a header field that is absent is "" or 0. `unix_fds` belong to it."""

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
    unix_fds: list[int] = field(default_factory=list)


def encode(msg: Message) -> bytes:
    """Return the bytes of a message. Raises ValueError if its body does not fit its signature."""
    body = bytearray()
    if msg.signature:
        try:
            encoders = _body_encoders(msg.signature)
            for write, value in zip(encoders, msg.body, strict=True):
                write(body, value)
        except (struct.error, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"body does not fit signature {msg.signature!r}: {error}") from error
    fields = bytearray()
    for code, (name, kind) in _FIELDS.items():
        text = getattr(msg, name)
        if text:
            fields += _PAD[-len(fields) & 7]
            fields += _text_field(code, kind, text)
    if msg.reply_serial:
        fields += _PAD[-len(fields) & 7] + b"\x05\x01u\0" + _U32.pack(msg.reply_serial)
    if msg.signature:
        fields += _PAD[-len(fields) & 7] + b"\x08\x01g\0" + _signature(msg.signature)
    if msg.unix_fds:
        fields += _PAD[-len(fields) & 7] + b"\x09\x01u\0" + _U32.pack(len(msg.unix_fds))
    kind_number, flags = msg.message_type.value, msg.flags.value
    head = _HEADER.pack(ord("l"), kind_number, flags, 1, len(body), msg.serial, len(fields))
    raw = b"".join((head, fields, _PAD[-len(fields) & 7], body))
    if len(raw) > MESSAGE_MAX:
        raise ValueError(f"message of {len(raw)} bytes; D-Bus allows {MESSAGE_MAX}")
    return raw


def size(raw: bytes | bytearray, start: int) -> int:
    """Return the length of the message that begins at `start`, of which 16 bytes are there.

    Raises ValueError if these are not the beginning of a message that we can read.
    """
    if raw[start] != ord("l"):
        raise ValueError("a big-endian message; D-Bus on one host has the host's byte order")
    _, _, _, version, body, _, fields = _HEADER.unpack_from(raw, start)
    length = 16 + (fields + 7) // 8 * 8 + body
    if version != 1 or length > MESSAGE_MAX:
        raise ValueError(f"message of {length} bytes, protocol version {version}")
    return int(length)


def decode(raw: bytes) -> tuple[Message, int]:
    """Return a message and how many descriptors belong to it. Raises ValueError."""
    try:
        return _decode(raw)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"broken message: {error}") from error


def _decode(raw: bytes) -> tuple[Message, int]:
    _, kind, flags, _, _, serial, length = _HEADER.unpack_from(raw, 0)
    msg = Message(_TYPES[kind], serial=serial, flags=_FLAGS[flags & 7])
    at, end, fds = 16, 16 + length, 0
    while at < end:
        at = (at + 7) & ~7
        code = raw[at]
        value, at = _read_variant(raw, at + 1)
        if code in _FIELDS:
            setattr(msg, _FIELDS[code][0], value.value)
        elif code == 5:
            msg.reply_serial = value.value
        elif code == 8:
            msg.signature = value.value
        elif code == 9:
            fds = value.value
    at = (end + 7) & ~7
    for read in _body_decoders(msg.signature):
        value, at = read(raw, at)
        msg.body.append(value)
    return msg, fds


@functools.lru_cache(_SIGNATURES_KEPT)
def _text_field(code: int, kind: str, text: str) -> bytes:
    raw = text.encode()
    return bytes((code, 1, ord(kind), 0)) + _U32.pack(len(raw)) + raw + b"\0"


def _signature(text: str) -> bytes:
    raw = text.encode("ascii")
    return bytes((len(raw),)) + raw + b"\0"


def _types(signature: str) -> Sequence[Any]:
    """Parse a signature by dbus-next's rules (and past its cache, which never forgets)."""
    try:
        return list(SignatureTree(signature).types)
    except Exception as error:
        raise ValueError(f"bad signature {signature!r}") from error


# -- writing ---------------------------------------------------------------------------------


@functools.lru_cache(_SIGNATURES_KEPT)
def _body_encoders(signature: str) -> tuple[Encoder, ...]:
    return tuple(_encoder(one) for one in _types(signature))


@functools.lru_cache(_SIGNATURES_KEPT)
def _variant_encoder(signature: str) -> tuple[bytes, Encoder]:
    (one,) = _types(signature)
    return _signature(signature), _encoder(one)


def _encoder(kind: Any) -> Encoder:
    match kind.token:
        case "s" | "o":
            return _write_text
        case "g":
            return lambda out, value: out.extend(_signature(value))
        case "v":
            return _write_variant
        case "y":
            return lambda out, value: out.append(value)
        case "b":
            return _write_boolean
        case "a":
            return _array_encoder(kind.children[0])
        case "(" | "{":
            return _struct_encoder([_encoder(child) for child in kind.children])
        case number:
            return _number_encoder(_NUMBERS[number])


def _write_text(out: bytearray, value: str) -> None:
    raw = value.encode()
    if 0 in raw:
        raise ValueError("a text with NUL")
    out += _PAD[-len(out) & 3]
    out += _U32.pack(len(raw))
    out += raw
    out.append(0)


def _write_boolean(out: bytearray, value: bool) -> None:
    out += _PAD[-len(out) & 3]
    out += b"\1\0\0\0" if value else b"\0\0\0\0"


def _write_variant(out: bytearray, value: Variant) -> None:
    signature, write = _variant_encoder(value[0])
    out += signature
    write(out, value[1])


def _number_encoder(form: struct.Struct) -> Encoder:
    mask, pack = form.size - 1, form.pack

    def write(out: bytearray, value: float) -> None:
        out += _PAD[-len(out) & mask]
        out += pack(value)

    return write


def _struct_encoder(parts: Sequence[Encoder]) -> Encoder:
    def write(out: bytearray, value: Sequence[Any]) -> None:
        out += _PAD[-len(out) & 7]
        for part, one in zip(parts, value, strict=True):
            part(out, one)

    return write


def _array_encoder(kind: Any) -> Encoder:
    if kind.token in _BYTE:
        return _write_bytes
    one = _encoder(kind)
    mask = 7 if kind.token in _WIDE else 0
    items: Callable[[Any], Any] = dict.items if kind.token in _PAIR else iter

    def write(out: bytearray, value: Any) -> None:
        out += _PAD[-len(out) & 3]
        at = len(out)
        out += b"\0\0\0\0"
        out += _PAD[-len(out) & mask]
        start = len(out)
        for item in items(value):
            one(out, item)
        if len(out) - start > _ARRAY_MAX:
            raise ValueError(f"array of {len(out) - start} bytes; D-Bus allows {_ARRAY_MAX}")
        _U32.pack_into(out, at, len(out) - start)

    return write


def _write_bytes(out: bytearray, value: bytes) -> None:
    out += _PAD[-len(out) & 3]
    out += _U32.pack(len(value))
    out += value


# -- reading ---------------------------------------------------------------------------------


@functools.lru_cache(_SIGNATURES_KEPT)
def _body_decoders(signature: str) -> tuple[Decoder, ...]:
    return tuple(_decoder(one) for one in _types(signature))


@functools.lru_cache(_SIGNATURES_KEPT)
def _variant_decoder(raw: bytes) -> tuple[str, Decoder]:
    signature = raw.decode("ascii")
    (one,) = _types(signature)
    return signature, _decoder(one)


def _decoder(kind: Any) -> Decoder:
    match kind.token:
        case "s" | "o":
            return _read_text
        case "g":
            return _read_signature
        case "v":
            return _read_variant
        case "y":
            return lambda raw, at: (raw[at], at + 1)
        case "b":
            return _read_boolean
        case "a":
            return _array_decoder(kind.children[0])
        case "(":
            return _struct_decoder([_decoder(child) for child in kind.children])
        case number:
            return _number_decoder(_NUMBERS[number])


def _read_text(raw: bytes, at: int) -> tuple[str, int]:
    at = (at + 3) & ~3
    end = at + 4 + _U32.unpack_from(raw, at)[0]
    if end >= len(raw):
        raise ValueError("a text past the end of its message")
    return raw[at + 4 : end].decode(), end + 1


def _read_signature(raw: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + raw[at]
    return raw[at + 1 : end].decode("ascii"), end + 1


def _read_variant(raw: bytes, at: int) -> tuple[Variant, int]:
    end = at + 1 + raw[at]
    signature, read = _variant_decoder(raw[at + 1 : end])
    value, at = read(raw, end + 1)
    return Variant(signature, value), at


def _read_boolean(raw: bytes, at: int) -> tuple[bool, int]:
    at = (at + 3) & ~3
    return _U32.unpack_from(raw, at)[0] != 0, at + 4


def _number_decoder(form: struct.Struct) -> Decoder:
    mask, width, unpack = form.size - 1, form.size, form.unpack_from

    def read(raw: bytes, at: int) -> tuple[Any, int]:
        at = (at + mask) & ~mask
        return unpack(raw, at)[0], at + width

    return read


def _struct_decoder(parts: Sequence[Decoder]) -> Decoder:
    def read(raw: bytes, at: int) -> tuple[list[Any], int]:
        at = (at + 7) & ~7
        values = []
        for part in parts:
            value, at = part(raw, at)
            values.append(value)
        return values, at

    return read


def _array_decoder(kind: Any) -> Decoder:
    mask = 7 if kind.token in _WIDE else 0

    def bounds(raw: bytes, at: int) -> tuple[int, int]:
        at = (at + 3) & ~3
        length = _U32.unpack_from(raw, at)[0]
        start = (at + 4 + mask) & ~mask
        if start + length > len(raw):
            raise ValueError("an array past the end of its message")
        return start, start + length

    if kind.token in _BYTE:

        def read_bytes(raw: bytes, at: int) -> tuple[bytes, int]:
            start, end = bounds(raw, at)
            return raw[start:end], end

        return read_bytes
    if kind.token in _PAIR:
        read_key, read_value = (_decoder(child) for child in kind.children)

        def read_map(raw: bytes, at: int) -> tuple[dict[Any, Any], int]:
            at, end = bounds(raw, at)
            values = {}
            while at < end:
                key, at = read_key(raw, (at + 7) & ~7)
                values[key], at = read_value(raw, at)
            return values, at

        return read_map
    read_one = _decoder(kind)

    def read_list(raw: bytes, at: int) -> tuple[list[Any], int]:
        at, end = bounds(raw, at)
        values = []
        while at < end:
            value, at = read_one(raw, at)
            values.append(value)
        return values, at

    return read_list
