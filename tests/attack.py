# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parts of the tests that give svirtd bad input: what must not change, and hand-made messages."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from svirtd.host.bus import BusError
from tests.support import DEADLINE_S, XATTR, Client

STANDARD = "org.freedesktop.DBus.Error."
OWN = "org.svirt1.Error."
INVALID = STANDARD + "InvalidArgs"
UNSUPPORTED = STANDARD + "NotSupported"
LIMITS = STANDARD + "LimitsExceeded"
DENIED = STANDARD + "AccessDenied"
REFUSED = OWN + "ResourceRefused"


def labels(folder: Path) -> dict[str, bytes | None]:
    """The raw label of everything below a folder; links are not followed."""
    found: dict[str, bytes | None] = {}
    for path in [folder, *folder.rglob("*")]:
        try:
            found[str(path)] = os.getxattr(path, XATTR, follow_symlinks=False)
        except OSError:
            found[str(path)] = None
    return found


@contextlib.contextmanager
def nothing_changes(client: Client, folder: Path) -> Iterator[None]:
    """Fail if labels below `folder`, VMs or counts are not the same afterwards."""
    before = labels(folder), client.vms(), client.manager()
    yield
    assert (labels(folder), client.vms(), client.manager()) == before


def assert_refused(error: BusError, name: str, *fragments: str) -> None:
    """The refusal has this name, and its text tells these things in printable, bounded words."""
    assert error.name == name, error
    for fragment in fragments:
        assert fragment in error.text, error.text
    assert error.text.isprintable(), error.text
    assert len(error.text) < 2000, len(error.text)
    assert "Traceback" not in error.text
    assert "internal error" not in error.text


class RawConnection:
    """A connection that sends bytes as they are: no library checks them first."""

    def __init__(self, address: str) -> None:
        self._answers: dict[int, tuple[int, bytes]] = {}
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(address.removeprefix("unix:path=").partition(",")[0])
        self.sock.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        self._line(b"OK ")
        self.sock.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        self._line(b"AGREE_UNIX_FD")
        self.sock.sendall(b"BEGIN\r\n")
        bus = "org.freedesktop.DBus"
        self.sock.sendall(method_call(1, bus, "/org/freedesktop/DBus", bus, "Hello"))
        self.reply(1)

    def _line(self, start: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            line += self.sock.recv(1)
        assert line.startswith(start), line

    def close(self) -> None:
        self.sock.close()

    def ended(self) -> bool:
        """Whether the bus has thrown us out; reads until it has or the deadline is over."""
        end = time.monotonic() + DEADLINE_S
        try:
            while time.monotonic() < end:
                if not self.sock.recv(65536):
                    return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            pass
        return False

    def reply(self, serial: int) -> tuple[int, bytes]:
        """The type (2 answer, 3 error) and the bytes of the message that answers `serial`."""
        while serial not in self._answers:
            kind, answers, raw = self._message()
            self._answers[answers] = kind, raw
        return self._answers.pop(serial)

    def answered_until(self, serial: int) -> list[int]:
        """The serials that are answered, up to and with this one, in the order of the answers."""
        found: list[int] = []
        while serial not in found:
            _, answers, _ = self._message()
            found += [answers] if answers else []
        return found

    def next_answered(self) -> int:
        """The serial that the next message answers, 0 if it answers none."""
        return self._message()[1]

    def _message(self) -> tuple[int, int, bytes]:
        head = self._exactly(16)
        order = "<" if head[:1] == b"l" else ">"
        body, _, fields = struct.unpack(order + "III", head[4:])
        rest = self._exactly((fields + 7) // 8 * 8 + body)
        at = rest[:fields].find(b"\x05\x01u\0")  # REPLY_SERIAL
        answers = struct.unpack_from(order + "I", rest, at + 4)[0] if at >= 0 else 0
        return head[1], answers, head + rest

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, "the bus closed the connection"
            data += more
        return data


def method_call(
    serial: int,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: bytes = b"",
    *,
    order: str = "<",
    flags: int = 0,
    kind: int = 1,
    extra: bytes = b"",
) -> bytes:
    """The bytes of a method call; `extra` is one more header field, already marshalled."""
    fields = b""
    for code, sig, text in (
        (1, b"o", path),
        (2, b"s", interface),
        (3, b"s", member),
        (6, b"s", destination),
        (8, b"g", signature),
    ):
        if not text:
            continue
        fields += b"\0" * (-len(fields) % 8) + bytes([code, 1]) + sig + b"\0"
        raw = text.encode()
        fields += bytes([len(raw)]) if sig == b"g" else struct.pack(order + "I", len(raw))
        fields += raw + b"\0"
    if extra:
        fields += b"\0" * (-len(fields) % 8) + extra
    head = struct.pack(
        order + "cBBBIII",
        b"l" if order == "<" else b"B",
        kind,
        flags,
        1,
        len(body),
        serial,
        len(fields),
    )
    return head + fields + b"\0" * (-len(fields) % 8) + body


def text_argument(text: bytes, order: str = "<") -> bytes:
    """One string argument, whatever its bytes are."""
    return struct.pack(order + "I", len(text)) + text + b"\0"
