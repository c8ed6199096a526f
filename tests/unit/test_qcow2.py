# SPDX-License-Identifier: LGPL-2.1-or-later
"""The header of a qcow2 image: what is understood, and that nothing else is believed."""

import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core import overlays, qcow2
from svirtd.core.model import Format
from svirtd.core.qcow2 import Header

_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def _image(
    name: bytes = b"",
    form: bytes | None = b"raw",
    *,
    version: int = 3,
    bits: int = 16,
    incompatible: int = 0,
    data_file: bytes | None = None,
    more: bytes = b"",
    header_bytes: int = 104,
    name_at: int | None = None,
    name_bytes: int | None = None,
) -> bytes:
    """An image's head, as qemu-img makes it unless told otherwise."""
    extensions = more
    if name and form is not None:
        extensions += _extension(_BACKING_FORMAT, form)
    if data_file is not None:
        extensions += _extension(_DATA_FILE, data_file)
    extensions += bytes(8)
    size = 104 if version == 3 else 72
    where = size + len(extensions) if name else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, where if name_at is None else name_at),
        *(len(name) if name_bytes is None else name_bytes, bits, 1 << 30, 0, 1, 0x30000),
        *(0x10000, 1, 0, 0),
    )
    if version == 3:
        head += struct.pack(">QQQII", incompatible, 0, 0, 4, header_bytes)
    return (head + extensions + name).ljust(1 << 16, b"\0")


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (_image(), Header(1 << 30)),
        (_image(version=2), Header(1 << 30)),
        (_image(b"base.img"), Header(1 << 30, "base.img", Format.RAW)),
        (_image(b"/srv/b.qcow2", b"qcow2"), Header(1 << 30, "/srv/b.qcow2", Format.QCOW2)),
        (_image(b"b", version=2), Header(1 << 30, "b", Format.RAW)),
        (_image(b"./a:b"), Header(1 << 30, "./a:b", Format.RAW)),
        (_image("größe".encode()), Header(1 << 30, "größe", Format.RAW)),
        (_image(incompatible=4, data_file=b"/srv/d"), Header(1 << 30, data_file="/srv/d")),
        (_image(more=_extension(0x6803F857, bytes(48))), Header(1 << 30)),
        # What the bit does not say is no data file.
        (_image(data_file=b"/srv/d"), Header(1 << 30)),
        (_image(bits=9)[:512], Header(1 << 30)),
        (_image(name_bytes=7), Header(1 << 30)),
    ],
)
def test_what_an_image_says(image: bytes, found: Header) -> None:
    assert qcow2.parse(image) == found


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "cut off"),
        (bytes(1 << 16), "format 'raw'"),
        (_image()[:100], "cut off"),
        (_image(version=1), "version 1"),
        (_image(version=4), "version 4"),
        (_image(bits=8), "2^8"),
        (_image(bits=64), "2^64"),
        (_image(header_bytes=103), "103 bytes"),
        (_image(header_bytes=0), "0 bytes"),
        (_image(header_bytes=1 << 31), "2147483648 bytes"),
        (_image(incompatible=1 << 5), "features"),
        (_image(incompatible=1 << 63), "features"),
        (_image(b"b" * 1024), "1024 bytes"),
        (_image(b"b", name_bytes=0), "0 bytes"),
        (_image(b"b", name_bytes=0xFFFFFFFF), "4294967295 bytes"),
        (_image(b"b", name_at=0xFFFFFFFFFFFFFFFF), "outside"),
        (_image(b"b", name_at=1 << 16), "outside"),
        (_image(b"b", name_at=8), "outside"),
        (_image(b"b", bits=21, name_at=1 << 20), "cut off"),
        (_image(b"b", None), "does not say of what format"),
        (_image(b"b", b"vmdk"), "'raw' and 'qcow2' only"),
        (_image(b"b", b"raw\0"), "'raw' and 'qcow2' only"),
        (_image(b"b", b"\xff"), "'raw' and 'qcow2' only"),
        (_image(b"b", more=_extension(_BACKING_FORMAT, b"qcow2")), "twice"),
        (_image(more=struct.pack(">II", 1, 0xFFFFFFFF)), "too many"),
        (_image(more=struct.pack(">II", 1, 1 << 16)), "too many"),
        (_image(more=b"".join(_extension(n, b"") for n in range(1, 300))), "more than 256"),
        (_image(b"a\0b"), "rename"),
        (_image(b"a\nb"), "rename"),
        (_image(b"\xff"), "rename"),
        (_image(b"json:{}"), "no path"),
        (_image(b"nbd:localhost:10809"), "no path"),
        (_image(b"nbd://host/x"), "no path"),
        (_image(b"file:/srv/x"), "no path"),
        (_image(b":x"), "no path"),
        (_image(incompatible=4), "does not name"),
        (_image(incompatible=4, data_file=b""), "rename"),
        (_image(incompatible=4, data_file=b"data.raw"), "without a folder"),
        (_image(incompatible=4, data_file=b"nbd://x"), "no path"),
    ],
)
def test_what_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        qcow2.parse(image)


def test_our_own_overlay() -> None:
    overlay = overlays.empty("/srv/disk.img", 1 << 30)
    assert qcow2.parse(overlay.head) == Header(1 << 30, "/srv/disk.img", Format.RAW)


def test_large_clusters_are_read_to_their_end() -> None:
    assert qcow2.head_bytes(_image()) == qcow2.HEAD_BYTES
    assert qcow2.head_bytes(_image(bits=9)) == qcow2.HEAD_BYTES
    large = _image(b"b", bits=21, name_at=(2 << 20) - 1)
    assert qcow2.head_bytes(large) == 2 << 20
    assert qcow2.parse(large.ljust((2 << 20) - 1, b"\0") + b"b").backing == "b"


class _Bounded(bytes):
    """Bytes that do not let anybody ask for what is not there."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            assert 0 <= (key.start or 0) <= len(self)
            assert key.stop is None or 0 <= key.stop <= len(self)
        return super().__getitem__(key)


def _tries(parse: Callable[[bytes], object], image: bytes) -> None:
    found: object
    try:
        found = parse(_Bounded(image))
    except ValueError as error:
        found = str(error)
    match found:
        case str():
            assert found.isprintable()
            assert len(found) < 1000
        case Header():
            assert len(found.backing.encode()) <= qcow2.NAME_MAX_BYTES
            assert "\0" not in found.backing + found.data_file
            assert bool(found.backing) == (found.backing_format is not None)
        case _:
            assert found in range(qcow2.HEAD_BYTES, (2 << 20) + 1)


@settings(max_examples=300)
@given(st.binary(max_size=4096))
def test_anything_at_all(data: bytes) -> None:
    for parse in (qcow2.parse, qcow2.head_bytes):
        _tries(parse, data)
        _tries(parse, b"QFI\xfb\0\0\0\3" + data)


@settings(max_examples=600)
@given(
    st.sampled_from(
        [
            _image(b"/srv/base.qcow2", b"qcow2"),
            _image(b"b", version=2),
            _image(incompatible=4, data_file=b"/srv/data"),
            _image(b"base", more=_extension(0x23852875, bytes(24)), bits=9),
        ]
    ),
    st.lists(
        st.tuples(
            st.integers(4, 260),
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff"]),
            ),
        ),
        max_size=4,
    ),
    st.integers(0, 1 << 16),
)
def test_an_image_that_somebody_has_written_into(
    image: bytes, writes: list[tuple[int, bytes]], length: int
) -> None:
    for at, data in writes:
        image = image[:at] + data + image[at + len(data) :]
    _tries(qcow2.parse, image)
    _tries(qcow2.parse, image[:length])
    _tries(qcow2.head_bytes, image[:length])
