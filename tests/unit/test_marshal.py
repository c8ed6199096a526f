# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our marshalling against dbus-next's own: the same bytes out, the same values in."""

import struct
from typing import Any

import dbus_next
import pytest
from dbus_next._private import marshaller
from dbus_next.constants import MessageType
from hypothesis import given
from hypothesis import strategies as st

from svirtd.host import message
from svirtd.host.marshal import Variant
from svirtd.host.message import Message

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": st.sampled_from(["/", "/a", "/org/svirt1/vm/_31x"]),
    "g": st.sampled_from(["", "s", "a{sv}", "(ii)"]),
}

Typed = tuple[str, Any]


def basics() -> st.SearchStrategy[Typed]:
    return st.sampled_from(sorted(BASIC)).flatmap(
        lambda kind: BASIC[kind].map(lambda value: (kind, value))
    )


def containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def array(one: Typed) -> Typed:
        kind, value = one
        return ("ay", bytes([value] * 3)) if kind == "y" else (f"a{kind}", [value] * 3)

    return st.one_of(
        inner.map(array),
        inner.map(lambda one: ("v", Variant(*one))),
        st.lists(inner, min_size=1, max_size=4).map(
            lambda parts: (f"({''.join(k for k, _ in parts)})", [v for _, v in parts])
        ),
        st.tuples(st.dictionaries(TEXT, st.none(), max_size=4), inner).map(
            lambda pair: (f"a{{s{pair[1][0]}}}", dict.fromkeys(pair[0], pair[1][1]))
        ),
    )


VALUES = st.lists(st.recursive(basics(), containers, max_leaves=8), max_size=4)


def theirs(value: Any) -> Any:
    """The same value with dbus-next's variants."""
    match value:
        case Variant(signature, inner):
            return dbus_next.Variant(signature, theirs(inner))
        case dict():
            return {key: theirs(inner) for key, inner in value.items()}
        case list():
            return [theirs(inner) for inner in value]
        case _:
            return value


def decode(raw: bytes) -> tuple[Message, int]:
    found, at, fds = message.decode_header(raw)
    message.decode_body(raw, at, found)
    return found, fds


def both(values: list[Typed]) -> tuple[Message, dbus_next.Message]:
    parts: dict[str, Any] = {
        "path": "/org/svirt1",
        "interface": "org.svirt1.Manager",
        "member": "Acquire",
        "destination": "org.svirt1",
        "signature": "".join(kind for kind, _ in values),
        "serial": 7,
    }
    body = [value for _, value in values]
    return Message(**parts, body=body), dbus_next.Message(**parts, body=theirs(body))


@given(VALUES)
def test_the_bytes_are_those_of_dbus_next(values: list[Typed]) -> None:
    ours, reference = both(values)
    assert message.encode(ours) == bytes(reference._marshall())


@given(VALUES)
def test_what_dbus_next_wrote_is_read_as_it_was(values: list[Typed]) -> None:
    ours, reference = both(values)
    raw = bytes(reference._marshall())
    assert message.size(raw, 0) == len(raw)
    found, fds = decode(raw)
    assert fds == 0
    assert found == ours


@given(VALUES)
def test_the_other_byte_order_is_read_too(values: list[Typed]) -> None:
    """dbus-next writes one order only: its writer is told the other for this test."""
    ours, reference = both(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marshaller, "pack", lambda form, value: struct.pack(">" + form[1:], value))
        raw = bytearray(reference._marshall())
    raw[0] = ord("B")
    assert message.size(raw, 0) == len(raw)
    assert decode(bytes(raw))[0] == ours


@given(VALUES, st.data())
def test_broken_bytes_are_an_error_and_nothing_worse(
    values: list[Typed], data: st.DataObject
) -> None:
    raw = bytearray(message.encode(both(values)[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(16, len(raw)))])
    try:
        found, _ = decode(cut)
    except ValueError:
        return
    assert isinstance(found, Message)


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("s", 1),
        ("s", None),
        ("s", "a\0b"),
        ("u", -1),
        ("u", 2**32),
        ("u", "1"),
        ("y", 256),
        ("as", 5),
        ("(ss)", ["a"]),
        ("a{sv}", {"a": "no variant"}),
        ("a{sv}", {"a": Variant("", 1)}),
        ("a{sv}", {"a": Variant("ss", 1)}),
        ("v", Variant("s", 1)),
        ("!", "x"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(signature: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"body|signature|NUL|unpack|argument|values|byte"):
        message.encode(Message(MessageType.SIGNAL, "/", "a.b", "C", signature, [value]))


def test_a_body_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        message.encode(Message(MessageType.SIGNAL, "/", "a.b", "C", "ss", ["one"]))


def test_descriptors_are_announced() -> None:
    raw = message.encode(Message(path="/", member="M", signature="h", body=[0], unix_fds=[3, 4]))
    assert decode(raw)[1] == 2


def _header(code: int, signature: str, value: bytes) -> bytes:
    field = bytes((code, len(signature))) + signature.encode() + b"\0" + value
    head = struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 7, len(field))
    return head + field + bytes(-len(field) % 8)


def test_a_text_with_nul_is_not_read() -> None:
    """No bus passes it on; if it came, no answer that repeats it could be written."""
    with pytest.raises(ValueError, match="NUL"):
        message.decode_header(_header(3, "s", b"\2\0\0\0a\0\0"))


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_header_field_of_another_type_is_not_read(code: int) -> None:
    with pytest.raises(ValueError, match=f"header field {code} of type 'y'"):
        message.decode_header(_header(code, "y", b"\1"))


def test_a_call_may_have_so_many_values() -> None:
    """A few megabytes can be millions of values: reading stops before they take the memory."""
    many: list[dict[str, Variant]] = [{} for _ in range(1000)]
    entries = {str(number): Variant("u", number) for number in range(100)}
    cases: list[tuple[str, Any, int]] = [("aa{sv}", many, 1000), ("a{sv}", entries, 800)]
    for signature, body, cost in cases:
        raw = message.encode(Message(path="/", member="M", signature=signature, body=[body]))
        for allowed, fits in ((cost, True), (cost - 1, False)):
            found, at, _ = message.decode_header(raw)
            found.raw, found.body_at = raw, at
            if fits:
                message.read_body(found, allowed)
                assert found.body == [body]
                assert found.raw == b""
                continue
            with pytest.raises(ValueError, match="more values than any call has"):
                message.read_body(found, allowed)
        # Of what is no call there is no bound, whatever was read before.
        assert decode(raw)[0].body == [body]
