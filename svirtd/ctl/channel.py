# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pump bytes between standard input and output and a VM's channel."""

import os
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Final

# What may wait in one direction before its source is left alone.
_HELD_MAX: Final = 64 * 1024
# A pipe that polls as writable takes this much without blocking (PIPE_BUF). Setting O_NONBLOCK
# instead would change a terminal for everybody who shares it.
_WRITE_MAX: Final = 4096
_POLL_MAX_MS: Final = 2**31 - 1


class Unsent(Exception):
    """The peer stopped reading before it had all input; the text says how much was left."""


@dataclass(slots=True)
class _Pump:
    stream: socket.socket
    source: int | None
    sink: int
    linger_s: float
    to_peer: bytearray = field(default_factory=bytearray)
    to_sink: bytearray = field(default_factory=bytearray)
    peer_open: bool = True
    sink_open: bool = True
    last_s: float = field(default_factory=time.monotonic)

    def done(self) -> bool:
        if not self.sink_open:
            return True
        if self.to_sink:
            return False  # what has arrived is written out, however slowly it is taken
        return not self.peer_open or (self.source is None and self.rest_s() <= 0)

    def rest_s(self) -> float:
        return self.last_s + self.linger_s - time.monotonic()

    def step(self) -> None:
        """Wait for one thing to happen and move what can be moved."""
        poll = select.poll()
        stream_events = 0
        if self.peer_open:
            stream_events |= select.POLLIN if len(self.to_sink) < _HELD_MAX else 0
            stream_events |= select.POLLOUT if self.to_peer else 0
        if stream_events:
            poll.register(self.stream, stream_events)
        if self.source is not None and self.peer_open and len(self.to_peer) < _HELD_MAX:
            poll.register(self.source, select.POLLIN)
        # Without events, poll still tells when nobody reads our output any more.
        poll.register(self.sink, select.POLLOUT if self.to_sink else 0)
        # Rounded up: rounded down, the last millisecond would be spent spinning.
        lingering = self.source is None and self.peer_open and not self.to_sink
        wait_ms = min(int(max(self.rest_s(), 0) * 1000) + 1, _POLL_MAX_MS) if lingering else None
        self._move(dict(poll.poll(wait_ms)))

    def _move(self, ready: dict[int, int]) -> None:
        if self.source is not None and self.source in ready:
            self._read(self.source)
        from_peer = ready.get(self.stream.fileno(), 0)
        if from_peer & select.POLLOUT and self.to_peer:
            self._send()
        if from_peer & ~select.POLLOUT:
            self._receive()
        at_sink = ready.get(self.sink, 0)
        if at_sink & select.POLLOUT:
            self._write_sink()
        elif at_sink:
            self.sink_open = False

    def _read(self, source: int) -> None:
        try:
            data = os.read(source, _HELD_MAX)
        except BlockingIOError:
            return
        self.last_s = time.monotonic()
        if data:
            self.to_peer += data
            self._send()
        else:
            self.source = None

    def _send(self) -> None:
        try:
            sent = self.stream.send(self.to_peer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # It reads no more; what it has written can still be read.
            self.source = None
            self.to_peer.clear()
            return
        del self.to_peer[:sent]
        self.last_s = time.monotonic()

    def _receive(self) -> None:
        try:
            data = self.stream.recv(_HELD_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.to_sink += data
        self.peer_open = bool(data)
        self.last_s = time.monotonic()

    def _write_sink(self) -> None:
        try:
            written = os.write(self.sink, self.to_sink[:_WRITE_MAX])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.sink_open = False
            return
        del self.to_sink[:written]
        # The silence that counts is the peer's, not that of whoever takes our output.
        self.last_s = time.monotonic()


def pump(stream: socket.socket, source: int | None, sink: int, *, linger_s: float) -> None:
    """Copy `source` to `stream` and `stream` to `sink` until either end closes.

    After the end of `source` (None: it has ended already) go on until the peer closes or has been
    silent for `linger_s` seconds; the stream is not half-closed, since a QEMU monitor would take
    that for the end. Raises Unsent, OSError.
    """
    state = _Pump(stream, source, sink, linger_s)
    while not state.done():
        state.step()
    if state.to_peer and state.peer_open and state.sink_open:
        raise Unsent(f"{len(state.to_peer)} bytes of input were not taken within {linger_s:g} s")
