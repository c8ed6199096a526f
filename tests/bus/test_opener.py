# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files and sockets of strangers: opened by a child that has become them, and by nobody else."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from svirtd.errors import Failed, InvalidArgs, ResourceRefused, StartError, SvirtError
from svirtd.host import credentials, opener_child, walk
from svirtd.host.bus import Variant
from svirtd.host.credentials import Account
from svirtd.host.kernel import Kernel
from svirtd.host.opener import Answer, Opener
from svirtd.host.opener_server import CHILDREN_PER_ACCOUNT
from tests.fuse import silent
from tests.support import Client, Daemon, image, wait_for

T = TypeVar("T")

# The table of mounts is kept open: opened here, it is no test's.
walk.prepare()

USER = Account(4711, 4712, (4712, 4713, 65534))
OTHER = Account(4800, 4800, (4800,))
DEADLINE_S = 20
# Of children that do not come to their end.
SHORT_S = 2
# What a child does instead of its job, as that account, in tests that look at the child itself.
Spy = Callable[..., tuple[list[int], list[Any]]]


def run(opener: Opener, *works: Coroutine[Any, Any, T]) -> list[T | BaseException]:
    async def main() -> list[T | BaseException]:
        return await asyncio.gather(*works, return_exceptions=True)

    return asyncio.run(main())


def one(opener: Opener, account: Account, job: dict[str, Any], *passed: int) -> Answer:
    """Do one job. Raises what it is refused with."""
    (result,) = run(opener, opener.do(account, job, passed))
    if isinstance(result, BaseException):
        raise result
    return result


def opening(*paths: Path | str, access: str = "exclusive") -> dict[str, Any]:
    return {"do": "open", "resources": [(str(path), None, access, "raw", False) for path in paths]}


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def started(deadline_s: int = DEADLINE_S) -> Iterator[Opener]:
    opener = Opener.start(Kernel(), deadline_s)
    try:
        yield opener
        wait_for("no child is left", lambda: not children_of(opener.pid))
    finally:
        opener.close()


@pytest.fixture
def opener(sandbox: object) -> Iterator[Opener]:
    with started() as opener:
        yield opener


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user's, that others may walk through to."""
    walkable(tmp_path)
    folder = tmp_path / "home"
    folder.mkdir()
    os.chown(folder, USER.uid, USER.gid)
    return folder


def walkable(folder: Path) -> None:
    """Let others walk through to a folder of pytest's."""
    for above in (folder, *folder.parents):
        above.chmod(above.stat().st_mode | 0o111)


def owned(path: Path, account: Account = USER, mode: int = 0o600) -> Path:
    image(path)
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)
    return path


def spying(monkeypatch: pytest.MonkeyPatch, spy: Spy) -> None:
    """Have the children of an opener that is started now do this."""
    monkeypatch.setattr(opener_child, "do", spy)


def told(opener: Opener, account: Account = USER) -> list[Any]:
    return one(opener, account, {"do": "spy"}).told


def test_a_child_is_the_account_and_has_nothing_else(
    sandbox: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        status = Path("/proc/self/status").read_text()
        fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.lexists(f"/proc/self/fd/{fd}")}  # fmt: skip
        lines = [line.split(":\t", 1) for line in status.splitlines() if ":\t" in line]
        return [], [dict(lines), fds, signal.getitimer(signal.ITIMER_REAL)[0]]

    spying(monkeypatch, spy)
    with open("/etc/shadow") as secret, started() as opener:
        status, fds, left_s = told(opener)
        assert str(secret.name) not in fds.values()
    assert status["Uid"].split() == [str(USER.uid)] * 4
    assert status["Gid"].split() == [str(USER.gid)] * 4
    assert {int(group) for group in status["Groups"].split()} == set(USER.groups)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"
    above = [path for number, path in fds.items() if int(number) > 2]
    # Its channel, and the table of mounts.
    assert sorted(path.partition(":")[0] for path in above)[-1] == "socket"
    assert all(path.startswith(("socket:", "/proc/")) for path in above)
    assert 0 < left_s <= DEADLINE_S


def test_the_server_keeps_what_it_takes_to_become_an_account(opener: Opener) -> None:
    comm = Path(f"/proc/{opener.pid}/comm")
    one(opener, USER, {"do": "identity", "path": "/nowhere"})  # it serves by now
    assert comm.read_text() == "svirtd-opener\n"
    status = Path(f"/proc/{opener.pid}/status").read_text()
    kept = 1 << credentials.CAP_SETUID | 1 << credentials.CAP_SETGID
    for name, mask in (("CapEff", kept), ("CapPrm", kept), ("CapBnd", 0), ("CapAmb", 0)):
        (found,) = (line.split()[1] for line in status.splitlines() if line.startswith(name))
        assert int(found, 16) == mask
    assert all(
        os.readlink(f"/proc/{opener.pid}/fd/{fd}").startswith(("socket:", "anon_inode:", "/proc/"))
        for fd in os.listdir(f"/proc/{opener.pid}/fd")
        if int(fd) > 2
    )


_ATTACH = (
    "import ctypes, os, sys\n"
    "pid = int(sys.argv[1])\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "print('attached' if libc.ptrace(16, pid, 0, 0) == 0 else 'refused', end=' ')\n"
    "try: os.open(f'/proc/{pid}/mem', os.O_RDWR); print('memory')\n"
    "except OSError: print('refused')\n"
)


def _trace(pid: int, account: Account) -> str:
    groups = ",".join(map(str, account.groups))
    drop = [f"--reuid={account.uid}", f"--regid={account.gid}", f"--groups={groups}"]
    done = subprocess.run(
        ["setpriv", *drop, "/usr/bin/python3", "-c", _ATTACH, str(pid)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_nobody_of_the_same_account_looks_into_a_child(
    sandbox: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        time.sleep(60)
        return [], []

    spying(monkeypatch, spy)
    # A process of that account like any other can be looked into: what is tried here works.
    plain = subprocess.Popen(
        ["setpriv", f"--reuid={USER.uid}", f"--regid={USER.gid}", "--clear-groups", "sleep", "60"]
    )
    wait_for("it sleeps", lambda: "sleep" in Path(f"/proc/{plain.pid}/comm").read_text())
    assert _trace(plain.pid, USER) == "attached memory"
    plain.kill()
    plain.wait()
    with started(SHORT_S) as opener:

        async def main() -> str:
            job = asyncio.ensure_future(opener.do(USER, {"do": "spy"}))
            await _until(lambda: any(map(_is_user, children_of(opener.pid))))
            (here,) = children_of(opener.pid)
            found = await asyncio.to_thread(_trace, here, USER)
            with pytest.raises(Failed, match="did not come to its end"):
                await job
            return found

        assert asyncio.run(main()) == "refused refused"


async def _until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not seen():  # noqa: ASYNC110 -- another process does it
            await asyncio.sleep(0.01)


def _is_user(pid: int) -> bool:
    return f"Uid:\t{USER.uid}\t" in Path(f"/proc/{pid}/status").read_text()


def test_what_the_account_may_open_is_opened(opener: Opener, home: Path) -> None:
    own, groups = owned(home / "a"), owned(home / "b", Account(1, 4713, ()), 0o660)
    readable = owned(home / "c", Account(1, 1, ()), 0o644)
    fds = one(opener, USER, opening(own, groups)).fds
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == [str(own), str(groups)]
    for fd in (*fds, *one(opener, USER, opening(readable, access="readonly")).fds):
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        os.close(fd)


def test_what_the_account_may_not_open_is_not(opener: Opener, home: Path, tmp_path: Path) -> None:
    secret = image(tmp_path / "secret")
    secret.chmod(0o600)
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    inside = owned(closed / "own")
    (home / "link").symlink_to(secret)
    (home / "folder").symlink_to(closed)
    readable = owned(home / "c", Account(1, 1, ()), 0o644)
    own = owned(home / "own")
    for path in (secret, inside, home / "link", home / "folder" / "own", readable, "/etc/shadow"):
        with pytest.raises(ResourceRefused, match=f"permission denied for uid {USER.uid}"):
            one(opener, USER, opening(own, path))
    # As root all of them can be opened: it is the account that is refused.
    for path in (secret, inside, readable):
        os.close(os.open(path, os.O_RDWR))


def test_a_job_for_root_is_none(opener: Opener) -> None:
    with pytest.raises(Failed, match="did not come to its end"):
        one(opener, Account(0, 0, (0,)), opening("/etc/shadow", access="readonly"))


def test_what_is_asked_for_by_descriptor(opener: Opener, home: Path) -> None:
    path = owned(home / "a")
    asked = [(0, "exclusive"), (1, "readonly")]
    job = {"do": "open", "resources": [(None, n, how, "raw", False) for n, how in asked]}
    with open(path, "r+b") as writable, open(path, "rb") as readable:
        answer = one(opener, USER, job, writable.fileno(), readable.fileno())
        # Where they were found, in words: the daemon has the descriptors.
        where = walk.mount_of(writable.fileno())
        assert answer == Answer([], [[where.kind, where.point, where.labels]] * 2)
        with pytest.raises(ResourceRefused, match="not open for reading and writing"):
            one(opener, USER, job, readable.fileno(), readable.fileno())
        # Where it lies is walked to as the account.
        home.chmod(0o700)
        os.chown(home, 0, 0)
        with pytest.raises(ResourceRefused, match="is not found at"):
            one(opener, USER, job, writable.fileno(), readable.fileno())


def test_a_command(opener: Opener, home: Path) -> None:
    assert one(opener, USER, {"do": "command", "path": "/bin/true"}) == Answer([], [None])
    plain, others = owned(home / "plain"), owned(home / "others", Account(1, 1, ()), 0o700)
    for path, text in (
        (plain, "is not an executable file"),
        (others, f"uid {USER.uid} may not execute it"),
        (home, "is not an executable file"),
        ("/nowhere", "no such file"),
    ):
        with pytest.raises(InvalidArgs, match=text):
            one(opener, USER, {"do": "command", "path": str(path)})


def test_what_a_path_leads_to_is_told_to_who_may_go_there(opener: Opener, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    secret = image(closed / "a")
    assert one(opener, USER, {"do": "identity", "path": str(secret)}) == Answer([], [])
    info = os.stat("/etc/shadow")
    found = Answer([], [info.st_dev, info.st_ino])
    assert one(opener, USER, {"do": "identity", "path": "/etc/shadow"}) == found


def test_the_vms_socket_sees_its_own_account(opener: Opener, home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(home / "qmp"))
        os.chown(home / "qmp", USER.uid, USER.gid)
        server.listen(1)
        with socket.socket(socket.AF_UNIX) as client:
            job = {"do": "connect", "folder": str(home), "name": "qmp", "label": ""}
            assert one(opener, USER, job, client.fileno()) == Answer([], [])
            there, _ = server.accept()
            with there:
                peer = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                client.sendall(b"hello")
                assert there.recv(16) == b"hello"
    assert int.from_bytes(peer[4:8], sys.byteorder) == USER.uid
    assert int.from_bytes(peer[8:12], sys.byteorder) == USER.gid
    with socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(ResourceRefused, match="does not take a connection"):
            one(opener, USER, job, client.fileno())
        (home / "link").symlink_to("/run/dbus/system_bus_socket")
        for name, text in (("link", "is not a socket"), ("none", "there is no socket")):
            with pytest.raises(ResourceRefused, match=text):
                one(opener, USER, job | {"name": name}, client.fileno())


def test_a_file_system_of_a_users_is_not_even_asked(
    opener: Opener, home: Path, tmp_path: Path
) -> None:
    owned(home / "a")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (home / "link").symlink_to(mounted)
    with silent(mounted) as fuse:
        for path in (mounted / "a", mounted, mounted / "b" / "c", home / "link" / "a"):
            with pytest.raises(ResourceRefused, match="file system of kind fuse"):
                one(opener, USER, opening(path))
            with pytest.raises(OSError, match="file system of kind fuse"):
                walk.hold(str(path))
        assert not fuse.asked()
        # What is tried here would be asked.
        asking = subprocess.Popen(["stat", str(mounted / "a")])
        wait_for("it is asked", fuse.asked)
    assert asking.wait() != 0


def test_one_that_hangs_stops_nobody_else(
    sandbox: object, monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    """With the look at mounts taken away, children wait for a server that does not answer: they
    cannot even be killed."""
    monkeypatch.setattr(walk, "may_hang", lambda _: False)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with silent(mounted), started(SHORT_S) as opener:
        hangs = [
            opener.do(USER, opening(mounted / f"{n}")) for n in range(CHILDREN_PER_ACCOUNT + 3)
        ]
        works = [opener.do(OTHER, {"do": "identity", "path": "/etc"}) for _ in range(20)]
        found = run(opener, *hangs, *works)
        for failure in found[: len(hangs)]:
            assert isinstance(failure, Failed)
            assert "a file system may not answer" in str(failure)
        info = os.stat("/etc")
        assert found[len(hangs) :] == [Answer([], [info.st_dev, info.st_ino])] * len(works)
        assert len(children_of(opener.pid)) == CHILDREN_PER_ACCOUNT
        # Let go before the opener is asked whether children are left.
        subprocess.run(["umount", "-f", mounted], check=False, capture_output=True)


def test_many_at_once(sandbox: object) -> None:
    """More than the way to the opener has room for."""
    accounts = [Account(5000 + number, 5000, (5000,)) for number in range(50)]
    info, job = os.stat("/etc"), {"do": "identity", "path": "/etc"}
    with started(deadline_s=60) as opener:
        works = [opener.do(account, job) for account in accounts for _ in range(8)]
        assert run(opener, *works) == [Answer([], [info.st_dev, info.st_ino])] * len(works)


def test_whoever_waits_behind_those_that_have_left_has_his_turn(
    sandbox: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        time.sleep(1)
        return [], ["done"]

    spying(monkeypatch, spy)

    async def main(opener: Opener) -> Answer:
        jobs = [
            asyncio.ensure_future(opener.do(USER, {"do": "spy"}))
            for _ in range(2 * CHILDREN_PER_ACCOUNT)
        ]
        await asyncio.sleep(0.3)
        last = asyncio.ensure_future(opener.do(USER, {"do": "spy"}))
        for job in jobs[CHILDREN_PER_ACCOUNT:]:
            job.cancel()
        await asyncio.wait(jobs)
        return await last

    with started(deadline_s=10) as opener:
        assert asyncio.run(main(opener)) == Answer([], ["done"])


def test_a_child_that_its_account_has_stopped_is_ended(
    sandbox: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return [], []

    spying(monkeypatch, spy)
    with started(SHORT_S) as opener:
        with pytest.raises(Failed, match="a file system may not answer"):
            one(opener, USER, {"do": "spy"})
        # It has not lost what it ends by.
        with pytest.raises(Failed, match="a file system may not answer"):
            one(opener, OTHER, {"do": "spy"})


@pytest.mark.parametrize("how", ["raises", "exits", "is killed", "says nonsense"])
def test_a_child_that_goes_wrong_is_an_error(
    sandbox: object, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        match how:
            case "raises":
                raise RuntimeError("a defect")
            case "exits":
                os._exit(0)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        raise SvirtError("of no kind that a child has")

    spying(monkeypatch, spy)
    with started() as opener, pytest.raises(Failed):
        one(opener, USER, {"do": "spy"})


def test_an_account_that_is_not_taken_opens_nothing(
    sandbox: object, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    own = owned(home / "a")
    for name in ("setgroups", "setresgid", "setresuid"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, lambda *_: None)
            with started() as opener, pytest.raises(Failed):
                one(opener, USER, opening(own))


def test_an_opener_that_has_ended_says_so(sandbox: object) -> None:
    opener = Opener.start(Kernel(), DEADLINE_S)
    os.kill(opener.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(Failed, match=r"has ended; svirtd starts again|come to its end"):
            one(opener, USER, opening("/etc/passwd"))
    (lost,) = run(opener, opener.lost())
    assert "has ended; svirtd starts again" in str(lost)
    opener.close()


def test_it_ends_with_its_children(sandbox: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def spy(*_: object) -> tuple[list[int], list[Any]]:
        signal.alarm(0)
        time.sleep(600)
        return [], []

    spying(monkeypatch, spy)
    opener = Opener.start(Kernel(), 60)

    async def main() -> list[int]:
        jobs = [asyncio.ensure_future(opener.do(USER, {"do": "spy"})) for _ in range(3)]
        await _until(lambda: len(children_of(opener.pid)) == len(jobs))
        for job in jobs:
            job.cancel()
        return children_of(opener.pid)

    children = asyncio.run(main())
    opener.close()
    wait_for("they have ended", lambda: not any(os.path.exists(f"/proc/{c}") for c in children))


def test_it_is_never_forked_beside_a_thread(sandbox: object) -> None:
    async def main() -> None:
        def work() -> None:
            with pytest.raises(StartError, match="before the first thread"):
                Opener.start(Kernel())

        await asyncio.to_thread(work)

    asyncio.run(main())


# -- the daemon's own -------------------------------------------------------------------------


def _opener_of(daemon: Daemon) -> int:
    (pid,) = [
        pid
        for pid in children_of(daemon.pid)
        if Path(f"/proc/{pid}/comm").read_text() == "svirtd-opener\n"
    ]
    return pid


def test_the_daemon_cannot_take_an_account_itself(daemon: Daemon) -> None:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (effective,) = (ln.split()[1] for ln in status.splitlines() if ln.startswith("CapEff"))
    both = 1 << credentials.CAP_SETUID | 1 << credentials.CAP_SETGID
    assert int(effective, 16) & both == 0
    assert int(effective, 16) != 0


def test_a_killed_daemon_takes_its_opener_along(own_daemon: Daemon) -> None:
    pid = _opener_of(own_daemon)
    own_daemon.kill()
    wait_for("the opener has ended", lambda: not os.path.exists(f"/proc/{pid}"))
    own_daemon.start()


def test_signals_for_the_unit_are_the_daemons(own_daemon: Daemon) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(_opener_of(own_daemon), number)
    assert own_daemon.stop() == 0
    own_daemon.start()


def test_the_daemon_ends_when_its_opener_has(own_daemon: Daemon) -> None:
    os.kill(_opener_of(own_daemon), signal.SIGKILL)
    assert own_daemon.process is not None
    assert own_daemon.process.wait(20) == 1
    assert "has ended; svirtd starts again" in own_daemon.output()
    own_daemon.process = None


_PEER = (
    "import os, socket, struct, sys\n"
    "server = socket.create_server(sys.argv[1] + '.new', family=socket.AF_UNIX)\n"
    "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
    "there, _ = server.accept()\n"
    "peer = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)\n"
    "there.sendall(b'%d %d' % struct.unpack('=4xii', peer))\n"
    "there.recv(1)\n"
)


def test_a_channel_is_not_roots(daemon: Daemon, client: Client) -> None:
    walkable(daemon.folder)
    command = ["/usr/bin/python3", "-c", _PEER, "{runtime}/qmp"]
    client.launch("vm", command, user=Variant("s", "nobody"))
    folder = Path(client.properties("vm")["RuntimeDirectory"])
    # By this name, it listens.
    wait_for("it listens", (folder / "qmp").exists)
    path = "/org/svirt1/vm/vm"
    reply = client.message("OpenChannel", "sa{sv}", "qmp", {}, path=path, interface="org.svirt1.VM")
    with socket.socket(fileno=reply.unix_fds[0]) as stream:
        assert stream.recv(64) == b"65534 65534"
    client.release("vm")


def test_the_fuse_of_a_user_does_not_keep_the_daemon(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Not at the request, and not when it is mounted over what the book has."""
    disk = tmp_path / "home"
    disk.mkdir()
    held = image(disk / "a.img")
    client.acquire("vm", held)
    with silent(disk) as fuse:
        for _ in range(6):  # more than the daemon has threads for files
            error = client.error(
                "Acquire", "saa{sv}a{sv}", "x", [{"path": Variant("s", str(disk / "b"))}], {}
            )
            assert "file system of kind fuse" in error.text
            assert client.call("FindOwners", "s", str(disk / "b")) == [[]]
            client.call("Verify", "ba{sv}", False, {"scan": Variant("as", [str(tmp_path)])})
        assert client.error("Release", "sa{sv}", "vm", {}).name.endswith(".Drift")
        assert not fuse.asked()
    client.release("vm")
