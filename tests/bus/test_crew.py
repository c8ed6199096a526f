# SPDX-License-Identifier: LGPL-2.1-or-later
"""Workers share a tree whatever it looks like: each entry is worked on, and by one of them."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from svirtd.core.trees import Mode, Report, Rule, Sweep
from svirtd.host import tree_server
from svirtd.host.crew import Offence, Other, beside_crew
from tests.support import label, set_label

OLD = "system_u:object_r:virt_image_t:s0"
Make = Callable[[Path], None]
NEW = "system_u:object_r:svirt_image_t:s0:c1,c2"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for a tree, which is gone again at the end."""
    path = tmp_path / "tree"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def _chain(root: Path) -> None:
    """There is never but one folder to give away."""
    for number in range(150):
        root = root / f"{number:03}"
        root.mkdir()
        for name in "ab":
            (root / name).touch()


def _wide(root: Path) -> None:
    for number in range(300):
        (root / f"{number:03}").mkdir()
        (root / f"{number:03}" / "file").touch()


def _uneven(root: Path) -> None:
    """Whoever gets the last folder has nearly all to do."""
    for number in range(20):
        (root / f"{number:02}").mkdir()
    for number in range(40):
        folder = root / "07" / f"{number:02}" / "in"
        folder.mkdir(parents=True)
        for one in range(50):
            (folder / f"{one:02}").touch()


def _flat(root: Path) -> None:
    for number in range(3000):
        (root / f"{number:04}").touch()


def _nothing(root: Path) -> None:
    assert root.is_dir()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Make], Path]]:
    """A function that returns a tree, made once: ext4 takes long to find inodes for thousands of
    files where as many were deleted a moment before."""
    made: dict[Make, Path] = {}

    def tree(make: Make) -> Path:
        if make not in made:
            made[make] = tmp_path_factory.mktemp("tree")
            make(made[make])
        return made[make]

    yield tree
    for root in made.values():
        shutil.rmtree(root)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("make", [_chain, _wide, _uneven, _flat, _nothing])
def test_each_entry_is_worked_on_by_one(
    grown: Callable[[Make], Path], monkeypatch: pytest.MonkeyPatch, make: Make, workers: int
) -> None:
    root = grown(make)
    paths = [root, *root.rglob("*")]
    for path in paths:
        set_label(path, OLD)
    told: list[tuple[int, float]] = []
    report = _swept(root, Sweep(Mode.SET, NEW, OLD), workers, monkeypatch, told)
    assert report.done == len(paths)
    assert {label(path) for path in paths} == {NEW}
    done, part = told[-1]
    assert done == len(paths)
    assert part == pytest.approx(1.0)
    # What is worked on twice is counted twice here, as its label is still the same.
    seen = _swept(root, Sweep(Mode.LOOK, None, None), workers, monkeypatch, [])
    assert {name: tally.count for name, tally in seen.labels.items()} == {NEW: len(paths)}
    back = _swept(root, Sweep(Mode.BACK, NEW, OLD), workers, monkeypatch, [])
    assert back == Report(done=len(paths))
    assert {label(path) for path in paths} == {OLD}


def test_an_offence_is_told_while_others_wait_for_a_share(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever gets the folder is at its end before he could heed what the others want.
    (root / "in").mkdir()
    (root / "in" / "file").touch()
    os.link(root / "in" / "file", root / "in" / "once-more")
    for _ in range(20):
        with pytest.raises(Offence) as caught:
            _swept(root, Sweep(Mode.SET, NEW, None), 4, monkeypatch, [])
        assert caught.value.found == "2"


def _swept(
    root: Path,
    sweep: Sweep,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    told: list[tuple[int, float]],
) -> Report:
    monkeypatch.setattr(tree_server, "WORKERS_MAX", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(workers)))
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with beside_crew() as crew:
            return asyncio.run(
                crew.sweep(
                    fd,
                    sweep,
                    remember=_remember,
                    told=lambda done, part: told.append((done, part)),
                )
            )
    finally:
        os.close(fd)


async def _remember(_: Sequence[Other]) -> None:
    """What is labelled already, by the time before this."""


def test_an_entry_that_cannot_be_labelled_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _uneven(root)
    fixed = root / "07" / "20" / "in" / "30"
    subprocess.run(["chattr", "+i", fixed], check=True)
    try:
        with pytest.raises(Offence) as caught:
            _swept(root, Sweep(Mode.SET, NEW, None), 2, monkeypatch, [])
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert (caught.value.rule, caught.value.path) == (Rule.FAILED, str(fixed.relative_to(root)))
