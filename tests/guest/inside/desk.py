# SPDX-License-Identifier: LGPL-2.1-or-later
"""An administrator's desktop in the guest: a screen in memory, a session bus, virt-manager on it.

All of it runs as who has logged in runs. What is on the screen is read, and used, through the
accessibility bus, as a screen reader does; where a widget has no action of its own the pointer
is moved to it.
"""

import importlib
import os
import select
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from tests.support import wait_for

# What the host finds in the folder of the run afterwards.
KEPT: Final = Path("/srv/kept")
_SCREEN: Final = "800x600x24"
# virt-manager, emulated.
_START_S: Final = 90.0
_LIST: Final = "vm-list"


class Desk:
    """The desktop; use it as a context manager."""

    def __init__(self) -> None:
        self._end = ExitStack()
        self._atspi: Any = None

    def __enter__(self) -> Self:
        try:
            folder = Path(tempfile.mkdtemp(prefix="desk"))
            self._end.callback(shutil.rmtree, folder, ignore_errors=True)
            self._frame = folder / "Xvfb_screen0"
            screen = ["-screen", "0", _SCREEN, "-fbdir", str(folder), "-nolisten", "tcp"]
            # No GLX: it would bring a compiler of shaders.
            number = self._starts(["Xvfb", "-displayfd", "1", *screen, "-extension", "GLX"])
            self._set("DISPLAY", f":{number}")
            session = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
            self._set("DBUS_SESSION_BUS_ADDRESS", self._starts(session))
            # Nothing of the administrator's is read, and nothing is left to him.
            self._set("HOME", str(folder))
            self._set("GSETTINGS_BACKEND", "memory")
            # Nor of the nine hundred operating systems that the wizard could offer.
            (folder / "systems").mkdir()
            self._set("OSINFO_SYSTEM_DIR", str(folder / "systems"))
            manager = ["virt-manager", "--no-fork", "--connect", "qemu:///system"]
            self._run(manager, stdout=subprocess.DEVNULL)
            gi: Any = importlib.import_module("gi")
            gi.require_version("Atspi", "2.0")
            self._atspi = importlib.import_module("gi.repository.Atspi")
            self._gone: type[Exception] = importlib.import_module("gi.repository.GLib").Error
            assert self._atspi.init() in (0, 1)
            self._end.callback(self._atspi.exit)
            self.find("tree table", _LIST)
        except BaseException:
            self._end.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def domains(self) -> dict[str, str]:
        """Return what virt-manager's list shows: the state of each domain, by its name."""
        cells = self._look(lambda: [str(one.get_name()) for one in self._below("table cell")])
        named = (text.partition("\n") for text in cells or () if "\n" in text)
        return {name: state for name, _, state in named}

    def wait_for_domain(self, name: str, state: str) -> None:
        """Wait until the list shows this domain in this state."""
        wait_for(f"{name} is {state}", lambda: self.domains().get(name) == state, _START_S)

    def picture(self, name: str) -> None:
        """Keep what the screen shows now as NAME.png."""
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.png").write_bytes(_png(self._frame.read_bytes()))

    def find(self, role: str, name: str) -> Any:
        """Wait for a widget on the screen and return it."""

        def look() -> Any:
            return next((one for one in self._below(role) if one.get_name() == name), None)

        return wait_for(f"a {role} named {name!r}", lambda: self._look(look), _START_S)

    def click(self, role: str, name: str) -> None:
        """Click on a widget."""
        seen: list[tuple[int, int]] = []

        def settled() -> bool:
            """What has only just come may move yet."""
            at = self._look(lambda: self._middle(self.find(role, name)))
            seen[:] = [*seen[-1:], at] if at else []
            return len(seen) == 2 and seen[0] == seen[1]

        wait_for(f"the {role} {name!r} stays where it is", settled, _START_S)
        assert self._atspi.generate_mouse_event(*seen[1], "b1c")

    def fill(self, name: str, text: str) -> None:
        """Type a text into an entry that holds another, or none."""
        assert self._atspi.EditableText.set_text_contents(self.find("text", name), text)

    def turn(self, name: str, value: int) -> None:
        """Set the number in a spin button."""
        assert self._atspi.Value.set_current_value(self.find("spin button", name), float(value))

    def _middle(self, widget: Any) -> tuple[int, int]:
        at = self._atspi.Component.get_extents(widget, self._atspi.CoordType.SCREEN)
        return at.x + at.width // 2, at.y + at.height // 2

    def _look(self, how: Callable[[], Any]) -> Any:
        """Look; nothing is there while virt-manager is busy, or what was looked at goes away."""
        try:
            return how()
        except self._gone:
            return None

    def _below(self, role: str) -> Iterator[Any]:
        """Every widget of a role that is on the screen, the newest window's first."""
        of, all_ = self._atspi, self._atspi.CollectionMatchType.ALL
        shown = of.StateSet.new([of.StateType.SHOWING])
        roles = [getattr(of.Role, role.upper().replace(" ", "_"))]
        rule = of.MatchRule.new(shown, all_, {}, all_, roles, all_, [], all_, False)
        for manager in _children(of.get_desktop(0)):
            for window in reversed(_children(manager)):
                collection = window.get_collection_iface()
                assert collection is not None, window.get_name()
                yield from collection.get_matches(rule, of.CollectionSortOrder.CANONICAL, 0, True)

    def _set(self, name: str, value: str) -> None:
        before = os.environ.get(name)
        os.environ[name] = value
        if before is None:
            self._end.callback(os.environ.pop, name)
        else:
            self._end.callback(os.environ.__setitem__, name, before)

    def _starts(self, command: Sequence[str]) -> str:
        """Start what says on its first line where it is; returns that."""
        process = self._run(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], _START_S)[0], f"{command[0]} says nothing"
        said = process.stdout.readline().decode().strip()
        assert said, f"{command[0]} has not started"
        return said

    def _run(self, command: Sequence[str], stdout: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL
        )
        self._end.callback(_ended, process)
        return process


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _children(widget: Any) -> list[Any]:
    found = (widget.get_child_at_index(number) for number in range(widget.get_child_count()))
    return [one for one in found if one is not None]


def _png(frame: bytes) -> bytes:
    """Return an X window dump of 32 bits a pixel, blue first, as a PNG."""
    header = struct.unpack_from(">25I", frame)
    size, width, height, bits, line, colours = (header[n] for n in (0, 4, 5, 11, 12, 19))
    assert bits == 32
    start = size + colours * 12
    rows = bytearray()
    for offset in range(start, start + height * line, line):
        pixels = frame[offset : offset + width * 4]
        row = bytearray(width * 3)
        row[0::3], row[1::3], row[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
        rows += b"\0" + row
    described = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", described), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
