# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM only reads: overlays that take its writes, and digests that prove that nothing did."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.core import overlays
from svirtd.host.bus import BusError, Variant
from tests import svirtctl
from tests.bus.test_goals import ACQUIRE, LAUNCH, goal, recorded
from tests.bus.test_launch import SLEEP, show
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, unwrap, wait_for

CONTENT = b"evidence" * 8192
# Writes to the overlay as a VM's QEMU would, then stays.
WRITER = (
    'qemu-io -f qcow2 -c \'write -P 0x5a 0 4096\' "$1" >/dev/null && touch "$2"; exec sleep 1000'
)


def one(path: Path, id_: str = "a", **more: str) -> dict[str, Variant]:
    values = {"path": str(path), "id": id_, **more}
    return {key: Variant("s", value) for key, value in values.items()}


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.img"
    path.write_bytes(CONTENT)
    return path


def findings(client: Client) -> list[dict[str, Any]]:
    return [unwrap(body[0]) for body in client.seen("DriftFound")]


def qemu_img(*argv: str) -> dict[str, Any]:
    done = subprocess.run(["qemu-img", *argv], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def launch(
    client: Client, name: str, argv: list[str], *given: dict[str, Variant], **options: Any
) -> str:
    client.call("Launch", LAUNCH, name, argv, list(given), options)
    return str(client.properties(name)["RuntimeDirectory"])


@pytest.mark.parametrize("name", ["forensic", "view-only"])
def test_writes_go_to_an_overlay_that_ends_with_the_vm(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path, name: str
) -> None:
    done = tmp_path / "done"
    argv = ["/bin/sh", "-c", WRITER, "sh", "{resource.a}", str(done)]
    runtime = launch(client, "vm", argv, one(evidence), **goal(name))
    overlay = Path(runtime) / "a.overlay.qcow2"
    vm = client.properties("vm")
    wait_for("the write", done.exists)
    info = os.stat(overlay)
    assert (info.st_uid, info.st_mode & 0o777) == (0, 0o600)
    assert label(overlay) == vm["ImageContext"]
    assert ":svirtd_scratch_t:" in vm["ImageContext"]
    told = qemu_img("info", "-U", "--output=json", str(overlay))
    assert (told["backing-filename"], told["virtual-size"]) == (str(evidence), len(CONTENT))
    (held,) = vm["Resources"]
    assert held["id"] == "a"
    client.release("vm")
    assert not overlay.exists()
    assert evidence.read_bytes() == CONTENT
    assert label(evidence) is None


def test_the_overlay_belongs_to_the_user_that_the_vm_runs_as(
    daemon: Daemon, client: Client, evidence: Path
) -> None:
    user = {"user": Variant("s", "nobody")}
    runtime = launch(client, "vm", SLEEP, one(evidence), **goal("view-only"), **user)
    info = os.stat(f"{runtime}/a.overlay.qcow2")
    assert (info.st_uid, info.st_mode & 0o777) == (65534, 0o600)
    client.release("vm")


def test_words_of_a_command_without_an_overlay(
    daemon: Daemon, client: Client, evidence: Path
) -> None:
    """Access public has no id here, isolated makes none: the word is the file itself."""
    argv = ["/bin/sh", "-c", "exec sleep 1000", "{resource.a}", "{resource.a.source}", "{runtime}"]
    runtime = launch(client, "vm", argv, one(evidence))
    pid = client.properties("vm")["MainPID"]
    unit = client.properties("vm")["Unit"]
    told = show(unit, "ExecStart")["ExecStart"]
    assert f"{evidence} {evidence} {runtime}" in told
    assert not os.path.exists(f"{runtime}/a.overlay.qcow2")
    assert pid
    client.release("vm")


def test_writes_are_kept_in_the_callers_own_file_by_choice(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path
) -> None:
    kept = tmp_path / "kept.qcow2"
    kept.touch()
    done = tmp_path / "done"
    argv = ["/bin/sh", "-c", WRITER, "sh", "{resource.a}", str(done)]
    given = one(evidence, overlay=str(kept))
    runtime = launch(client, "vm", argv, given, **goal("forensic"))
    wait_for("the write", done.exists)
    assert not os.path.exists(f"{runtime}/a.overlay.qcow2")
    assert label(kept) == client.properties("vm")["ImageContext"]
    client.release("vm")
    assert label(kept) is None
    assert evidence.read_bytes() == CONTENT
    told = qemu_img("info", "--output=json", str(kept))
    assert told["backing-filename"] == str(evidence)
    written = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 0 4096", str(kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Pattern verification failed" not in written.stdout
    # The next run goes on with it: what is there is not made anew.
    before = kept.read_bytes()
    launch(client, "vm", SLEEP, given, **goal("forensic"))
    client.release("vm")
    assert kept.read_bytes() == before


def test_a_start_that_fails_leaves_the_file_empty(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path
) -> None:
    kept, bad = tmp_path / "kept.qcow2", tmp_path / "bad"
    kept.touch()
    bad.write_bytes(b"no program")
    bad.chmod(0o755)
    given = [one(evidence, overlay=str(kept))]
    refused = client.error("Launch", LAUNCH, "vm", [str(bad)], given, goal("forensic"))
    assert refused.name == "org.svirt1.Error.UnitFailed"
    assert (kept.read_bytes(), label(kept), client.vms()) == (b"", None, {})


def test_an_overlay_that_was_cut_off_is_begun_anew(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path
) -> None:
    kept = tmp_path / "kept.qcow2"
    whole = overlays.empty(str(evidence), len(CONTENT))
    image_ = whole.head.ljust(whole.length, b"\0")
    for start in (bytes(whole.length), bytes(4) + image_[4:]):
        kept.write_bytes(start)
        launch(client, "vm", SLEEP, one(evidence, overlay=str(kept)), **goal("forensic"))
        client.release("vm")
        assert kept.read_bytes() == image_
    # Anything else is the caller's, whatever it is.
    for start in (bytes(whole.length + 1), b"QFI\xfb" + bytes(whole.length - 4), b"x"):
        kept.write_bytes(start)
        launch(client, "vm", SLEEP, one(evidence, overlay=str(kept)), **goal("forensic"))
        client.release("vm")
        assert kept.read_bytes() == start


@pytest.mark.parametrize(
    ("given", "of", "text"),
    [
        ({"overlay": "{kept}"}, "view-only", "does not allow access 'exclusive'"),
        ({"overlay": "{kept}", "access": "readonly"}, "isolated", "none is made"),
        ({"overlay": "{kept}", "access": "exclusive"}, "forensic", "'overlay' takes an 'id'"),
        ({"overlay": "kept"}, "forensic", "is not absolute"),
        ({"overlay": "/etc/passwd"}, "forensic", "not in [labels] relabel-from"),
        ({"overlay": "{evidence}"}, "forensic", "are the same file"),
        ({"overlay": "/dev/null"}, "forensic", "character device"),
    ],
)  # fmt: skip
def test_a_file_to_keep_writes_in_is_a_resource_as_any_other(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path,
    given: dict[str, str], of: str, text: str,
) -> None:  # fmt: skip
    kept = tmp_path / "kept"
    kept.touch()
    if given["overlay"] == "/etc/passwd":
        # On a kernel without SELinux it has no label: then it is its label that is looked at.
        passwd = tmp_path / "passwd"
        passwd.touch()
        os.setxattr(passwd, "security.selinux", b"system_u:object_r:passwd_file_t:s0\0")
        given = {**given, "overlay": str(passwd)}
    told = {k: v.format(kept=kept, evidence=evidence) for k, v in given.items()}
    before = kept.read_bytes()
    refused = client.error("Launch", LAUNCH, "vm", SLEEP, [one(evidence, **told)], goal(of))
    assert text in refused.text
    assert kept.read_bytes() == before
    assert client.vms() == {}
    if (tmp_path / "passwd").exists():
        os.removexattr(tmp_path / "passwd", "security.selinux")


def test_an_overlay_is_for_a_launch(
    daemon: Daemon, client: Client, tmp_path: Path, evidence: Path
) -> None:
    (tmp_path / "kept").touch()
    given = [one(evidence, overlay=str(tmp_path / "kept"))]
    refused = client.error("Acquire", ACQUIRE, "vm", given, goal("forensic"))
    assert "'overlay' is for a launch" in refused.text


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/bin/sleep", "{resource.b}"], "'{resource.b}' is not known; known: {resource.a.source}"),
        (["/bin/sleep", "{resource.}"], "is not known"),
        (["/bin/{resource.b}"], "is not known"),
    ],
)
def test_a_word_for_nothing_is_refused_before_anything_is_labelled(
    daemon: Daemon, client: Client, evidence: Path, argv: list[str], text: str
) -> None:
    refused = client.error("Launch", LAUNCH, "vm", argv, [one(evidence)], {})
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert text in refused.text
    assert client.vms() == {}


def test_hostile_ids(daemon: Daemon, client: Client, evidence: Path, tmp_path: Path) -> None:
    other = image(tmp_path / "b.img")
    for id_ in ("", "../../x", "a/b", "a.b", "-x", "a" * 33, "é", "{runtime}", "a\n", "a b"):
        refused = client.error("Launch", LAUNCH, "vm", SLEEP, [one(evidence, id_)], {})
        assert "cannot be a resource's" in refused.text
    twice = [one(evidence), one(other)]
    refused = client.error("Launch", LAUNCH, "vm", SLEEP, twice, {})
    assert "two resources have the id 'a'" in refused.text


# -- digests ------------------------------------------------------------------------------------


@pytest.fixture
def held(daemon: Daemon, client: Client, evidence: Path) -> Iterator[str]:
    """A VM that holds evidence; returns its digest."""
    client.listen()
    launch(client, "vm", SLEEP, one(evidence), **goal("forensic"))
    (resource,) = client.properties("vm")["Resources"]
    yield str(resource["digest"])
    assert label(evidence) is None


def test_the_digest_is_shown(held: str, client: Client) -> None:
    assert held == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert held in svirtctl.run("show", "vm").stdout
    client.release("vm")
    assert findings(client) == []


def test_what_root_altered_meanwhile_is_found_and_the_release_goes_on(
    held: str, client: Client, evidence: Path
) -> None:
    with open(evidence, "r+b") as file:
        file.write(b"E")
    client.release("vm")
    (found,) = wait_for("the finding", lambda: findings(client))
    now = hashlib.sha256(evidence.read_bytes()).hexdigest()
    assert {k: found[k] for k in ("kind", "vm", "path", "expected", "found", "repaired")} == {
        "kind": "altered",
        "vm": "vm",
        "path": str(evidence),
        "expected": held,
        "found": f"sha256:{now}",
        "repaired": False,
    }
    assert "its content is not what it was" in found["reason"]
    assert "its content is not what it was" in recorded()
    assert client.vms() == {}


def test_a_goal_without_digests_takes_none(daemon: Daemon, client: Client, evidence: Path) -> None:
    launch(client, "vm", SLEEP, one(evidence), **goal("view-only"))
    (resource,) = client.properties("vm")["Resources"]
    assert "digest" not in resource
    client.release("vm")


def test_an_acquired_vm_has_digests_too(daemon: Daemon, client: Client, evidence: Path) -> None:
    client.call("Acquire", ACQUIRE, "vm", [one(evidence)], goal("forensic"))
    (resource,) = client.properties("vm")["Resources"]
    assert resource["digest"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    client.release("vm")


def test_a_crash_in_between_does_not_lose_it(
    own_daemon: Daemon, client: Client, evidence: Path
) -> None:
    launch(client, "vm", ["/bin/sleep", "1000"], one(evidence), **goal("forensic"))
    (before,) = client.properties("vm")["Resources"]
    own_daemon.kill()
    with open(evidence, "ab") as file:
        file.write(b"more")
    own_daemon.start()
    client.listen()
    (after,) = client.properties("vm")["Resources"]
    assert after["digest"] == before["digest"]
    client.release("vm")
    (found,) = wait_for("the finding", lambda: findings(client))
    assert found["kind"] == "altered"


@pytest.mark.parametrize(
    ("points", "after"),
    [
        # The labels all stand, and no digest was taken: the caller was told nothing.
        ("label-after=kill", {}),
        ("close-before=kill", {"vm": "labelled"}),
    ],
)
def test_an_acquisition_without_its_digest_is_undone(
    sandbox: Sandbox, client: Client, tmp_path: Path, evidence: Path, points: str,
    after: dict[str, str],
) -> None:  # fmt: skip
    daemon = Daemon(tmp_path / "daemon", failpoints=points)
    daemon.start()
    with pytest.raises(BusError):
        client.call("Acquire", ACQUIRE, "vm", [one(evidence)], goal("forensic"))
    assert daemon.process is not None
    daemon.process.wait(20.0)
    assert ":virt_content_t:" in str(label(evidence))
    daemon.failpoints = ""
    daemon.start()
    assert client.vms() == after
    assert (label(evidence) is None) is not bool(after)
    if after:
        (held,) = client.properties("vm")["Resources"]
        assert held["digest"] == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        client.release("vm")
    assert daemon.stop() == 0


def test_svirtctl_names_disks_and_keeps_writes(
    daemon: Daemon, client: Client, evidence: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    disk = f"{evidence}:readonly,id=a,overlay={kept}"
    command = ["sh", "-c", "sleep 1000; :", "sh", "{resource.a}"]
    done = svirtctl.run("launch", "vm", "--goal", "forensic", "--disk", disk, "--", *command)
    assert done.returncode == 0, done.stderr
    assert str(kept) in show(client.properties("vm")["Unit"], "ExecStart")["ExecStart"]
    assert kept.read_bytes().startswith(b"QFI")
    client.release("vm")
    # Without an access it is the goal's.
    done = svirtctl.run("acquire", "vm", "--goal", "view-only", "--disk", str(evidence))
    assert done.returncode == 0, done.stderr
    assert client.properties("vm")["Resources"][0]["access"] == "readonly"
    client.release("vm")
