# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of examples/ as ordinary users run them, at a terminal, with polkit's own agent."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bus.manual import examples, programs
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, NOBODY, ROOT_PASSWORD, Account, home
from tests.support import Client, Daemon, image, label, svirt_units, wait_for
from tests.terminal import Terminal

# Under emulation a QEMU takes long to come up.
START_S = 90.0
_STATES = ["running", "releasing", "gone"]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a disk, and who has the examples at hand."""

    account: Account
    home: Path
    options: tuple[str, ...] = ()
    """Of isolated-vm.py, on a host like this."""
    password: str = ""
    """Of an administrator."""

    @property
    def disk(self) -> Path:
        return self.home / "disk.img"

    @contextmanager
    def runs(self, *argv: str | Path) -> Iterator[Terminal]:
        """Something of this user's on a terminal in the home."""
        terminal = Terminal([*map(str, argv)], self.account, self.home)
        try:
            yield terminal
        finally:
            terminal.close()

    def tool(self, name: str, *options: str) -> Any:
        """isolated-vm.py with the user's disk."""
        options = options or self.options
        return self.runs("/usr/bin/python3", "isolated-vm.py", *options, name, "disk.img")


def reached(daemon: Daemon, sandbox: Sandbox) -> Daemon:
    """Let users get to the folders of their VMs, as they do in /run: pytest's are root's alone."""
    for folder in (daemon.folder, *daemon.folder.parents):
        if folder.is_relative_to(sandbox.state):
            folder.chmod(0o711)
    return daemon


@pytest.fixture
def daemon(daemon: Daemon, sandbox: Sandbox) -> Daemon:
    """The module's daemon."""
    return reached(daemon, sandbox)


@pytest.fixture
def own_daemon(own_daemon: Daemon, sandbox: Sandbox) -> Daemon:
    """One that the test may end."""
    return reached(own_daemon, sandbox)


@contextmanager
def at_home(user: User) -> Iterator[User]:
    """Give a user a disk and the examples for the time of the block."""
    made = [image(user.disk), *(Path(shutil.copy(one, user.home)) for one in programs())]
    for path in made:
        os.chown(path, user.account.uid, user.account.gid)
    yield user
    for path in made:
        path.unlink()


@pytest.fixture
def member(sandbox: Sandbox) -> Iterator[User]:
    """One of the group svirt, who may have VMs."""
    with at_home(User(ANN, home(sandbox.state, ANN), ("--unprotected",))) as user:
        yield user


@pytest.fixture
def stranger(sandbox: Sandbox) -> Iterator[User]:
    """Somebody who may not, unless an administrator agrees."""
    folder = sandbox.state / "homes" / "nobody"
    folder.mkdir()
    os.chown(folder, NOBODY.uid, NOBODY.gid)
    with at_home(User(NOBODY, folder, ("--unprotected",), ROOT_PASSWORD)) as user:
        yield user
    folder.rmdir()


def states(terminal: Terminal, name: str) -> list[str]:
    """What was told of the VM's state."""
    return re.findall(rf"^(?:\^C)?{name}: ({'|'.join(_STATES)})$", terminal.text(), re.M)


def nothing_left(client: Client, user: User, before: str | None) -> None:
    """The disk has its label again, and the VM is gone."""
    wait_for("the VM is gone", lambda: client.vms() == {})
    assert label(user.disk) == before
    wait_for("the end of the unit", lambda: not svirt_units())


def test_a_vm_from_launch_to_ctrl_c(daemon: Daemon, client: Client, member: User) -> None:
    before = label(member.disk)
    client.acquire("other")
    with member.tool("web") as tool:
        tool.until("Ctrl-C stops it", START_S)
        shown, other = client.properties("web"), client.properties("other")
        assert f"web: runs in svirt-web.service as {shown['ProcessContext']}\n" in tool.text()
        assert "web: QEMU says running\n" in tool.text()
        assert (shown["State"], shown["Owner"]) == ("running", member.account.uid)
        assert os.stat(f"/proc/{shown['MainPID']}").st_uid == member.account.uid
        assert label(member.disk) == shown["ImageContext"]
        assert shown["Categories"] != other["Categories"]
        # Whoever comes second is told who was first.
        for name, says in (("web2", "The disk is taken. .* VM 'web' "), ("web", "Choose another")):
            with member.tool(name) as second:
                assert second.ended(START_S) == 1
                assert re.search(f"^{says}", second.text(), re.M), second.text()
        tool.type("\x03")
        assert tool.ended(START_S) == 0, tool.text()
        assert states(tool, "web") == _STATES
        assert "Password" not in tool.text()
    client.release("other")
    nothing_left(client, member, before)


def test_it_ends_with_its_vm_and_its_vm_with_it(
    daemon: Daemon, client: Client, member: User
) -> None:
    before = label(member.disk)
    with member.tool("web") as tool:
        tool.until("Ctrl-C stops it", START_S)
        os.kill(client.properties("web")["MainPID"], signal.SIGKILL)
        assert tool.ended(START_S) == 0, tool.text()
        assert states(tool, "web") == _STATES
    nothing_left(client, member, before)
    with member.tool("web") as tool:
        tool.until("Ctrl-C stops it", START_S)
        os.kill(tool.pid, signal.SIGKILL)
        nothing_left(client, member, before)


def test_somebody_has_to_agree(daemon: Daemon, client: Client, stranger: User) -> None:
    """polkit's agent asks on the terminal: a wrong password, Ctrl-C, the right one."""
    before = label(stranger.disk)
    with stranger.tool("web") as tool:
        tool.authenticate("wrong", START_S)
        assert tool.ended(START_S) == 1
        assert "\nNot allowed. " in tool.text()
        assert "refused by polkit's action org.svirt1.launch" in tool.text()
    nothing_left(client, stranger, before)
    with stranger.tool("web") as tool:
        tool.until("Password: ", START_S)
        tool.type("\x03")
        assert tool.ended(START_S) == 1
        # It is for the agent as well: what the tool hears first, this or polkit's answer, is open;
        # and an agent that is ended leaves the line of its prompt as it is.
        assert "Given up" in tool.text() or "Not allowed. " in tool.text(), tool.text()
    nothing_left(client, stranger, before)
    with stranger.tool("web") as tool:
        tool.authenticate(stranger.password, START_S)
        tool.until("Ctrl-C stops it", START_S)
        asked = f"(uid {stranger.account.uid}) to launch the virtual machine 'web'"
        assert asked in tool.text()
        shown = client.properties("web")
        assert shown["Owner"] == stranger.account.uid
        assert label(stranger.disk) == shown["ImageContext"] != before
        # What is one's own is stopped without a question.
        tool.type("\x03")
        assert tool.ended(START_S) == 0, tool.text()
        assert tool.text().count("Password: ") == 1
        assert states(tool, "web") == _STATES
    nothing_left(client, stranger, before)


def test_the_same_with_busctl(daemon: Daemon, client: Client, member: User) -> None:
    before = label(member.disk)
    with member.runs("/bin/sh", "busctl.sh", "web", "disk.img") as script:
        assert script.ended(START_S) == 0, script.text()
        path = "/org/svirt1/vm/web"
        for part in (
            'os "/org/svirt1/vm/web" "svirt-web.service"\n',
            f"org.svirt1.Manager.VMAdded ('web', objectpath '{path}')\n",
            's "running"\ns "svirt-web.service"\n',
            f"/org/svirt1/vm\n{path}\n",
            ".Owner            property  u         ",
        ):
            assert part in script.text(), script.text()
    nothing_left(client, member, before)


def test_somebody_has_to_agree_to_busctl(daemon: Daemon, client: Client, stranger: User) -> None:
    """As org.svirt1(5) says it is done."""
    before = label(stranger.disk)
    (commands,) = examples("WRITING A CLIENT")
    commands = commands.replace("/srv/vm/web.raw", str(stranger.disk))
    with stranger.runs("/bin/sh", "-c", commands) as call:
        call.authenticate(stranger.password, START_S)
        call.until('o "/org/svirt1/vm/web"', START_S)
        assert label(stranger.disk) == client.properties("web")["ImageContext"]
        call.close()
    client.release("web")
    nothing_left(client, stranger, before)


def test_nothing_is_started_where_nothing_is_enforced(
    daemon: Daemon, client: Client, member: User
) -> None:
    with member.runs("/usr/bin/python3", "isolated-vm.py", "web", "disk.img") as tool:
        assert tool.ended(START_S) == 1
        assert "NOT ENFORCED: nothing keeps VMs apart on this host\n" in tool.text()
        assert "Nothing was started" in tool.text()
    assert client.vms() == {}


def test_svirtd_is_away(own_daemon: Daemon, client: Client, member: User) -> None:
    """The VM outlives it, and so does the tool; what is called next has svirtd started again."""
    before = label(member.disk)
    with member.tool("web") as tool:
        tool.until("Ctrl-C stops it", START_S)
        own_daemon.kill()
        tool.until("svirtd is away", START_S)
        own_daemon.start()
        tool.until("svirtd is back", START_S)
        assert client.vms() == {"web": "running"}
        tool.type("\x03")
        assert tool.ended(START_S) == 0, tool.text()
        assert states(tool, "web") == ["running", *_STATES]
    nothing_left(client, member, before)
