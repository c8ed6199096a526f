# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages that are dropped unread, since reading them is what their sender floods us with.

A call that wants no answer costs its sender nothing, and the bus holds nobody back who sends them:
read one by one they would pile up in the bus, and everybody's calls, and the answers to our own,
would wait behind them. A call that wants an answer needs no such thing: of those the bus lets a
connection have so many.
"""

import struct
import time
from typing import Final

_KINDS: Final = {ord("l"): struct.Struct("<I"), ord("B"): struct.Struct(">I")}
_METHOD_CALL: Final = 1
_NO_REPLY: Final = 1
_MUTED_S: Final = 0.2
# Header fields, as the bus writes them: no other field's text can have these bytes in it.
_SENDER: Final = b"\x07\x01s\0"
_FDS: Final = b"\x09\x01u\0"


class Muted:
    """Senders whose calls that want no answer are dropped for a moment."""

    def __init__(self) -> None:
        # By sender: when it ends, and what the header has in either byte order.
        self._senders: dict[str, tuple[float, tuple[bytes, bytes]]] = {}

    def add(self, sender: str) -> None:
        """Drop what this sender sends without wanting an answer, for a moment from now."""
        name = sender.encode() + b"\0"
        marks = tuple(_SENDER + kind.pack(len(name) - 1) + name for kind in _KINDS.values())
        self._senders[sender] = time.monotonic() + _MUTED_S, (marks[0], marks[1])

    def __bool__(self) -> bool:
        """Whether somebody is muted; forgets whose time is over."""
        if self._senders:
            now_s = time.monotonic()
            over = [one for one, (end_s, _) in self._senders.items() if end_s <= now_s]
            for one in over:
                del self._senders[one]
        return bool(self._senders)

    def drops(self, raw: bytes) -> bool:
        """Say whether to drop a message. One that carries descriptors is read: they are ours."""
        if raw[1] != _METHOD_CALL or not raw[2] & _NO_REPLY:
            return False
        (length,) = _KINDS[raw[0]].unpack_from(raw, 12)
        header = raw[16 : 16 + length]
        return _FDS not in header and any(
            mark in header for _, marks in self._senders.values() for mark in marks
        )
