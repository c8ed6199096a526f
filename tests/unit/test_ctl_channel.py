# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pump between standard input and output and a stream, with real sockets and pipes."""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from svirtd.ctl.channel import Unsent, pump

FOREVER_S = 3600.0
DEADLINE_S = 20.0


@dataclass
class Ends:
    """What is at the other ends: we write to `source`, read from `sink`, are the peer."""

    stream: socket.socket
    source: int
    sink: int
    peer: socket.socket
    into: int
    out: int

    def close_into(self) -> None:
        os.close(self.into)
        self.into = -1

    def close_out(self) -> None:
        os.close(self.out)
        self.out = -1


@pytest.fixture
def ends() -> Iterator[Ends]:
    stream, peer = socket.socketpair()
    peer.settimeout(DEADLINE_S)
    source, into = os.pipe()
    out, sink = os.pipe()
    found = Ends(stream, source, sink, peer, into, out)
    yield found
    stream.close()
    peer.close()
    for fd in (source, found.into, sink, found.out):
        if fd >= 0:
            os.close(fd)


class Running:
    """The pump in a thread."""

    def __init__(self, ends: Ends, *, linger_s: float, source: int | None) -> None:
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(ends, source, linger_s), daemon=True)
        self.thread.start()

    def _run(self, ends: Ends, source: int | None, linger_s: float) -> None:
        try:
            pump(ends.stream, source, ends.sink, linger_s=linger_s)
        except (Unsent, OSError) as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the pump has not ended"
        if self.error is not None:
            raise self.error


Start = Callable[..., Running]


@pytest.fixture
def start(ends: Ends) -> Start:
    def run(*, linger_s: float = FOREVER_S, source: bool = True) -> Running:
        return Running(ends, linger_s=linger_s, source=ends.source if source else None)

    return run


def read(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], DEADLINE_S)[0], f"only {data!r} came"
        piece = os.read(fd, count - len(data))
        assert piece, f"the end came after {data!r}"
        data += piece
    return data


def test_both_ways_until_the_peer_closes(ends: Ends, start: Start) -> None:
    running = start()
    for turn in (b"one\n", b"\x00\xff two"):
        os.write(ends.into, turn)
        assert ends.peer.recv(100) == turn
        ends.peer.sendall(turn[::-1])
        assert read(ends.out, len(turn)) == turn[::-1]
    ends.peer.sendall(b"last")
    ends.peer.close()
    running.join()
    assert os.read(ends.out, 100) == b"last"


def test_the_answer_is_awaited_after_the_end_of_input(ends: Ends, start: Start) -> None:
    running = start()
    os.write(ends.into, b"question")
    ends.close_into()
    assert ends.peer.recv(100) == b"question"
    # Not half-closed: a monitor that sees the end would hang up before it answers.
    assert not select.select([ends.peer], [], [], 0)[0]
    ends.peer.sendall(b"answer")
    assert read(ends.out, 6) == b"answer"
    ends.peer.close()
    running.join()


def test_a_silent_peer_ends_it_after_the_input(ends: Ends, start: Start) -> None:
    os.write(ends.into, b"question")
    ends.close_into()
    running = start(linger_s=0.05)
    running.join()
    assert ends.peer.recv(100) == b"question"


def test_no_input_at_all(ends: Ends, start: Start) -> None:
    ends.peer.sendall(b"greeting")
    start(linger_s=0.05, source=False).join()
    assert os.read(ends.out, 100) == b"greeting"


def test_no_linger_still_sends_everything(ends: Ends, start: Start) -> None:
    os.write(ends.into, b"question")
    ends.close_into()
    start(linger_s=0.0).join()
    assert ends.peer.recv(100) == b"question"


def test_input_from_a_file(ends: Ends, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    file = tmp_path / "in"
    file.write_bytes(data)
    got = bytearray()

    def drain() -> None:
        while piece := ends.peer.recv(65536):
            got.extend(piece)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    with open(file, "rb") as source:
        pump(ends.stream, source.fileno(), ends.sink, linger_s=0.05)
    ends.stream.close()
    reader.join(DEADLINE_S)
    assert bytes(got) == data


def test_much_data_both_ways_with_a_slow_reader(ends: Ends, start: Start) -> None:
    data = os.urandom(2_000_000)
    running = start()

    def echo() -> None:
        while piece := ends.peer.recv(65536):
            ends.peer.sendall(piece)

    def feed() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(ends.into, view[:65536]) :]

    # Nobody reads the output until the input is under way: neither side may block the other.
    threads = [threading.Thread(target=one, daemon=True) for one in (echo, feed)]
    for thread in threads:
        thread.start()
    assert read(ends.out, len(data)) == data
    threads[1].join(DEADLINE_S)
    ends.peer.shutdown(socket.SHUT_RDWR)
    running.join()
    threads[0].join(DEADLINE_S)


def test_a_peer_that_does_not_read(ends: Ends, start: Start) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            ends.stream.send(b"x" * 4096, socket.MSG_DONTWAIT)
    os.write(ends.into, b"question")
    ends.close_into()
    with pytest.raises(Unsent, match=r"^8 bytes of input were not taken within 0.05 s$"):
        start(linger_s=0.05).join()


def test_a_reader_that_goes_ends_it(ends: Ends, start: Start) -> None:
    running = start()
    ends.close_out()
    running.join()


def test_a_peer_that_only_stops_reading_is_still_heard(ends: Ends, start: Start) -> None:
    ends.peer.shutdown(socket.SHUT_RD)
    os.write(ends.into, b"x")
    running = start()
    ends.peer.sendall(b"still here")
    assert read(ends.out, 10) == b"still here"
    ends.peer.close()
    running.join()


def test_output_that_cannot_be_written(ends: Ends) -> None:
    ends.peer.sendall(b"data")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        pump(ends.stream, None, full.fileno(), linger_s=0.05)
