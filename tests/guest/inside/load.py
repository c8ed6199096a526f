# SPDX-License-Identifier: LGPL-2.1-or-later
"""In the guest: tells the host what is there after a boot, then acquires, launches and releases
until the power is cut.

Every call is told before and after, so that the host knows what was promised when it cuts.
"""

import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from svirtd.core.mcs import format_categories, parse_categories
from svirtd.core.pool import make_shape
from svirtd.host.bus import BusError, Variant
from tests.support import Client, label, set_label, svirt_units, wait_for

_FOLDER: Final = Path("/srv/vm")
_BOOK: Final = "/var/lib/svirtd/book.sqlite"
# What the policy takes for QEMU, and costs nothing to start.
_COMMAND: Final = Path("/usr/local/bin/machine")
_ORIGINALS: Final = (
    "system_u:object_r:virt_image_t:s0",
    "unconfined_u:object_r:virt_image_t:s0",
    "unconfined_u:object_r:virt_content_t:s0",
    "unconfined_u:object_r:user_home_t:s0",
)
_FILES: Final = 32
_CLIENTS: Final = 3
_NAMES: Final = 3
_FILES_MAX: Final = 4
# Somebody has the file; or a VM holds it whose label had not reached the disk at a cut.
_REFUSALS: Final = ("org.svirt1.Error.ResourceBusy", "org.svirt1.Error.ResourceRefused")
# Three VMs of the administrator's, each of another kind, that a boot starts.
_BOOTED: Final = {
    "web": "boot-web.service",
    "db": "boot-vm@db.service",
    "mail": "svirt-vm@mail.service",
}
_BOOTED_S: Final = 90.0
_UNITS: Final = Path("/etc/systemd/system")
_VMS: Final = Path("/etc/svirtd/vms.d")
_THEIRS: Final = Path("/srv/booted")
_telling: Final = threading.Lock()


def main() -> None:
    """Do what the kernel's command line says; the last turn ends by itself."""
    text = Path("/proc/cmdline").read_text("utf-8")
    seed, turn, last, enrols = (
        int(n) for n in re.findall(r"svirt\.(?:seed|turn|last|enrols)=(\d+)", text)
    )
    if turn == 0:
        _prepare()
    else:
        _say("STATE", {"when": "boot", **state()})
        subprocess.run(["systemctl", "restart", "svirtd.service"], check=True)
        wait_for("the labels of what is held are back", _labels_stand)
        _say("STATE", {"when": "restart", **state()})
    if enrols:
        _enrol()
    if last:
        _drain()
        _say("STATE", {"when": "end", **state()})
        return
    chance = random.Random(f"{seed} {turn}")
    # Every other time one caller stops after a few calls: nobody's later entry brings his last ones
    # to the disk.
    quiet = turn % 2
    clients = [
        _Caller(number, random.Random(f"{seed} {turn} {number}"), chance.randint(2, 9) * quiet)
        for number in chance.sample(range(_CLIENTS), 1 if quiet else _CLIENTS)
    ]
    # A caller that fails ends the load, which the host takes for the failure that it is.
    threading.excepthook = _fail
    _say("LOAD", {})
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _say("QUIET", {})
    threading.Event().wait()


def _fail(arguments: threading.ExceptHookArgs) -> None:
    threading.__excepthook__(arguments)
    os._exit(1)


def _say(what: str, value: dict[str, Any]) -> None:
    # One write: the port is cut off at any byte.
    with _telling:
        os.write(1, f"{what} {json.dumps(value)}\n".encode())


def _prepare() -> None:
    _FOLDER.mkdir()
    shutil.copy("/usr/bin/sleep", _COMMAND)
    set_label(_COMMAND, "system_u:object_r:qemu_exec_t:s0")
    originals = {}
    for number in range(_FILES):
        path = _FOLDER / f"{number}.img"
        path.write_bytes(b"disk" * 1024)
        originals[str(path)] = _ORIGINALS[number % len(_ORIGINALS)]
        set_label(path, originals[str(path)])
    os.sync()
    _say("TOLD", {"originals": originals})


def _enrol() -> None:
    """Have three VMs that the next boot starts, and tell which they are."""
    command, install = f"{_COMMAND} 1000", "[Install]\nWantedBy=multi-user.target\n"
    disks = {name: _THEIRS / f"{name}.img" for name in _BOOTED}
    _THEIRS.mkdir()
    for path in disks.values():
        path.write_bytes(b"disk" * 1024)
        set_label(path, _ORIGINALS[0])
    for file in ("boot-web.service", "boot-vm@.service"):
        (_UNITS / file).write_text(f"[Service]\nExecStart={command}\n{install}", "utf-8")
    _VMS.mkdir(exist_ok=True)
    (_VMS / "mail.toml").write_text(
        f'command = ["{_COMMAND}", "1000"]\n[[disk]]\npath = "{disks["mail"]}"\n', "utf-8"
    )
    for name in ("web", "db"):
        argv = ["svirtctl", "enroll", _BOOTED[name], name, "--disk", str(disks[name])]
        subprocess.run(argv, check=True)
    subprocess.run(["systemctl", "enable", *_BOOTED.values()], check=True)
    # What this guest boots into.
    subprocess.run(["systemctl", "add-wants", "guest-cuts.target", *_BOOTED.values()], check=True)
    subprocess.run(["systemctl", "start", *_BOOTED.values()], check=True)
    os.sync()
    _say("TOLD", {"booted": _booted()})


def _booted() -> dict[str, Any]:
    """Return what three VMs have of their own, as the kernel sees it."""
    client = Client()
    try:
        wait_for(
            "the VMs that a boot starts",
            lambda: {client.vms().get(name) for name in _BOOTED} == {"running"},
            _BOOTED_S,
        )
        found = {}
        for name in _BOOTED:
            shown = client.properties(name)
            process = Path(f"/proc/{shown['MainPID']}/attr/current").read_bytes()
            found[name] = {
                "id": shown["Id"],
                "categories": shown["Categories"],
                "process": process.decode().rstrip("\0\n"),
                "disk": label(_THEIRS / f"{name}.img"),
            }
        return found
    finally:
        client.close()


def state() -> dict[str, Any]:
    """Return what book, files, units and folders are, and what the VMs that a boot starts are."""
    booted = _booted() if (_UNITS / "guest-cuts.target.wants" / "boot-web.service").exists() else {}
    ids = {vm["id"] for vm in booted.values()}
    theirs = {*_BOOTED.values(), "svirt-mail.service"}
    return {
        **_state(),
        "booted": booted,
        "units": [unit for unit in svirt_units() if unit not in theirs],
        "folders": sorted(
            str(path) for path in Path("/run/svirtd/vm").glob("*") if path.name not in ids
        ),
    }


def _state() -> dict[str, Any]:
    with sqlite3.connect(f"file:{_BOOK}?mode=ro", uri=True) as book:
        book.row_factory = sqlite3.Row

        def rows(query: str) -> list[dict[str, Any]]:
            return [dict(row) for row in book.execute(query)]

        vms = rows(
            "SELECT id, name, state, reason, unit, persistent, categories FROM vm"
            f" WHERE name NOT IN {tuple(_BOOTED)} ORDER BY 2"
        )
        holds = rows(
            "SELECT vm.name AS vm, path, access, label, original FROM hold JOIN vm USING (rank)"
            f" WHERE vm.name NOT IN {tuple(_BOOTED)} ORDER BY vm.name, number"
        )
        operations = rows("SELECT id, kind, rank, steps FROM operation")
        quarantine = rows("SELECT rank, path, label, reason FROM quarantine")
        pool = rows("SELECT private, size FROM pool")[0]
    book.close()
    shape = make_shape(parse_categories(pool["private"]), frozenset(), frozenset(), pool["size"])
    for one in quarantine:
        one["categories"] = format_categories(shape.carried(one["rank"]))
    for vm in vms:
        vm["persistent"] = bool(vm["persistent"])
    return {
        "vms": vms,
        "holds": holds,
        "operations": operations,
        "quarantine": quarantine,
        "files": {str(path): label(path) for path in sorted(_FOLDER.iterdir())},
    }


def _labels_stand() -> bool:
    now = _state()
    return all(now["files"][hold["path"]] == hold["label"] for hold in now["holds"])


def _drain() -> None:
    client = Client()
    for name, now in client.vms().items():
        if name in _BOOTED:
            continue
        persistent = client.properties(name)["Persistent"]
        if now != "reserved":
            client.release(name)
        if persistent:
            client.call("Forget", "sa{sv}", name, {})
    client.close()


class _Caller:
    """A client with VMs of its own that uses everybody's files."""

    def __init__(self, number: int, chance: random.Random, calls: int) -> None:
        self._chance = chance
        self._calls = calls
        self._client = Client()
        self._names = [f"vm{number}-{n}" for n in range(_NAMES)]
        # Of which boot and caller a VM is does not matter: its name is this one's.
        self._states = {n: s for n, s in self._client.vms().items() if n in self._names}

    def run(self) -> None:
        """Make so many calls; for 0, until the end of the world."""
        for _ in range(self._calls) if self._calls else itertools.count():
            name = self._chance.choice(self._names)
            now = self._states.get(name)
            if now in ("labelled", "running"):
                self._end(name, running=now == "running")
            elif now == "reserved" and self._chance.random() < 0.3:
                self._call(name, "forget", lambda name=name: self._forget(name))
            else:
                self._start(name)

    def _start(self, name: str) -> None:
        chance = self._chance
        # A name is persistent for good: a caller who asks for another life changes nothing then.
        persistent = name.endswith(("0", "1"))
        files = {
            str(_FOLDER / f"{number}.img"): (
                "public" if number < _FILES // 4 else chance.choice(("exclusive", "readonly"))
            )
            for number in chance.sample(range(_FILES), chance.randint(1, _FILES_MAX))
        }
        named = [{"path": Variant("s", p), "access": Variant("s", a)} for p, a in files.items()]
        options = {"persistent": Variant("b", persistent)}
        what = chance.choice(("acquire", "acquire", "launch"))

        def start() -> dict[str, Any]:
            if what == "acquire":
                self._client.call("Acquire", "saa{sv}a{sv}", name, named, options)
            else:
                argv = [str(_COMMAND), "1000"]
                self._client.call("Launch", "sasaa{sv}a{sv}", name, argv, named, options)
            self._states[name] = "labelled" if what == "acquire" else "running"
            shown = self._client.properties(name)
            return {"id": shown["Id"], "categories": shown["Categories"]}

        self._call(name, what, start, files=files, persistent=persistent)

    def _end(self, name: str, *, running: bool) -> None:
        if running and self._chance.random() < 0.3:
            self._call(name, "end", lambda: self._killed(name))
        else:
            self._call(name, "release", lambda: self._released(name))

    def _released(self, name: str) -> dict[str, Any]:
        self._client.release(name)
        return self._gone(name)

    def _killed(self, name: str) -> dict[str, Any]:
        pid = self._client.properties(name)["MainPID"]
        os.kill(pid, 9)
        wait_for(f"the end of {name}", lambda: self._client.vms().get(name) in (None, "reserved"))
        return self._gone(name)

    def _gone(self, name: str) -> dict[str, Any]:
        if name in self._client.vms():
            self._states[name] = "reserved"
        else:
            del self._states[name]
        return {}

    def _forget(self, name: str) -> dict[str, Any]:
        self._client.call("Forget", "sa{sv}", name, {})
        return self._gone(name)

    def _call(self, name: str, what: str, call: Any, **about: Any) -> None:
        fact = {"vm": name, "what": what, **about}
        _say("TOLD", {**fact, "phase": "try"})
        try:
            answer = call()
        except BusError as error:
            if error.name not in _REFUSALS:
                raise
            _say("TOLD", {**fact, "phase": "refused"})
        else:
            _say("TOLD", {**fact, "phase": "did", **answer})


if __name__ == "__main__":
    main()
