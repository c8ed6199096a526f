# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of the administrator's own as VMs: three of them, started as a boot starts them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.enrolled import UNITS, done, residue, show, systemctl
from tests.guest.inside.audit import Audit
from tests.guest.inside.vms import (
    ORIGINAL,
    QEMU,
    Captive,
    Machine,
    Qemu,
    captive,
    categories,
    disk,
    process_label,
)
from tests.support import Client, label, wait_for

DENIED: Final = {"EACCES", "EPERM"}
FOLDER: Final = Path("/etc/svirtd/vms.d")
INSTALL: Final = "[Install]\nWantedBy=multi-user.target\n"
_START_S: Final = 90.0


@pytest.fixture(autouse=True)
def nothing_stays(client: Client) -> Iterator[None]:
    """The units of a test, and what lies beside them, are gone afterwards."""
    yield
    mine = [path.name for path in UNITS.glob("t-*.service")]
    for name in mine:
        (UNITS / name).unlink()
    systemctl("daemon-reload")
    assert residue() == []


class Enrolled(Captive):
    """A captive that systemd has started as the administrator's unit."""

    def __init__(self, client: Client, name: str) -> None:
        Machine.__init__(self, client, name, "control")


class EnrolledQemu(Qemu):
    """A QEMU that systemd has started as the administrator's unit."""

    def __init__(self, client: Client, name: str) -> None:
        Machine.__init__(self, client, name, "qmp")
        self.greet()


def unit(name: str, *lines: str, install: str = "") -> str:
    """Write a unit file as an administrator does."""
    (UNITS / name).write_text("[Service]\n" + "\n".join(lines) + "\n" + install, "utf-8")
    systemctl("daemon-reload")
    return name


def runs(client: Client, *names: str) -> None:
    wait_for(
        f"{', '.join(names)} run",
        lambda: {client.vms().get(name) for name in names} == {"running"},
        _START_S,
    )


def test_three_that_a_boot_starts(client: Client, audit: Audit) -> None:
    web, db, mail = disk("web"), disk("db"), disk("mail")
    program = " ".join(captive()[:-1])
    unit("t-web.service", f"ExecStart={program} ${{SVIRT_RUNTIME_DIR}}/control", install=INSTALL)
    options = "-machine none -nodefaults -display none -m 32"
    drive = "-blockdev driver=file,node-name=d0,locking=off,filename=/srv/vm/%i.img"
    qmp = "-qmp unix:${SVIRT_RUNTIME_DIR}/qmp,server=on,wait=off"
    kept = ("Type=exec", "NoNewPrivileges=yes", "CapabilityBoundingSet=")
    unit("t-vm@.service", *kept, f"ExecStart={QEMU} {options} {drive} {qmp}", install=INSTALL)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "mail.toml").write_text(
        '[qemu]\nmachine = "pc"\naccel = "tcg"\nmemory = "32M"\narguments = ["-S"]\n'
        "shutdown-timeout = 1\n"
        f'[[disk]]\npath = "{mail}"\n',
        "utf-8",
    )
    units = ("t-web.service", "t-vm@db.service", "svirt-vm@mail.service")
    done("enroll", "t-web", "web", "--disk", str(web))
    done("enroll", "t-vm@db", "db", "--disk", str(db))
    systemctl("enable", *units)
    # All that a boot would do about them.
    systemctl("start", "multi-user.target")
    runs(client, "web", "db", "mail")
    vms = {name: client.properties(name) for name in ("web", "db", "mail")}
    assert len({categories(vm["ProcessContext"]) for vm in vms.values()}) == 3
    for name, path in (("web", web), ("db", db), ("mail", mail)):
        assert process_label(vms[name]["MainPID"]) == vms[name]["ProcessContext"]
        assert label(path) == vms[name]["ImageContext"]
    listed = done("enrolled", "list")
    assert all(vms[name]["ProcessContext"] in listed for name in ("web", "db"))

    # Neither gets at another's disk; each at its own, over a restart of svirtd.
    systemctl("restart", "svirtd.service")
    taken, other = Enrolled(client, "web"), EnrolledQemu(client, "db")
    assert taken.pid == vms["web"]["MainPID"]
    assert taken.do(f"read({str(web)!r})") == 512
    for name, path in (("db", db), ("mail", mail)):
        with audit.denied("read open", taken.context, vms[name]["ImageContext"]):
            assert taken.fails(f"read({str(path)!r})") in DENIED
    assert other.writes() == ""
    taken.close()
    other.close()

    # The end of one is the end of one, and its next start has the same label.
    systemctl("stop", "t-web")
    assert (label(web), label(db)) == (ORIGINAL, vms["db"]["ImageContext"])
    # Without svirtd it does not start.
    systemctl("mask", "--runtime", "--now", "svirtd.service")
    assert "failed" in systemctl("start", "t-web", check=False)
    assert show("t-web.service", "MainPID") == {"MainPID": "0"}
    assert label(web) == ORIGINAL
    systemctl("unmask", "--runtime", "svirtd.service")
    systemctl("start", "svirtd.service", "t-web.service")
    runs(client, "web", "db", "mail")
    assert client.properties("web")["ProcessContext"] == vms["web"]["ProcessContext"]

    systemctl("disable", "--now", *units)
    assert [label(path) for path in (web, db, mail)] == [ORIGINAL] * 3
    assert client.vms() == {"web": "reserved", "db": "reserved"}
    done("unenroll", "t-web")
    done("unenroll", "t-vm@db")
    (FOLDER / "mail.toml").unlink()
    assert client.vms() == {}


def test_a_command_without_the_label_is_ended(client: Client) -> None:
    """By "+" it runs outside of what the unit file says, and looks like a good start."""
    path = disk("web")
    name = unit("t-loose.service", "ExecStart=+/bin/sleep 1000")
    done("enroll", name, "loose", "--disk", str(path))
    systemctl("start", name)
    wait_for("its end", lambda: show(name, "ActiveState") != {"ActiveState": "active"}, _START_S)
    wait_for("the labels", lambda: client.vms() == {"loose": "reserved"})
    assert show(name, "MainPID") == {"MainPID": "0"}
    assert label(path) == ORIGINAL
    systemctl("reset-failed", name, check=False)
    done("unenroll", name)


def test_a_program_that_is_none_of_a_vms_does_not_start(client: Client, audit: Audit) -> None:
    path = disk("web")
    name = unit("t-odd.service", "Type=exec", "ExecStart=/bin/sleep 1000")
    done("enroll", name, "odd", "--disk", str(path))
    context = client.properties("odd")["ProcessContext"]
    with audit.denied("entrypoint", context, "*:bin_t:s0"):
        assert "failed" in systemctl("start", name, check=False)
    assert show(name, "ExecMainStatus") == {"ExecMainStatus": "203"}
    wait_for("the labels", lambda: client.vms() == {"odd": "reserved"})
    assert label(path) == ORIGINAL
    # With the type of one it does: as a Firecracker that somebody has installed.
    program = Path("/usr/local/bin/odd")
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    subprocess.run(["chcon", "-t", "qemu_exec_t", program], check=True)
    unit("t-odd.service", "Type=exec", f"ExecStart={program} 1000")
    systemctl("reset-failed", name)
    systemctl("start", name)
    runs(client, "odd")
    systemctl("stop", name)
    done("unenroll", name)
    program.unlink()
