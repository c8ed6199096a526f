# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the guest, and the check that a test leaves nothing behind."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.guest.inside.audit import Audit
from tests.support import DEADLINE_S, Client, wait_for

# What is about the policy with levels is tried where that is the one.
collect_ignore = [] if Path("/etc/selinux/mls").is_dir() else ["mls"]
_DROP_INS: Final = Path("/etc/svirtd/svirtd.toml.d")
_audit: Final = Audit()


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its output."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main_pid() -> int:
    """Return the daemon's process."""
    return int(systemctl("show", "--property=MainPID", "--value", "svirtd.service"))


def units_of_vms(client: Client) -> list[str]:
    """Return what support.svirt_units() does: asked by the bus, since each test asks at its end.

    A systemctl takes longer to start, in an emulated machine, than some of the tests do.
    """
    reply = client.runner.run(
        client.connection.call(
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "ListUnitsByPatterns",
            "asas",
            ([], ["svirt-*.service"]),
            timeout_s=DEADLINE_S,
        )
    )
    (units,) = reply.body
    return [str(unit[0]) for unit in units]


@pytest.fixture(scope="session", autouse=True)
def enforcing() -> None:
    """The kernel enforces, or nothing here proves anything."""
    assert Path("/sys/fs/selinux/enforce").read_text("utf-8") == "1"
    # VMs are emulated: the administrator's switch for code that is made while it runs.
    subprocess.run(["setsebool", "virt_use_execmem", "on"], check=True)
    assert systemctl("is-active", "svirtd.service") == "active"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is mounted against a daemon that lacks a defence stays in the sandbox."""
    weak = [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("arena") is not None
    ]
    config.hook.pytest_deselected(items=weak)
    items[:] = [item for item in items if item not in weak]


@pytest.fixture
def audit() -> Audit:
    """The account of denials."""
    return _audit


@pytest.fixture
def client() -> Iterator[Client]:
    """A client of the bus; the service under test has nothing of the test's left afterwards."""
    client = Client()
    try:
        yield client
        left = client.vms()
        for name in left:
            client.release(name)  # one test's fault is not the next one's
        assert left == {}
        # systemd collects a unit a moment after its end.
        wait_for("every unit of a VM is gone", lambda: not units_of_vms(client))
        assert list(Path("/run/svirtd/vm").glob("*")) == []
    finally:
        client.close()


@pytest.fixture
def daemon(client: Client) -> None:
    """What the bus tier's tests call their daemon is the installed service here."""


@contextmanager
def configuring(verb: str = "restart") -> Iterator[Callable[[str], None]]:
    """A function that gives the service other settings (a drop-in); the old ones come back.

    With "reload" as `verb`, where a running service takes the settings: it loads all of itself
    when it starts, which takes long in an emulated machine. Then it has them a moment later.
    """
    path = _DROP_INS / "test.toml"

    def write(text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    try:
        yield write
    finally:
        path.unlink(missing_ok=True)
        if verb == "restart":
            systemctl("reset-failed", "svirtd.service")
        systemctl(verb, "svirtd.service")


@pytest.fixture
def configure() -> Iterator[Callable[[str], None]]:
    """What configuring() yields, for one test."""
    with configuring() as write:
        yield write


@contextmanager
def adopting_by_itself(adopt: Sequence[str], *, required: bool = False) -> Iterator[None]:
    """Domains of these names are adopted when they are defined; if `required`, no other starts."""
    with configuring("reload") as write:
        names = ", ".join(f'"{one}"' for one in adopt)
        write(f"[libvirt]\nadopt = [{names}]\nrequire-adopted = {str(required).lower()}\n")
        systemctl("reload", "svirtd.service")
        client = Client()
        wanted = {"LibvirtAdopt": list(adopt), "LibvirtRequireAdopted": required}
        try:
            wait_for("the settings are taken", lambda: wanted.items() <= client.manager().items())
        finally:
            client.close()
        systemctl("start", "svirtd-libvirt.service")
        try:
            yield
        finally:
            systemctl("stop", "svirtd-libvirt.service")


@pytest.fixture
def journal() -> Callable[[str], str]:
    """A function that returns the service's records with this MESSAGE_ID, one a line."""

    def read(message_id: str) -> str:
        subprocess.run(["journalctl", "--sync"], check=True)
        command = ["journalctl", "-b", "-o", "cat", "--no-pager", f"MESSAGE_ID={message_id}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return read
