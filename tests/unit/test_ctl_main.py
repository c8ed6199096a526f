# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl as a process, as far as it needs no bus: usage, exit codes, completion, start-up."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import svirtd
from svirtd.ctl.commands import COMMANDS
from svirtd.ctl.failures import Exit, exit_code, from_bus
from svirtd.errors import bus_errors

REPO = Path(__file__).resolve().parents[2]
STANDARD = "org.freedesktop.DBus.Error."


def ctl(
    *arguments: str | bytes, bus: str = "unix:path=/nonexistent", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "svirtd.ctl", *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus} | environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def test_version_needs_neither_the_bus_library_nor_rich() -> None:
    code = (
        "import sys, svirtd.ctl.main as m\n"
        "code = m.run(['--version'])\n"
        "heavy = {'asyncio', 'dbus_next', 'rich', 'svirtd.ctl.client'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} {code}' if heavy or code else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"svirtctl {svirtd.__version__}\n"


def test_a_command_is_loaded_without_the_others() -> None:
    """A unit waits for it, at its start and at its end."""
    code = (
        "import sys, svirtd.ctl.main as m\n"
        "code = m.run(['enrolled', 'start', '--help'])\n"
        "others = [m for m in sys.modules if m.endswith('_commands')]\n"
        "sys.exit(f'{others} {code}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.stderr == "['svirtd.ctl.enrolled_commands'] 0\n"


def test_help_names_every_command_and_exit_code() -> None:
    done = ctl("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name} ", done.stdout, re.M)) == 1
        assert ctl(name, "--help").returncode == 0
    for code in range(7):
        assert f"  {code}  " in done.stdout
    assert "..." not in done.stdout.split("Options:")[1], "a short help is cut off"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["lost"], "No such command"),
        (["list", "--lost"], "No such option"),
        (["show"], "Missing argument 'NAME'"),
        (["launch", "web"], "Missing argument 'COMMAND...'"),
        (["launch", "web", "qemu", "-m", "5"], "belongs behind --"),
        (["launch", "web", "--", "./no\x1bsuch/"], ""),
        (["launch", "web", "--env", "A", "--", "/bin/true"], "'A' is not NAME=value"),
        (["launch", "web", "--property", "MemoryMax=x", "--", "/bin/true"], "MemoryMax: 'x'"),
        (["acquire", "web", "--disk", ":public"], "empty path"),
        (["acquire", "web", "--lifetime", "forever"], "'release', 'caller'"),
        (["channel", "web", "qmp", "--linger", "-1"], "--linger"),
        (["acquire", "web", "--disk", "a:group"], "PATH:group=NAME"),
        (["acquire", "web", "--disk", "a:readonly,colour=red"], "'colour' is not known"),
        (["group"], "Missing command"),
        (["group", "grant", "g", "web", "--until", "yesterday"], "'yesterday' is not a span"),
        (["group", "grant", "g", "web", "--stop"], "--until"),
        (["group", "grant", "g", "web", "--owner", "no such user"], "'no such user'"),
        (["wall", "clear", "banks"], "Missing argument 'SUBJECT'"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    done = ctl(*arguments)
    wanted = Exit.USAGE if said else Exit.UNREACHABLE
    assert (done.returncode, done.stdout) == (wanted, "")
    assert done.stderr.startswith("svirtctl: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()
    assert said in done.stderr
    as_json = ctl("--json", *arguments)
    assert as_json.returncode == wanted
    error = json.loads(as_json.stderr)
    assert set(error) == {"error", "message"}
    assert said in error["message"]


def test_an_argument_that_is_not_utf8() -> None:
    done = ctl("show", b"a\xff")
    assert done.returncode == Exit.USAGE
    assert "not UTF-8" in done.stderr


def test_no_bus() -> None:
    for arguments in (["list"], ["monitor"], ["release", "web"], ["channel", "web", "qmp"]):
        done = ctl(*arguments)
        assert (done.returncode, done.stdout) == (Exit.UNREACHABLE, "")
        assert "cannot connect to the bus" in done.stderr
        assert "Traceback" not in done.stderr
    error = json.loads(ctl("list", "--json").stderr)
    assert error["error"] == STANDARD + "NoServer"
    assert ctl("--bus", "nonsense", "list", bus="").returncode == Exit.UNREACHABLE


def test_json_behind_the_separator_is_the_commands_own() -> None:
    done = ctl("launch", "web", "--", "/bin/true", "--json")
    assert done.returncode == Exit.UNREACHABLE
    assert done.stderr.startswith("svirtctl: ")


def test_closed_standard_descriptors() -> None:
    script = f'exec "{sys.executable}" -m svirtd.ctl list <&- >&- 2>&-'
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    done = subprocess.run(["/bin/sh", "-c", script], cwd=REPO, env=environment, check=False)
    assert done.returncode == Exit.UNREACHABLE


def test_output_that_cannot_be_written() -> None:
    script = f'exec "{sys.executable}" -m svirtd.ctl --help >/dev/full'
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.REFUSED
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_SVIRTCTL_COMPLETE" in ctl(_SVIRTCTL_COMPLETE=f"{shell}_source").stdout
    words = {"COMP_WORDS": "svirtctl la", "COMP_CWORD": "la" if shell == "fish" else "1"}
    done = ctl(_SVIRTCTL_COMPLETE=f"{shell}_complete", **words)
    assert "launch" in done.stdout
    assert "list" not in done.stdout


def test_completion_of_names_is_silent_without_a_daemon() -> None:
    done = ctl(_SVIRTCTL_COMPLETE="bash_complete", COMP_WORDS="svirtctl show ", COMP_CWORD="2")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_every_error_of_the_contract_has_its_exit_code() -> None:
    codes = {name: exit_code(name) for name in bus_errors()}
    assert {name for name, code in codes.items() if code is Exit.NOT_FOUND} == {
        "org.svirt1.Error.NoSuchVM",
        "org.svirt1.Error.NoSuchGroup",
        STANDARD + "UnknownObject",
    }
    assert {name for name, code in codes.items() if code is Exit.PERMISSION} == {
        STANDARD + "AccessDenied",
        STANDARD + "InteractiveAuthorizationRequired",
    }
    assert {name for name, code in codes.items() if code is Exit.BUSY} == {
        "org.svirt1.Error.ResourceBusy",
        "org.svirt1.Error.VMExists",
        "org.svirt1.Error.GroupExists",
    }
    rest = {code for code in codes.values() if code not in (Exit.NOT_FOUND, 4, 5)}
    assert rest == {Exit.REFUSED}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (STANDARD + "ServiceUnknown", "The name is not activatable", "systemctl start svirtd"),
        (STANDARD + "NameHasNoOwner", "", "systemctl start svirtd"),
        (STANDARD + "NoReply", "", "ended before it answered"),
        (STANDARD + "TimedOut", "", "systemctl start svirtd"),
        (STANDARD + "Spawn.ChildExited", "exit 1", "could not be started (exit 1)"),
        ("org.freedesktop.systemd1.NoSuchUnit", "no unit", "could not be started (no unit)"),
    ],
)
def test_a_daemon_that_is_not_there(name: str, text: str, said: str) -> None:
    failure = from_bus(name, text)
    assert failure.code is Exit.UNREACHABLE
    assert failure.name == name
    assert said in failure.text


def test_errors_of_the_bus_policy_are_told_in_words() -> None:
    failure = from_bus(STANDARD + "AccessDenied", "Rejected send message, 2 matched rules; ...")
    assert failure.code is Exit.PERMISSION
    assert "as root" in failure.text
    assert from_bus(STANDARD + "AccessDenied", "uid 7 may not").text == "uid 7 may not"
    assert from_bus("x.y", "").text == "x.y"
