# SPDX-License-Identifier: LGPL-2.1-or-later
"""D-Bus values to bytes and back, compiled once for each signature.

dbus-next walks the signature for each value, checks it first and writes it then; with that, its
marshalling is the ceiling of a service. The bytes are the same, and a test holds them against
dbus-next's own. What does not fit its signature raises ValueError, or what struct and the built-in
types raise for it; host/message.py makes one error of these.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from dbus_next.signature import SignatureTree

# The specification's ceiling, in bytes.
_ARRAY_MAX: Final = 64 * 1024 * 1024
# Signatures come from callers: what is kept of them is bounded.
_SIGNATURES_KEPT: Final = 512

PAD: Final = tuple(bytes(n) for n in range(8))
U32: Final = struct.Struct("<I")
_NUMBERS: Final = {
    "n": struct.Struct("<h"),
    "q": struct.Struct("<H"),
    "i": struct.Struct("<i"),
    "u": U32,
    "x": struct.Struct("<q"),
    "t": struct.Struct("<Q"),
    "d": struct.Struct("<d"),
    "h": U32,
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


def signature_bytes(text: str) -> bytes:
    """Return a signature as it stands in a message."""
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
def encoders(signature: str) -> tuple[Encoder, ...]:
    """Return what writes each value of a body of this signature. Raises ValueError."""
    return tuple(_encoder(one) for one in _types(signature))


@functools.lru_cache(_SIGNATURES_KEPT)
def _variant_encoder(signature: str) -> tuple[bytes, Encoder]:
    (one,) = _types(signature)
    return signature_bytes(signature), _encoder(one)


def _encoder(kind: Any) -> Encoder:
    match kind.token:
        case "s" | "o":
            return _write_text
        case "g":
            return lambda out, value: out.extend(signature_bytes(value))
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
    out += PAD[-len(out) & 3]
    out += U32.pack(len(raw))
    out += raw
    out.append(0)


def _write_boolean(out: bytearray, value: bool) -> None:
    out += PAD[-len(out) & 3]
    out += b"\1\0\0\0" if value else b"\0\0\0\0"


def _write_variant(out: bytearray, value: Variant) -> None:
    signature, write = _variant_encoder(value[0])
    out += signature
    write(out, value[1])


def _number_encoder(form: struct.Struct) -> Encoder:
    mask, pack = form.size - 1, form.pack

    def write(out: bytearray, value: float) -> None:
        out += PAD[-len(out) & mask]
        out += pack(value)

    return write


def _struct_encoder(parts: Sequence[Encoder]) -> Encoder:
    def write(out: bytearray, value: Sequence[Any]) -> None:
        out += PAD[-len(out) & 7]
        for part, one in zip(parts, value, strict=True):
            part(out, one)

    return write


def _array_encoder(kind: Any) -> Encoder:
    if kind.token in _BYTE:
        return _write_bytes
    if kind.signature == "{sv}":
        return _write_options
    one = _encoder(kind)
    mask = 7 if kind.token in _WIDE else 0
    items: Callable[[Any], Any] = dict.items if kind.token in _PAIR else iter

    def write(out: bytearray, value: Any) -> None:
        out += PAD[-len(out) & 3]
        at = len(out)
        out += b"\0\0\0\0"
        out += PAD[-len(out) & mask]
        start = len(out)
        for item in items(value):
            one(out, item)
        _close_array(out, at, start)

    return write


def _write_options(out: bytearray, value: dict[str, Variant]) -> None:
    """An a{sv}: every second message has some, and its keys are the same each time."""
    out += PAD[-len(out) & 3]
    at = len(out)
    out += b"\0\0\0\0"
    out += PAD[-len(out) & 7]
    start = len(out)
    for key, (signature, inner) in value.items():
        out += PAD[-len(out) & 7]
        head, write = _option_encoder(key, signature)
        out += head
        write(out, inner)
    _close_array(out, at, start)


@functools.lru_cache(_SIGNATURES_KEPT)
def _option_encoder(key: str, signature: str) -> tuple[bytes, Encoder]:
    head = bytearray()
    _write_text(head, key)
    raw, write = _variant_encoder(signature)
    return bytes(head) + raw, write


def _close_array(out: bytearray, at: int, start: int) -> None:
    """Write the length of an array, which begins at `start`, into its place."""
    length = len(out) - start
    if length > _ARRAY_MAX:
        raise ValueError(f"array of {length} bytes; D-Bus allows {_ARRAY_MAX}")
    U32.pack_into(out, at, length)


def _write_bytes(out: bytearray, value: bytes) -> None:
    out += PAD[-len(out) & 3]
    out += U32.pack(len(value))
    out += value


# -- reading ---------------------------------------------------------------------------------


# A few bytes make a dictionary of hundreds in memory, which takes as long to read as some texts.
_ENTRY_COSTS: Final = 8
UNBOUNDED: Final = 1 << 62


class Reading:
    """What reads values in one byte order: every sender chooses its own."""

    def __init__(self, order: str) -> None:
        self.u32 = struct.Struct(order + "I")
        # What is left of what reading one body may make: set before it is read.
        self.left = UNBOUNDED
        self._numbers = {
            kind: struct.Struct(order + form.format[1:]) for kind, form in _NUMBERS.items()
        }
        self.decoders = functools.lru_cache(_SIGNATURES_KEPT)(self._body)
        self._variant = functools.lru_cache(_SIGNATURES_KEPT)(self._variant_body)

    def _body(self, signature: str) -> tuple[Decoder, ...]:
        """Return what reads each value of a body of this signature. Raises ValueError."""
        return tuple(self._decoder(one) for one in _types(signature))

    def _variant_body(self, raw: bytes) -> tuple[str, Decoder]:
        signature = raw.decode("ascii")
        (one,) = _types(signature)
        return signature, self._decoder(one)

    def _decoder(self, kind: Any) -> Decoder:
        match kind.token:
            case "s" | "o":
                return self._text
            case "g":
                return _read_signature
            case "v":
                return self.variant
            case "y":
                return lambda raw, at: (raw[at], at + 1)
            case "b":
                return self._boolean
            case "a":
                return self._array(kind.children[0])
            case "(":
                return _struct_decoder([self._decoder(child) for child in kind.children])
            case number:
                return _number_decoder(self._numbers[number])

    def _text(self, raw: bytes, at: int) -> tuple[str, int]:
        at = (at + 3) & ~3
        end = at + 4 + self.u32.unpack_from(raw, at)[0]
        if end >= len(raw):
            raise ValueError("a text past the end of its message")
        text = raw[at + 4 : end].decode()
        if "\0" in text:
            # It could not be sent back in an answer.
            raise ValueError("a text with NUL")
        return text, end + 1

    def variant(self, raw: bytes, at: int) -> tuple[Variant, int]:
        """Return the variant at this place and where it ends."""
        end = at + 1 + raw[at]
        signature, read = self._variant(raw[at + 1 : end])
        value, at = read(raw, end + 1)
        return Variant(signature, value), at

    def _boolean(self, raw: bytes, at: int) -> tuple[bool, int]:
        at = (at + 3) & ~3
        return self.u32.unpack_from(raw, at)[0] != 0, at + 4

    def _array(self, kind: Any) -> Decoder:
        mask = 7 if kind.token in _WIDE else 0

        def bounds(raw: bytes, at: int) -> tuple[int, int]:
            at = (at + 3) & ~3
            length = self.u32.unpack_from(raw, at)[0]
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
            read_key, read_value = (self._decoder(child) for child in kind.children)

            def read_map(raw: bytes, at: int) -> tuple[dict[Any, Any], int]:
                at, end = bounds(raw, at)
                values = {}
                while at < end:
                    self._pay(_ENTRY_COSTS)
                    key, at = read_key(raw, (at + 7) & ~7)
                    values[key], at = read_value(raw, at)
                return values, at

            return read_map
        read_one = self._decoder(kind)

        def read_list(raw: bytes, at: int) -> tuple[list[Any], int]:
            at, end = bounds(raw, at)
            values = []
            while at < end:
                self._pay(1)
                value, at = read_one(raw, at)
                values.append(value)
            return values, at

        return read_list

    def _pay(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise ValueError("more values than any call has")


READING: Final = {ord("l"): Reading("<"), ord("B"): Reading(">")}


def _read_signature(raw: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + raw[at]
    return raw[at + 1 : end].decode("ascii"), end + 1


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
