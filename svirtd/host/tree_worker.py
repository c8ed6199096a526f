# SPDX-License-Identifier: LGPL-2.1-or-later
"""A worker on one tree: walks directories that it is told, and labels what is in them.

Why nobody can have a label put on something else, by exchanging names while this works:
- a directory is opened below the root's descriptor, beneath it, through no link and no mount
  (openat2); so the walk never leaves the tree's own file system, wherever names are moved to;
- an entry is opened from its directory's descriptor, no link is followed and no mount entered. What
  it is, whose it is, how many names it has and what it carries are asked of that descriptor, and
  the label is set through that same descriptor: it is the object that was looked at which gets the
  label, whatever its name leads to by then;
- so whoever moves or links another object into his tree, before or meanwhile, has it judged by the
  very rules that everything in the tree is: its owner, its links, its type, its categories.
`setxattrat` would save opening each entry, and would set the label by a name again.
"""

import errno
import gc
import itertools
import json
import os
import select
import signal
import socket
import stat
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final, NoReturn

from svirtd.core.trees import EXAMPLES, Mode, Rule, Sweep
from svirtd.host.kernel import XATTR
from svirtd.host.tree_entries import (
    CHUNK,
    Chunk,
    Itself,
    Named,
    Others,
    Raw,
    decode,
    encode,
    frame,
    open_folder,
)

_PATIENCE_S: Final = 60
_TELL_EVERY_S: Final = 0.1
_GONE: Final = (errno.ENOENT, errno.ENOTDIR)


class Stopped(Exception):
    """The daemon does not want the rest."""


class Offended(Exception):
    """An entry offends against a rule, and the walk ends there."""

    def __init__(self, rule: Rule, path: bytes, why: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.path = path
        self.why = why


def run(root: int, channel: int) -> NoReturn:
    """Work for the daemon at the other end of `channel`, in a process forked for it; exits."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        gc.disable()  # it makes no cycles, and goes soon
        with socket.socket(fileno=channel) as stream:
            _Worker(root, stream).serve()
    except Stopped:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 -- the edge of a process that must end here
        os.write(2, f"<3>svirtd-trees: {error!r}\n".encode())
        os._exit(1)


class _Worker:
    def __init__(self, root: int, stream: socket.socket) -> None:
        self._root = root
        self._stream = stream
        self._poll = select.poll()
        self._poll.register(stream, select.POLLIN)
        self._told_s = time.monotonic()
        self._device = os.fstat(root).st_dev
        self._others = Others()

    def serve(self) -> NoReturn:
        """Do what the daemon says until it says no more: ends with Stopped."""
        header, _ = self._receive()
        self._sweep = Sweep(
            Mode(header["mode"]),
            header["target"],
            header["common"],
            header["owner_uid"],
            header["links"],
            frozenset(header["sources"]),
            held=frozenset(header["held"]),
        )
        self._target, self._common = encode(header["target"]), encode(header["common"])
        self._sources = frozenset(encode(one) for one in header["sources"])
        for _ in range(header["others"]):
            one, blob = self._receive()
            self._others.add(encode(one["label"]), blob)
        work: Callable[[Chunk], None] = {
            Mode.LOOK: self._look,
            Mode.SET: self._set,
            Mode.CHANGE: self._change,
            Mode.AGAIN: self._change,
            Mode.BACK: self._back,
        }[self._sweep.mode]
        while True:
            header, _ = self._receive()
            if "walk" not in header:
                continue  # asked to share what was just done
            self._begin()
            try:
                self._walk(header["walk"], work, root=header["root"])
            except Offended as error:
                self._end_with(error)
            except OSError as error:
                self._end_with(Offended(Rule.FAILED, b"", _why(error)))
            self._send(
                {
                    "entries": self._done,
                    "labels": [
                        [decode(raw), count, [os.fsdecode(path) for path in some]]
                        for raw, (count, some) in self._labels.items()
                    ],
                    "faults": [
                        [rule, count, os.fsdecode(path), why]
                        for rule, (count, path, why) in self._faults.items()
                    ],
                    "mounts": [self._mounts, [os.fsdecode(one) for one in self._mounted]],
                }
            )

    def _end_with(self, error: Offended) -> NoReturn:
        self._send({"fault": [error.rule, os.fsdecode(error.path), error.why]})
        # To end with something unread would take what was just said from the daemon.
        while True:
            self._receive()

    # -- the walk -----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._done = 0
        self._part = 0.0
        self._asked = False
        self._labels: dict[Raw, tuple[int, list[bytes]]] = {}
        self._faults: dict[Rule, tuple[int, bytes, str]] = {}
        self._mounts = 0
        self._mounted: list[bytes] = []

    def _walk(
        self, folders: list[tuple[str, float]], work: Callable[[Chunk], None], *, root: bool
    ) -> None:
        """Work on what is below these folders. Each comes with the part of the tree that it is
        taken for: how much is in it is only known afterwards."""
        self._waiting = deque((os.fsencode(path), part) for path, part in folders)
        while self._waiting:
            folder, part = self._waiting.pop()
            above = self._open_folder(folder)
            below: list[bytes] = []
            try:
                if above >= 0:
                    below = self._work_on(above, folder, work, root=root and not folder)
            finally:
                if above >= 0:
                    os.close(above)
            own = part / (len(below) + 1)
            self._part += own
            self._waiting += [(one, own) for one in below]
            self._between()
        signal.alarm(0)

    def _work_on(
        self, above: int, folder: bytes, work: Callable[[Chunk], None], *, root: bool
    ) -> list[bytes]:
        """Work on what is in an open folder; returns the folders in it."""
        os.fchdir(above)
        self._before = folder + b"/" if folder else b""
        below = []
        with os.scandir(b".") as entries:
            named: Iterator[Named] = itertools.chain([Itself()], entries) if root else entries
            while some := list(itertools.islice(named, CHUNK)):
                signal.alarm(_PATIENCE_S)
                with Chunk() as chunk:
                    below += self._open(above, some, chunk)
                    work(chunk)
                    self._done += len(chunk.names)
                self._between()
        return below

    def _between(self) -> None:
        if self._poll.poll(0):
            self._heed(self._receive()[0])
        if self._asked and self._waiting:
            # What was found first is highest in the tree, and has most below it.
            shared = [self._waiting.popleft() for _ in range((len(self._waiting) + 1) // 2)]
            self._asked = False
            self._send({"shared": [(os.fsdecode(path), part) for path, part in shared]})
        now = time.monotonic()
        if now - self._told_s >= _TELL_EVERY_S:
            self._told_s = now
            self._send({"so_far": self._done, "part": self._part})

    def _heed(self, header: dict[str, Any]) -> None:
        """Another worker has nothing to do, and gets some of this as soon as there is some."""
        self._asked = self._asked or "share" in header

    def _open_folder(self, path: bytes) -> int:
        try:
            return open_folder(self._root, path)
        except OSError as error:
            # Moved or exchanged since it was seen in the folder above it, or mounted over.
            moved = error.errno in (*_GONE, errno.ELOOP, errno.EXDEV)
            if moved and self._sweep.mode is Mode.SET:
                why = "it was moved while the tree was being labelled; try again"
                raise Offended(Rule.FAILED, path, why) from None
            if not moved:
                self._before = b""
                self._fault(Rule.FAILED, path, _why(error))
            return -1

    def _open(self, above: int, some: Sequence[Named], chunk: Chunk) -> list[bytes]:
        """Open these entries of a folder, and look at them; returns the folders among them."""
        owner, held = self._sweep.owner_uid, self._sweep.held
        files = [one.name for one in some if one.is_file(follow_symlinks=False)]
        # Where VMs hold something, each is looked at by itself.
        if held or not chunk.open_plain(above, files, self._device, owner):
            for name in files:
                self._open_one(above, name, chunk, read=True)
        if len(files) == len(some):
            return []
        folders = []
        for one in some:
            if one.is_file(follow_symlinks=False):
                continue
            read = one.is_dir(follow_symlinks=False)
            if self._open_one(above, one.name, chunk, read=read) and one.name != b".":
                folders.append(self._before + one.name)
        return folders

    def _open_one(self, above: int, name: bytes, chunk: Chunk, *, read: bool) -> bool:
        """Open an entry, and look at it; returns whether it is a folder of this file system."""
        try:
            through, info = chunk.open_one(above, name, read=read)
            if info.st_dev != self._device:
                # A file system of its own without a mount, as btrfs has them.
                self._mount(name)
                return False
            self._judge(name, info)
            chunk.add(name, through, info.st_ino)
            return stat.S_ISDIR(info.st_mode)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self._mount(name)
            elif error.errno not in _GONE:
                self._fault(Rule.FAILED, name, _why(error))
            return False

    def _mount(self, name: bytes) -> None:
        self._mounts += 1
        if len(self._mounted) < EXAMPLES:
            self._mounted.append(self._before + name)

    # -- what is done to open entries ---------------------------------------------------------

    def _look(self, chunk: Chunk) -> None:
        for raw, name in zip(chunk.raws, chunk.names, strict=True):
            self._count(raw, name)

    def _set(self, chunk: Chunk) -> None:
        """Have what is to be remembered written down, and label them."""
        target = self._target
        if chunk.raws.count(self._common) != len(chunk.raws):
            self._remember(chunk)
        try:
            if target is not None and target not in chunk.raws:
                deque(map(os.setxattr, chunk.throughs, repeat(XATTR), repeat(target)), maxlen=0)
                return
            for through, raw in zip(chunk.throughs, chunk.raws, strict=True):
                if raw != target:
                    _write(through, target)
        except OSError as error:
            path = self._before + chunk.names[chunk.throughs.index(error.filename)]
            raise Offended(Rule.FAILED, path, _why(error)) from None

    def _remember(self, chunk: Chunk) -> None:
        by: dict[Raw, list[int]] = {}
        for number, raw in enumerate(chunk.raws):
            if raw != self._common:
                by.setdefault(raw, []).append(number)
        header = [
            [decode(raw), len(some), os.fsdecode(self._before + chunk.names[some[0]])]
            for raw, some in by.items()
        ]
        inodes = (array("Q", sorted(chunk.inodes[n] for n in some)) for some in by.values())
        self._send({"others": header}, b"".join(one.tobytes() for one in inodes))
        signal.alarm(0)  # the book, and whoever asks the policy, take their own time
        answer, _ = self._receive()
        while "go" not in answer:
            self._heed(answer)
            answer, _ = self._receive()
        signal.alarm(_PATIENCE_S)

    def _change(self, chunk: Chunk) -> None:
        of = self._others.of if self._sweep.mode is Mode.AGAIN else None
        for through, raw, inode, name in chunk.each():
            if raw == self._target:
                continue
            if raw in self._sources and (of is None or raw == of(inode, self._common)):
                self._try(through, name, self._target)
            else:
                self._count(raw, name)

    def _back(self, chunk: Chunk) -> None:
        target, common, of = self._target, self._common, self._others.of
        for through, raw, inode, name in chunk.each():
            earlier = of(inode, common)
            if raw == earlier:
                continue
            if raw == target:
                self._try(through, name, earlier)
            else:
                self._count(raw, name)

    def _try(self, through: int | str, name: bytes, raw: Raw) -> None:
        try:
            _write(through, raw)
        except OSError as error:
            self._fault(Rule.FAILED, name, _why(error))

    # -- what is told -------------------------------------------------------------------------

    def _judge(self, name: bytes, info: os.stat_result) -> None:
        sweep, regular = self._sweep, stat.S_ISREG(info.st_mode)
        if sweep.mode not in (Mode.LOOK, Mode.SET):
            return
        if sweep.owner_uid is not None and info.st_uid != sweep.owner_uid:
            self._fault(Rule.OWNER, name, str(info.st_uid))
        elif stat.S_IFMT(info.st_mode) in (stat.S_IFBLK, stat.S_IFCHR):
            self._fault(Rule.DEVICE, name, "")
        elif regular and info.st_mode & (stat.S_ISUID | stat.S_ISGID):
            self._fault(Rule.SETID, name, "")
        elif regular and info.st_nlink > 1 and not sweep.links:
            self._fault(Rule.LINKS, name, str(info.st_nlink))
        elif info.st_ino in sweep.held:
            self._fault(Rule.HELD, name, str(info.st_ino))

    def _fault(self, rule: Rule, name: bytes, why: str) -> None:
        path = self._before + name
        if self._sweep.mode is Mode.SET:
            raise Offended(rule, path, why)
        count, first, its_why = self._faults.get(rule, (0, path, why))
        self._faults[rule] = (count + 1, first, its_why)

    def _count(self, raw: Raw, name: bytes) -> None:
        count, some = self._labels.setdefault(raw, (0, []))
        self._labels[raw] = (count + 1, some)
        if len(some) < EXAMPLES:
            some.append(self._before + name)

    # -- the channel --------------------------------------------------------------------------

    def _send(self, header: dict[str, Any], blob: bytes = b"") -> None:
        try:
            self._stream.sendall(frame(header, blob))
        except (BrokenPipeError, ConnectionResetError):
            raise Stopped from None

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        lengths = self._exactly(8)
        header = self._exactly(int.from_bytes(lengths[:4], "big"))
        return json.loads(header), self._exactly(int.from_bytes(lengths[4:], "big"))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._stream.recv(min(count, 1 << 16))
            if not part:
                raise Stopped
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _write(through: int | str, raw: Raw) -> None:
    if raw is None:
        os.removexattr(through, XATTR)
    else:
        os.setxattr(through, XATTR, raw)


def _why(error: OSError) -> str:
    return error.strerror or str(error)
