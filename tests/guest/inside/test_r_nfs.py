# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images on a server: NFS 4.2 of this guest's own kernel, with labels and without."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from svirtd.host.bus import BusError
from tests.guest.inside.audit import Audit
from tests.guest.inside.test_b_isolation import DENIED
from tests.guest.inside.vms import FOLDER, ORIGINAL, Captive
from tests.support import Client, label, set_label

EXPORTED: Final = Path("/srv/exported")
CONTENT: Final = "system_u:object_r:virt_content_t:s0"
_CLIENT: Final = "127.0.0.1"


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    EXPORTED.mkdir()
    image = EXPORTED / "a.img"
    image.write_bytes(b"disk" * 128)
    # Without rpcbind, which the oldest protocol needs.
    Path("/etc/nfs.conf.d").mkdir(exist_ok=True)
    settings = Path("/etc/nfs.conf.d/guest.conf")
    settings.write_text(f"[nfsd]\nvers3=n\nhost={_CLIENT}\nthreads=2\n", "utf-8")
    run("systemctl", "start", "nfs-server.service")
    yield
    run("systemctl", "stop", "nfs-server.service")
    settings.unlink()
    image.unlink()
    EXPORTED.rmdir()


@contextmanager
def mounted(*exported: str, options: Sequence[str] = ()) -> Iterator[Path]:
    """Export the folder, and mount it; yields its file's path."""
    place = FOLDER / "network"
    place.mkdir(parents=True, exist_ok=True)
    set_label(EXPORTED / "a.img", ORIGINAL)
    rules = ",".join(("rw", "no_root_squash", "no_subtree_check", "fsid=0", "insecure", *exported))
    run("exportfs", "-o", rules, f"{_CLIENT}:{EXPORTED}")
    try:
        chosen = ",".join(("vers=4.2", "soft", "timeo=50", *options))
        run("mount", "-t", "nfs4", "-o", chosen, f"{_CLIENT}:/", place)
        try:
            yield place / "a.img"
        finally:
            run("umount", place)
    finally:
        run("exportfs", "-u", f"{_CLIENT}:{EXPORTED}")
    place.rmdir()


def test_a_server_that_keeps_no_labels(client: Client) -> None:
    with mounted() as path:
        made_up = label(path)
        for switched, said in (
            ("off", "The boolean virt_use_nfs is no way"),
            ("on", "The boolean virt_use_nfs is on: by it every VM uses every such file"),
        ):
            run("setsebool", "virt_use_nfs", switched)
            try:
                with pytest.raises(BusError) as refused:
                    client.acquire("vm", path)
            finally:
                run("setsebool", "virt_use_nfs", "off")
            assert refused.value.name == "org.svirt1.Error.ResourceRefused"
            for text in ("kind nfs4", "exports them with security_label", said):
                assert text in refused.value.text
        assert label(path) == made_up
    assert label(EXPORTED / "a.img") == ORIGINAL
    assert client.vms() == {}


def test_a_server_that_keeps_labels(client: Client, audit: Audit) -> None:
    with mounted("security_label") as path:
        vm, other = Captive(client, "a", path), Captive(client, "b")
        assert label(path) == vm.image_context
        # On the server's own disk as well: it is no label of the client's alone.
        assert label(EXPORTED / "a.img") == vm.image_context
        assert vm.do(f"write('{path}')") == 5
        with audit.denied("read write open", other.context, vm.image_context):
            assert other.fails(f"write('{path}')") in DENIED
        with pytest.raises(BusError, match="is held by VM 'a'"):
            client.acquire("third", path)
        vm.end()
        other.end()
        assert label(path) == label(EXPORTED / "a.img") == ORIGINAL


def test_a_mount_says_the_label(client: Client) -> None:
    with mounted(options=[f"context={CONTENT}"]) as path:
        vm = Captive(client, "a", path, access="public")
        assert vm.do(f"read('{path}')") == 512
        vm.end()
        assert label(path) == CONTENT
    assert label(EXPORTED / "a.img") == ORIGINAL
