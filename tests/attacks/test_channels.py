# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a hostile VM, or another user, makes of a runtime folder and of the daemon's connections.

The VM is its owner's process; everything in its folder may be changed at any moment.
"""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError
from tests.attacks.arena import DENIALS, Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Me, Stranger, Swapper
from tests.sandbox.accounts import Account
from tests.support import ROOT, VM

PATH = f"{ROOT}/vm/talker"
SWAPS = 20_000
CALLS = 60
CALLS_WEAK = 400
DEPTH = 1500


@pytest.fixture
def talker(arena: Arena, ann: Account) -> Iterator[Stranger]:
    """Ann, with a VM that runs and whose folder she may write to."""
    talker = arena.stranger(ann)
    talker.launch("talker", arena.idle)
    yield talker
    if not arena.without:
        talker.release("talker")


@pytest.fixture
def folder(talker: Stranger) -> Path:
    """The VM's runtime folder."""
    return Path(talker.properties("talker")["RuntimeDirectory"])


@pytest.fixture
def service(arena: Arena) -> Iterator["Service"]:
    """A service of the host's, which trusts whoever connects to it as root."""
    service = Service(arena.place / "service")
    yield service
    service.close()


class Service:
    """Listens in the open, and sees who comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(512)
        self._listener.setblocking(False)

    def visitors(self) -> list[int]:
        """The users of the connections that were made since the last look."""
        found: list[int] = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return found
            with connection:
                found.append(peer_uid(connection))

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self.path.unlink()


def peer_uid(connection: socket.socket) -> int:
    """Who has connected, by the kernel's word."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iii", raw)[1])


def open_channel(stranger: Stranger, name: str) -> str:
    """Ask for a channel and hang up; the refusal, "" if there was one."""
    return str(stranger.do(_open_channel, name))


def _open_channel(me: Me, name: str) -> str:
    try:
        reply = me.client.message("OpenChannel", "sa{sv}", name, {}, path=PATH, interface=VM)
    except BusError as error:
        return f"{error.name}: {error.text}"
    for fd in reply.unix_fds:
        os.close(fd)
    return ""


def _symlink(_me: Me, target: str, path: str) -> None:
    os.symlink(target, path)


def _hard_link(_me: Me, target: str, path: str) -> None:
    os.link(target, path)


def _listen(_me: Me, path: str) -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener.detach()


def _accept(_me: Me, fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as listener:
        connection, _ = listener.accept()
        with connection:
            return peer_uid(connection)


@against("a channel leads to the VM's own socket")
def test_a_link_to_a_service(
    arena: Arena, talker: Stranger, folder: Path, service: Service
) -> None:
    talker.do(_symlink, str(service.path), str(folder / "qmp"))
    answer = open_channel(talker, "qmp")
    arena.verdict(service.visitors(), "a link to a service of the host's")
    assert arena.without or answer.startswith("org.svirt1.Error.ResourceRefused"), answer


def test_a_hard_link_to_a_service(
    arena: Arena, talker: Stranger, folder: Path, service: Service
) -> None:
    try:
        talker.do(_hard_link, str(service.path), str(folder / "qmp"))
    except OSError:
        # The kernel protects hard links here; the daemon must hold where it does not.
        os.link(service.path, folder / "qmp")
    answer = open_channel(talker, "qmp")
    assert service.visitors() == []
    assert "is not a socket that this VM made itself" in answer


def test_the_folder_replaced(
    arena: Arena, talker: Stranger, folder: Path, service: Service
) -> None:
    """Its parent is root's: the folder itself cannot be moved away."""
    with pytest.raises(PermissionError):
        talker.do(_rename, str(folder), f"{folder}-old")


def _rename(_me: Me, old: str, new: str) -> None:
    os.rename(old, new)


@against("a channel leads to the VM's own socket")
def test_swaps_while_it_connects(
    arena: Arena, talker: Stranger, folder: Path, service: Service, ann: Account
) -> None:
    talker.do(_listen, str(folder / "qmp"))
    talker.do(_symlink, str(service.path), str(folder / "other"))
    visitors: list[int] = []
    opened = calls = 0
    with Swapper(ann, str(folder / "qmp"), str(folder / "other")) as swapper:
        while not visitors and (
            calls < CALLS_WEAK if arena.without else swapper.count < SWAPS or calls < CALLS
        ):
            calls += 1
            answer = open_channel(talker, "qmp")
            # The queue of whoever listens is short, and nobody takes from it here.
            assert answer == "" or "ResourceRefused" in answer, answer
            opened += not answer
            visitors += service.visitors()
        arena.verdict(visitors, f"swaps while it connects: {calls} calls, {swapper.count} swaps")
        assert arena.without or (opened and swapper.count >= SWAPS)


@against("a channel is the account's, not root's")
def test_who_connects(arena: Arena, talker: Stranger, folder: Path, ann: Account) -> None:
    """SO_PEERCRED says who: a VM, or what poses as one, must never see root come."""
    listener = talker.do(_listen, str(folder / "qmp"))
    assert open_channel(talker, "qmp") == ""
    seen = talker.do(_accept, listener)
    arena.verdict(seen != ann.uid, f"the peer is uid {seen}")


@against("only the owner may")
def test_another_users_channel(arena: Arena, talker: Stranger, folder: Path, ben: Account) -> None:
    talker.do(_listen, str(folder / "qmp"))
    answer = open_channel(arena.stranger(ben), "qmp")
    arena.verdict(answer == "", "another user's channel")
    assert not answer or answer.partition(":")[0] in DENIALS


@pytest.mark.parametrize("name", ["../../dbus/system_bus_socket", "..", ".", "", "a/b", "/run/x",
                                  "qmp\0", "q\nmp", "a" * 33, "\x1b[2J"])  # fmt: skip
def test_names_of_channels(arena: Arena, talker: Stranger, name: str) -> None:
    if "\0" in name:
        with pytest.raises(AssertionError, match="NUL"):
            open_channel(talker, name)
        return
    answer = open_channel(talker, name)
    assert answer.startswith("org.freedesktop.DBus.Error.InvalidArgs"), answer
    assert answer.isprintable()


def test_what_is_no_socket(arena: Arena, talker: Stranger, folder: Path) -> None:
    for make in (_fifo, _file, _tree):
        talker.do(make, str(folder / make.__name__[1:]))
        answer = open_channel(talker, make.__name__[1:])
        assert "is not a socket" in answer, answer


def _fifo(_me: Me, path: str) -> None:
    os.mkfifo(path)


def _file(_me: Me, path: str) -> None:
    Path(path).touch()


def _tree(_me: Me, path: str) -> None:
    os.mkdir(path)


def test_a_deep_tree_at_the_end(arena: Arena, talker: Stranger, folder: Path, ben: Account) -> None:
    """The daemon takes the folder away, however deep a VM has dug; others are served meanwhile."""
    depth = talker.do(_dig, str(folder))
    assert depth == DEPTH
    other = arena.stranger(ben)
    talker.start(_release, "talker")
    other.vms()
    talker.result()
    assert arena.root.vms() == {}
    assert not folder.exists()
    talker.launch("talker", arena.idle)


def _dig(_me: Me, path: str) -> int:
    os.chdir(path)
    depth = 0
    while depth < DEPTH:
        os.mkdir("d")
        os.chdir("d")
        depth += 1
    os.chdir("/")
    return depth


def _release(me: Me, name: str) -> None:
    me.client.release(name)


def test_links_out_of_the_folder_at_the_end(
    arena: Arena, talker: Stranger, folder: Path, ann: Account
) -> None:
    """What is taken away is the folder, and nothing that links in it lead to."""
    victim = arena.victim(ann)
    for name in ("a", "b"):
        talker.do(_tree, str(folder / name))
    talker.do(_symlink, str(victim.parent), str(folder / "a" / "link"))
    with Swapper(ann, str(folder / "b"), str(folder / "a" / "link")):
        talker.release("talker")
    assert victim.exists()
    talker.launch("talker", arena.idle)


def test_nobody_else_looks_into_the_folder(
    arena: Arena, talker: Stranger, folder: Path, ben: Account
) -> None:
    stranger = arena.stranger(ben)
    for path in (folder, folder.parent):
        with pytest.raises(PermissionError):
            stranger.do(_list, str(path))


def _list(_me: Me, path: str) -> Any:
    return os.listdir(path)
