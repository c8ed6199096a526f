# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces with real interfaces, for zones: behind each somebody answers."""

import ctypes
import socket
import subprocess
import threading
from typing import Final

PORT: Final = 4711
COMMON: Final = "10.1.0.1"
_CLONE_NEWNET: Final = 0x40000000
_SO: Final = ctypes.CDLL(None, use_errno=True)


def ip(words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words.split()], check=True)


class Zone:
    """A namespace, and one beyond it that a pair of interfaces leads to.

    All zones have the same addresses, and one (`only`) besides that is its own: what answers tells
    whose packets got there.
    """

    def __init__(self, name: str, only: str) -> None:
        self.name, self.only, self.path = name, only, f"/run/netns/{name}"
        beyond = f"{name}-beyond"
        for space in (name, beyond):
            ip(f"netns add {space}")
            ip(f"-n {space} link set lo up")
        ip(f"link add {name}0 netns {name} type veth peer name {name}1 netns {beyond}")
        for space, device, addresses in (
            (name, f"{name}0", ("10.1.0.2",)),
            (beyond, f"{name}1", (COMMON, only)),
        ):
            for address in addresses:
                ip(f"-n {space} address add {address}/16 dev {device}")
            ip(f"-n {space} link set {device} up")
        self._server = _server_in(f"/run/netns/{beyond}")
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove both."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        for space in (self.name, f"{self.name}-beyond"):
            ip(f"netns delete {space}")

    def _answer(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:
                return
            with stream:
                stream.sendall(self.name.encode())


def _server_in(path: str) -> socket.socket:
    made: list[socket.socket] = []

    def work() -> None:
        with open(path, "rb") as space:
            if _SO.setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), path)
        made.append(socket.create_server(("0.0.0.0", PORT)))

    # In a thread that ends: it is the only one that goes there.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made, f"nobody could go into {path}"
    return made[0]
