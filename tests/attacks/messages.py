# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random D-Bus messages: right ones by the contract, odd ones that a bus lets through, broken ones.

The same seed makes the same messages. The bytes are made here, not by the code under test.
"""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from svirtd.api import contract, wire
from tests.support import GROUP, JOB, MANAGER, NAME, ROOT, VM

_NUMBERS: Final = {
    "y": ("B", 1, 0, 2**8 - 1),
    "n": ("h", 2, -(2**15), 2**15 - 1),
    "q": ("H", 2, 0, 2**16 - 1),
    "i": ("i", 4, -(2**31), 2**31 - 1),
    "u": ("I", 4, 0, 2**32 - 1),
    "x": ("q", 8, -(2**63), 2**63 - 1),
    "t": ("Q", 8, 0, 2**64 - 1),
    "h": ("I", 4, 0, 2**32 - 1),
}
_ALIGNED: Final = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}
_TEXTS: Final = (
    "", "vm", "x", "nobody", "secret", "qmp", "exclusive", "readonly", "public", "group", "raw",
    "isolated", "release", "caller", "root", "0", "-1", "4294967296", "/", "/etc/shadow",
    "/dev/sda", "/proc/self/mem", "/proc/1/root/etc/passwd", "/dev/null", "/tmp/../etc/passwd",
    "//", "/tmp/x",
    "../../../etc/passwd", ":1.1", "org.svirt1", "org.svirt1.VM", "org.svirt1.Manager", "Name",
    "system_u:system_r:svirt_t:s0:c1,c2", "c1,c2", "s0-s0:c0.c1023", "c0.c1023", "%s%n%i%H",
    "\x1b[2J\x1b]0;x\x07", "a\nMESSAGE=b", "\u202exe", "\ufeff", "a" * 61, "a" * 256, "é" * 200,
    "LD_PRELOAD=/tmp/x.so", "User=root", "SELinuxContext", "/bin/true", "/bin/sh", "{runtime}/x",
    "00000000-0000-0000-0000-000000000000", "\U0010ffff", "'; DROP TABLE vm; --", "\\x2d\\x2d",
)  # fmt: skip
_PATHS: Final = (
    "/", "/org", ROOT, f"{ROOT}/vm", f"{ROOT}/vm/vm", f"{ROOT}/vm/secret", f"{ROOT}/vm/_2e_2e",
    f"{ROOT}/vm/_ff", f"{ROOT}/vm/_", f"{ROOT}/job", f"{ROOT}/job/1", f"{ROOT}/job/0", "/a/b/c",
    f"{ROOT}/job/99999999999999999999", f"{ROOT}/group/x", f"{ROOT}/vm/" + "_41" * 60,
)  # fmt: skip
_BASIC: Final = "ybnqiuxtdhsog"
_NO_REPLY, _NO_START, _INTERACTIVE = 1, 2, 4


def split(signature: str) -> Iterator[str]:
    """Yield each complete type of a signature."""
    at = 0
    while at < len(signature):
        end = _end(signature, at)
        yield signature[at:end]
        at = end


def _end(signature: str, at: int) -> int:
    match signature[at]:
        case "a":
            return _end(signature, at + 1)
        case "(" | "{":
            depth, end = 1, at + 1
            while depth:
                depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[end], 0)
                end += 1
            return end
        case _:
            return at + 1


def write(out: bytearray, kind: str, value: Any, order: str) -> None:
    """Append a value; a variant is a pair of signature and value, a map a list of pairs."""

    def pad(width: int) -> None:
        out.extend(bytes(-len(out) % width))

    pad(_ALIGNED.get(kind[0], 4))
    match kind[0]:
        case "s" | "o":
            raw = value.encode()
            out += struct.pack(order + "I", len(raw)) + raw + b"\0"
        case "g":
            out += bytes([len(value)]) + value.encode() + b"\0"
        case "v":
            write(out, "g", value[0], order)
            write(out, value[0], value[1], order)
        case "b":
            out += struct.pack(order + "I", value)
        case "d":
            out += struct.pack(order + "d", value)
        case "a":
            at = len(out)
            out += bytes(4)
            pad(_ALIGNED.get(kind[1], 4))
            start = len(out)
            for one in value:
                write(out, kind[1:], one, order)
            struct.pack_into(order + "I", out, at, len(out) - start)
        case "(" | "{":
            for inner, one in zip(split(kind[1:-1]), value, strict=True):
                write(out, inner, one, order)
        case number:
            out += struct.pack(order + _NUMBERS[number][0], value)


@dataclass(frozen=True, slots=True)
class Draft:
    """What one message is made of."""

    path: str
    interface: str
    member: str
    signature: str
    values: list[Any]
    flags: int
    kind: int
    order: str

    @property
    def answered(self) -> bool:
        """Whether somebody answers it, be it with an error."""
        return self.kind == 1 and not self.flags & _NO_REPLY

    def encode(self, serial: int, sender: str = "", destination: str = NAME) -> bytes:
        """Return its bytes; a bus writes the sender itself."""
        body, fields = bytearray(), bytearray()
        for kind, value in zip(split(self.signature), self.values, strict=True):
            write(body, kind, value, self.order)
        for code, kind, text in (
            (1, "o", self.path),
            (2, "s", self.interface),
            (3, "s", self.member),
            (6, "s", destination),
            (7, "s", sender),
            (8, "g", self.signature),
        ):
            if text:
                write(fields, "(yv)", (code, (kind, text)), self.order)
        first = b"l" if self.order == "<" else b"B"
        numbers = (self.kind, self.flags, 1, len(body), serial, len(fields))
        head = first + struct.pack(self.order + "BBBIII", *numbers)
        return head + fields + bytes(-len(fields) % 8) + body


class Maker:
    """Makes messages from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._members = [
            (interface, member, signatures[0])
            for interface, parsed in contract.load().items()
            for member, signatures in parsed.methods.items()
        ]
        self._keys: dict[str, str] = {}
        for found in vars(wire).values():
            # The tables of keys, by key to type.
            if isinstance(found, Mapping) and {"s", "b"} <= set(map(str, found.values())):
                self._keys |= found
        assert {"path", "goal", "user"} <= set(self._keys)
        self._values: dict[str, Callable[[], Any]] = {
            "s": self._text,
            "o": lambda: self._random.choice(_PATHS),
            "g": lambda: self._signature(2),
            "b": lambda: self._random.randrange(2),
            "d": lambda: self._random.choice((0.0, -1.5, float("inf"), float("nan"), 1e308)),
        }

    # -- one message ------------------------------------------------------------------------

    def right(self) -> Draft:
        """A call that fits the contract; its values may be anything of their types."""
        interface, member, signature = self._random.choice(self._members)
        folder = {VM: "/vm/", GROUP: "/group/", JOB: "/job/"}.get(interface)
        if folder is None or self._random.random() < 0.1:
            path = ROOT
        else:
            path = self._random.choice([p for p in _PATHS if folder in p])
        values = [self.value(kind) for kind in split(signature)]
        flags = self._random.choice((0, 0, 0, 0, _NO_REPLY, _NO_START, _INTERACTIVE, 0xF8))
        return Draft(path, interface, member, signature, values, flags, 1, "<")

    def ping(self) -> Draft:
        """A call that everybody may make and that is answered."""
        return Draft(ROOT, "org.freedesktop.DBus.Peer", "Ping", "", [], 0, 1, "<")

    def odd(self) -> Draft:
        """A message that a bus passes on, with some part of a right one changed."""
        draft = self.right()
        parts = {name: getattr(draft, name) for name in Draft.__slots__}
        for _ in range(self._random.choice((1, 1, 2, 3))):
            match self._random.randrange(9):
                case 0:
                    parts["interface"] = ""
                case 1:
                    parts["interface"] = self._random.choice(
                        (MANAGER, VM, GROUP, JOB, "org.freedesktop.DBus.Properties", "a.b", NAME)
                    )
                case 2:
                    parts["member"] = self._random.choice(
                        ("Reboot", "_", "M" * 255, "Hello", "Release", "GetAll", "Set", "Cancel")
                    )
                case 3:
                    parts["path"] = self._random.choice(_PATHS)
                case 4:
                    parts["order"] = ">"
                case 5:
                    parts["flags"] = self._random.randrange(256)
                case 6:
                    parts["kind"] = self._random.choice((1, 1, 4, 9, 255))
                    parts["interface"] = parts["interface"] or MANAGER
                case 7:
                    parts["signature"] = self._signature(4)
                    parts["values"] = [self.value(kind) for kind in split(parts["signature"])]
                case 8:
                    parts["signature"], parts["values"] = self._deep()
        if parts["kind"] == 4:
            parts["interface"] = parts["interface"] or MANAGER
        return Draft(**parts)

    def broken(self, raw: bytes) -> bytes:
        """Bytes of a message with some of them changed, taken out, put in or doubled."""
        data, pick = bytearray(raw), self._random.randrange
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            at = pick(len(data)) if data else 0
            match pick(5):
                case 0 | 1:
                    data[at : at + 1] = bytes([pick(256)])
                case 2:
                    data[at : at + 4] = struct.pack(
                        "<I", self._random.choice((0, 1, 2**16, 2**26 + 1, 2**31, 2**32 - 1))
                    )
                case 3:
                    del data[at : at + pick(1, 9)]
                case 4:
                    data[at:at] = data[at : at + pick(1, 64)]
        return bytes(data)

    def framed(self, raw: bytes) -> bytes:
        """Broken bytes, but such that where the message ends is right: the rest is up to them."""
        head, rest = raw[:16], raw[16:]
        data = bytearray(head + self.broken(rest) if rest else raw)
        order = "<" if data[0] == ord("l") else ">"
        fields = min(struct.unpack_from(order + "I", head, 12)[0], len(data) - 16)
        if self._random.random() < 0.2:
            fields = self._random.randrange(len(data) - 16 + 1)
        body = len(data) - 16 - (fields + 7) // 8 * 8
        if body < 0:
            data += bytes(-body)
            body = 0
        struct.pack_into(order + "I", data, 4, body)
        struct.pack_into(order + "I", data, 12, fields)
        if self._random.random() < 0.1:
            data[1] = self._random.randrange(256)
        return bytes(data)

    def pick(self, *weights: int) -> int:
        """Return a number of a choice with these weights."""
        return self._random.choices(range(len(weights)), weights)[0]

    # -- values -----------------------------------------------------------------------------

    def value(self, kind: str) -> Any:
        """Return a value of a complete type."""
        if kind == "a{sv}":
            return self._options()
        match kind[0]:
            case "v":
                inner = self._signature(1)
                return inner, self.value(inner)
            case "a":
                return [self.value(kind[1:]) for _ in range(self._length())]
            case "(" | "{":
                return [self.value(inner) for inner in split(kind[1:-1])]
            case one if one in self._values:
                return self._values[one]()
            case number:
                _, _, low, high = _NUMBERS[number]
                near = self._random.choice((low, high, 0, 1, 2, 1000))
                return min(max(near, low), high)

    def _length(self) -> int:
        return (
            self._random.choice((0, 0, 1, 1, 1, 2, 3, 8)) if self._random.random() < 0.999 else 300
        )

    def _text(self) -> str:
        roll = self._random.random()
        if roll < 0.9:
            return self._random.choice(_TEXTS)
        if roll < 0.999:
            size = self._random.randrange(24)
            return "".join(map(chr, self._random.choices(range(1, 0xD800), k=size)))
        return self._random.choice(_TEXTS[1:]) * 2000

    def _options(self) -> list[Any]:
        found = {}
        for _ in range(self._length()):
            key = (
                self._random.choice(list(self._keys))
                if self._random.random() < 0.9
                else self._text()
            )
            kind = self._keys.get(key, "")
            if not kind or self._random.random() < 0.2:
                kind = self._signature(1)
            found[key] = (kind, self.value(kind))
        return list(found.items())

    def _signature(self, most: int) -> str:
        return "".join(self._type(0) for _ in range(self._random.randint(1, most)))

    def _type(self, depth: int) -> str:
        roll = self._random.random()
        if depth > 4 or roll < 0.6:
            return self._random.choice(_BASIC)
        if roll < 0.75:
            return "a" + self._type(depth + 1)
        if roll < 0.85:
            return "v" if depth < 3 else "s"
        if roll < 0.95:
            inner = "".join(self._type(depth + 1) for _ in range(self._random.randint(1, 3)))
            return f"({inner})"
        return f"a{{{self._random.choice('sudo')}{self._type(depth + 1)}}}"

    def _deep(self) -> tuple[str, list[Any]]:
        """As deep as a bus allows: arrays and structs to 32 each, variants to 64 in all."""
        match self._random.randrange(3):
            case 0:
                depth = self._random.randint(1, 32)
                value: Any = self._random.randrange(256)
                for _ in range(depth):
                    value = [value]
                return "a" * depth + "y", [value]
            case 1:
                depth = self._random.randint(1, 32)
                value = "x"
                for _ in range(depth):
                    value = [value]
                return "(" * depth + "s" + ")" * depth, [value]
            case _:
                value = ("s", "x")
                for _ in range(self._random.randint(1, 30)):
                    value = ("v", value)
                return "v", [value]
