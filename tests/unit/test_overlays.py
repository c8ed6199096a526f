# SPDX-License-Identifier: LGPL-2.1-or-later
"""Overlays: what svirtd writes is what QEMU's own tool reads; words of a command, put in once."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core.filesystems import Mount
from svirtd.core.goals import BUILT_INS, ISOLATED, Goal
from svirtd.core.model import Access, Identity, Kind, ResourceRequest, Seen, Terms
from svirtd.core.names import check_resource_id
from svirtd.core.overlays import (
    BACKING_MAX_BYTES,
    empty,
    file_name,
    filled,
    has_overlay,
    refuse_requests,
    refuse_unknown_words,
    words,
)
from svirtd.errors import InvalidArgs, ResourceRefused

VIEW = BUILT_INS["view-only"]
RUNTIME = "/run/svirtd/vm/0123456789abcdef"


def qemu_img(*argv: str) -> str:
    return subprocess.run(["qemu-img", *argv], capture_output=True, text=True, check=True).stdout


def make(folder: Path, size: int, content: bytes = b"") -> tuple[Path, Path]:
    """Make a raw image and an overlay over it."""
    disk, over = folder / "a.img", folder / "o.qcow2"
    with open(disk, "wb") as file:
        file.write(content)
        file.truncate(size)
    overlay = empty(str(disk), size)
    with open(over, "wb") as file:
        file.write(overlay.head)
        file.truncate(overlay.length)
    return disk, over


@pytest.mark.parametrize(
    "size", [0, 1, 512, 4096, (1 << 20) + 1, 1 << 29, (1 << 29) + 512, 1 << 40]
)
def test_qemus_own_tool_finds_nothing_wrong(tmp_path: Path, size: int) -> None:
    disk, over = make(tmp_path, size)
    info: dict[str, Any] = json.loads(qemu_img("info", "--output=json", str(over)))
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == -(-size // 512) * 512
    assert info["backing-filename"] == str(disk)
    assert info["backing-filename-format"] == "raw"
    checked = json.loads(qemu_img("check", "--output=json", str(over)))
    assert {key: checked.get(key, 0) for key in ("corruptions", "leaks", "check-errors")} == {
        "corruptions": 0,
        "leaks": 0,
        "check-errors": 0,
    }


def test_it_shows_what_is_below_and_takes_the_writes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    disk, over = make(tmp_path, len(content), content)
    qemu_img("convert", "-O", "raw", str(over), str(tmp_path / "seen"))
    assert (tmp_path / "seen").read_bytes() == content
    qemu_img("compare", "-f", "qcow2", "-F", "raw", str(over), str(disk))
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 65536 65536", str(over)]
    subprocess.run(write, check=True, capture_output=True)
    assert disk.read_bytes() == content
    qemu_img("convert", "-O", "raw", str(over), str(tmp_path / "seen"))
    expected = content[:65536] + b"\x5a" * 65536 + content[131072:]
    assert (tmp_path / "seen").read_bytes() == expected
    qemu_img("check", str(over))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 50))
def test_any_size_is_told_right(size: int) -> None:
    overlay = empty("/a", size)
    assert overlay.head.startswith(b"QFI\xfb\0\0\0\3")
    assert len(overlay.head) == 3 * 65536 < overlay.length


def test_what_the_format_cannot_hold_is_refused() -> None:
    empty("/" + "a" * (BACKING_MAX_BYTES - 1), 512)
    with pytest.raises(ResourceRefused, match="1024 bytes, and an overlay names the file below it"):
        empty("/" + "a" * BACKING_MAX_BYTES, 512)
    with pytest.raises(ResourceRefused, match="too large for an overlay"):
        empty("/a", 1 << 52)


def request(id_: str = "", access: Access = Access.READONLY, takes: str = "") -> ResourceRequest:
    return ResourceRequest("/d/a.img", None, access, Terms(id=id_, takes=takes))


def seen(id_: str = "", access: Access = Access.READONLY, path: str = "/d/a.img") -> Seen:
    return Seen(
        path,
        access,
        path,
        Identity(1, 2),
        Kind.FILE,
        1,
        False,
        None,
        0,
        Mount("ext4"),
        Terms(id=id_),
    )


@pytest.mark.parametrize(
    ("goal", "access", "id_", "made"),
    [
        (VIEW, Access.READONLY, "a", True),
        (VIEW, Access.PUBLIC, "a", True),
        (VIEW, Access.READONLY, "", False),
        (VIEW, Access.EXCLUSIVE, "a", False),
        (ISOLATED, Access.READONLY, "a", False),
    ],
)
def test_who_gets_an_overlay(goal: Goal, access: Access, id_: str, made: bool) -> None:
    assert has_overlay(goal, seen(id_, access)) is made


def test_the_words_of_a_command() -> None:
    both = [seen("a"), seen("b", Access.EXCLUSIVE, "/d/b.img"), seen("")]
    assert words(VIEW, both, RUNTIME, {}) == {
        "runtime": RUNTIME,
        "resource.a": f"{RUNTIME}/{file_name('a')}",
        "resource.a.source": "/d/a.img",
        "resource.b": "/d/b.img",
        "resource.b.source": "/d/b.img",
    }
    assert words(VIEW, both, RUNTIME, {"a": "/d/kept"})["resource.a"] == "/d/kept"
    assert words(ISOLATED, both, RUNTIME, {})["resource.a"] == "/d/a.img"


def test_what_was_put_in_is_not_looked_at_again() -> None:
    """A file may be called like a word."""
    meaning = words(ISOLATED, [seen("a", path="/d/{runtime}{resource.a}")], RUNTIME, {})
    assert filled("x={resource.a},{runtime}", meaning) == (
        f"x=/d/{{runtime}}{{resource.a}},{RUNTIME}"
    )


@given(st.text())
def test_an_argument_without_words_is_as_it_was(argument: str) -> None:
    meaning = {"runtime": "R", "resource.a": "A"}
    if "{runtime}" not in argument and "{resource." not in argument:
        assert filled(argument, meaning) == argument
    assert filled("{runtime}", meaning) == "R"


@given(
    st.lists(st.sampled_from(["{runtime}", "{resource.a}", "{resource.a.source}", "x", "{", "}"]))
)
def test_each_word_is_replaced_once_where_it_stands(parts: list[str]) -> None:
    meaning = {"runtime": "{resource.a}", "resource.a": "{runtime}", "resource.a.source": "s"}
    put = {f"{{{word}}}": text for word, text in meaning.items()}
    plain = [part for part in parts if part not in "{}"]
    assert filled("".join(plain), meaning) == "".join(put.get(part, part) for part in plain)


@pytest.mark.parametrize(
    "argument",
    ["{resource.b}", "{resource.}", "{resource.a.sources}", "x={resource.A}", "{resource.a b}",
     "{resource.../../etc}", "{resource.a.}", "{resource.a.source.source}", "{resource.\n}"],
)  # fmt: skip
def test_a_word_for_no_resource_is_an_error(argument: str) -> None:
    with pytest.raises(InvalidArgs, match=r"is not known; known: \{resource\.a\.source\}, \{resou"):
        refuse_unknown_words(["/bin/true", argument], [request("a")])
    with pytest.raises(InvalidArgs, match="known: none: no resource has an id"):
        refuse_unknown_words([argument], [])


def test_words_that_are_known_are_not() -> None:
    argv = [
        "{runtime}",
        "{resource.a}{resource.a.source}",
        "{x}",
        "{{",
        "{resource",
        "{Resource.b}",
    ]
    refuse_unknown_words(argv, [request("a")])


def test_an_id_is_one_resources() -> None:
    with pytest.raises(InvalidArgs, match="two resources have the id 'a'"):
        refuse_requests(VIEW, [request("a"), request("b"), request("a")])
    refuse_requests(VIEW, [request(), request(), request("a")])


def test_writes_are_kept_where_there_are_overlays() -> None:
    with pytest.raises(InvalidArgs, match="with goal 'isolated' none is made"):
        refuse_requests(ISOLATED, [request("a"), request(access=Access.EXCLUSIVE, takes="a")])
    refuse_requests(VIEW, [request("a"), request(access=Access.EXCLUSIVE, takes="a")])


@pytest.mark.parametrize(
    "text", ["", "-a", "_a", "a" * 33, "a.b", "a/b", "../a", "é", "a b", "a\n", "{a}", "a,b", "a\0"]
)
def test_what_cannot_be_an_id(text: str) -> None:
    with pytest.raises(InvalidArgs, match="cannot be a resource's"):
        check_resource_id(text)


@pytest.mark.parametrize("text", ["a", "A-1_b", "0", "a" * 32])
def test_what_can_be_one(text: str) -> None:
    assert check_resource_id(text) == text
