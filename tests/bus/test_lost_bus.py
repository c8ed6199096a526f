# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus daemon ends: svirtd ends too, and its next start on a new bus settles everything."""

from pathlib import Path

import pytest

from svirtd.host.bus import BusLost
from tests.bus.faults import end_bus, ended, held, in_background, reached, restarted, running
from tests.sandbox import Sandbox
from tests.support import Client, image, label, svirt_units, wait_for

# Of svirtd.service: systemd does not start it again after 2 and 3.
TRY_AGAIN = 1


@pytest.mark.parametrize("point", ["start-before", "start-queued"])
def test_in_a_launch(sandbox: Sandbox, tmp_path: Path, point: str) -> None:
    """Before systemd was asked, and before it has answered: the unit may run by then."""
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    trace, hold = tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} {point}@2=hold:{hold}"
    with running(tmp_path / "d", failpoints=points) as daemon:
        before = Client()
        before.launch("other", ["/bin/sleep", "1000"], other)
        pid = before.properties("other")["MainPID"]
        with (
            held(hold) as let_go,
            in_background(lambda c: c.launch("vm", ["/bin/sleep", "1000"], disk)) as launch,
        ):
            wait_for("the point", lambda: reached(trace, point, 2))
            assert label(disk) is not None
            end_bus()
            let_go()
            with pytest.raises(BusLost):
                launch.result()
        before.close()
        assert ended(daemon) == TRY_AGAIN, daemon.output()
        assert "the bus" in daemon.output()
        restarted(daemon)
        client = Client()
        # A launch whose unit runs under its label is finished, any other undone.
        assert set(client.vms()) in ({"other"}, {"other", "vm"})
        for name, path in (("other", other), ("vm", disk)):
            if name in client.vms():
                vm = client.properties(name)
                assert (vm["State"], label(path)) == ("running", vm["ImageContext"])
            else:
                assert label(path) is None
                assert svirt_units() == ["svirt-other.service"]
        assert client.properties("other")["MainPID"] == pid
        for name in client.vms():
            client.release(name)
        client.close()


def test_half_way_through_a_release(sandbox: Sandbox, tmp_path: Path) -> None:
    disks = [image(tmp_path / f"{number}.img") for number in range(4)]
    trace, hold = tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} undo-before@3=hold:{hold}"
    with running(tmp_path / "d", failpoints=points) as daemon:
        client = Client()
        client.acquire("vm", *disks)
        client.close()
        with held(hold) as let_go, in_background(lambda c: c.release("vm")) as release:
            wait_for("half of it", lambda: reached(trace, "undo-before", 3))
            assert [label(disk) is None for disk in disks] == [True, True, False, False]
            end_bus()
            let_go()
            with pytest.raises(BusLost):
                release.result()
        assert ended(daemon) == TRY_AGAIN
        assert "Traceback" not in daemon.output()
        restarted(daemon)
        client = Client()
        assert client.vms() == {}
        assert [label(disk) for disk in disks] == [None] * 4
        client.close()


def test_while_files_are_labelled(sandbox: Sandbox, tmp_path: Path) -> None:
    """The request is cut off; its thread labels on, by descriptors that must be its own still."""
    disks = [image(tmp_path / f"{number}.img") for number in range(20)]
    trace, hold = tmp_path / "trace", tmp_path / "hold"
    points = f"trace:{trace} label-before@2=hold:{hold}"
    with running(tmp_path / "d", failpoints=points) as daemon:
        with held(hold) as let_go, in_background(lambda c: c.acquire("vm", *disks)) as acquire:
            wait_for("some of them", lambda: reached(trace, "label-before", 2))
            end_bus()
            let_go()
            with pytest.raises(BusLost):
                acquire.result()
        assert ended(daemon) == TRY_AGAIN
        # What the thread had begun it has brought to its end.
        assert reached(trace, "label-after", 20), daemon.output()
        found = {label(disk) for disk in disks}
        assert len(found) == 1
        assert None not in found
        restarted(daemon)
        client = Client()
        assert client.vms() == {"vm": "labelled"}
        client.release("vm")
        assert {label(disk) for disk in disks} == {None}
        client.close()
