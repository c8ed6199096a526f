# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said, and what is not believed, where the daemon itself has run out of something."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svirtd.core.model import Access, ResourceRequest
from svirtd.errors import InvalidArgs, LimitsExceeded, SvirtError
from svirtd.host import opening, processes, runtime
from svirtd.host.kernel import Kernel
from svirtd.host.scarcity import refuse_without_descriptor, scarcity


@contextmanager
def no_descriptor() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "Too many open files); try later, or raise LimitNOFILE="),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "free memory"),
    ],
)
def test_errors_of_the_daemons_own(number: int, advice: str) -> None:
    refusal = scarcity(OSError(number, os.strerror(number)))
    assert refusal is not None
    assert advice in refusal.text


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "no"), OSError("odd"), ValueError(errno.EMFILE)]
)
def test_errors_of_something_else(error: Exception) -> None:
    assert scarcity(error) is None


class Watched(Kernel):
    """Shows a process's label while there is room; how many are looked at before there is none."""

    def __init__(self, room_for: int) -> None:
        super().__init__()
        self.room_for = room_for

    def enabled(self) -> bool:
        return True

    def process_label(self, pid: int) -> str:
        self.room_for -= 1
        if self.room_for >= 0:
            return super().process_label(pid)
        with no_descriptor():
            return super().process_label(pid)


def test_processes_that_could_not_be_looked_at_have_not_ended() -> None:
    with pytest.raises(LimitsExceeded):
        processes.under(Watched(1), "system_u:system_r:svirt_t:s0:c1,c2")
    with no_descriptor(), pytest.raises(LimitsExceeded):
        processes.under(Watched(1), "system_u:system_r:svirt_t:s0:c1,c2")


@pytest.mark.parametrize("access", [Access.EXCLUSIVE, Access.PUBLIC])
@pytest.mark.parametrize("by", ["name", "link", "descriptor"])
def test_an_object_is_not_blamed(tmp_path: Path, access: Access, by: str) -> None:
    path = tmp_path / "a.img"
    path.touch()
    (tmp_path / "link").symlink_to(path)
    with open(path, "r+b") as file:
        request = {
            "name": ResourceRequest(str(path), None, access),
            "link": ResourceRequest(str(tmp_path / "link"), None, access),
            "descriptor": ResourceRequest(None, file.fileno(), access),
        }[by]
        kernel = Kernel()
        with no_descriptor(), pytest.raises(LimitsExceeded, match="Too many open files"):
            opening.open_all(kernel, [request])
        opening.close_all(opening.open_all(kernel, [request]))


def test_a_user_is_not_blamed() -> None:
    refuse_without_descriptor()  # there is one now
    with pytest.raises(InvalidArgs, match="not known"):
        runtime.account("nobody-of-this-name", 0)
    with no_descriptor(), pytest.raises(LimitsExceeded):
        runtime.account("nobody-of-this-name", 0)


def test_an_empty_folder_goes_without_a_descriptor(tmp_path: Path) -> None:
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    with no_descriptor():
        runtime.remove_folder(str(tmp_path / "empty"))
        with pytest.raises(OSError, match="Too many open files"):
            runtime.remove_folder(str(tmp_path / "full"))
    assert os.listdir(tmp_path) == ["full"]
    runtime.remove_folder(str(tmp_path / "full"))
    runtime.remove_folder(str(tmp_path / "full"))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_not_blamed(tmp_path: Path) -> None:
    owner = runtime.Account("root", 0, 0, (0,))
    with no_descriptor(), pytest.raises(SvirtError, match="LimitNOFILE") as caught:
        runtime.make_folder(Kernel(), str(tmp_path / "vm" / "x"), owner, "a:b:c:s0", {})
    assert isinstance(caught.value, LimitsExceeded)
