# SPDX-License-Identifier: LGPL-2.1-or-later
"""XML as a tree that knows where each element stands, so that an edit leaves the rest alone.

Whoever hands it over may be anybody: it has a bounded size, no DTD and no entities. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

# A domain of libvirt's with hundreds of disks has some 200 KiB.
BYTES_MAX: Final = 4 * 1024 * 1024
_ELEMENTS_MAX: Final = 100_000
_DEPTH_MAX: Final = 200


@dataclass(slots=True)
class Element:
    """An element. `tag` has its namespace before it, and a blank, if it has one.

    In the text it begins at `start`, its content at `inner`, its end tag at `close` (of an empty
    one all that is `end`), and what follows it at `end`; in bytes.
    """

    tag: str
    attributes: dict[str, str]
    start: int
    inner: int = 0
    close: int = 0
    end: int = 0
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> Iterator["Element"]:
        """Yield the children of this name."""
        return (one for one in self.children if one.tag == tag)

    def one(self, tag: str) -> "Element | None":
        """Return the first child of this name."""
        return next(self.all(tag), None)

    def under(self, *tags: str) -> "Element | None":
        """Return the first child of the first name, of that the first of the second, and so on."""
        found: Element | None = self
        for tag in tags:
            found = None if found is None else found.one(tag)
        return found

    def get(self, name: str) -> str:
        """Return an attribute, empty if it is not there."""
        return self.attributes.get(name, "")

    def said(self, tag: str) -> str:
        """Return the text of the first child of this name without blanks around it, or nothing."""
        found = self.one(tag)
        return "" if found is None else found.text.strip()


def parse(text: bytes) -> Element:
    """Return the root of a document. Raises ValueError for what is none, or has a DTD."""
    if len(text) > BYTES_MAX:
        raise ValueError(f"it has more than {BYTES_MAX} bytes")
    # One encoding, whatever it says of itself: the places of elements are counted in its bytes.
    if text.lstrip()[:1] != b"<" or b"\0" in text:
        raise ValueError("it is not XML in UTF-8")
    reader = _Reader(text)
    try:
        text.decode()
        reader.parser.Parse(text, True)
    except (expat.ExpatError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not XML ({error})") from None
    if reader.root is None:
        raise ValueError("it is not XML (no element)")
    return reader.root


class _Reader:
    def __init__(self, text: bytes) -> None:
        self.root: Element | None = None
        self._text = text
        self._open: list[Element] = []
        self._count = 0
        self.parser = expat.ParserCreate("utf-8", " ")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._said
        # Before the first declaration in it is read: nothing is defined, nothing expanded.
        self.parser.StartDoctypeDeclHandler = self._doctype

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > _ELEMENTS_MAX or len(self._open) >= _DEPTH_MAX:
            raise ValueError("it has more elements, or deeper ones, than a domain has")
        one = Element(tag, attributes, self.parser.CurrentByteIndex)
        one.inner = _after_tag(self._text, one.start)
        if self._open:
            self._open[-1].children.append(one)
        else:
            self.root = one
        self._open.append(one)

    def _end(self, _tag: str) -> None:
        one, at = self._open.pop(), self.parser.CurrentByteIndex
        if self._text[one.inner - 2 : one.inner] == b"/>":
            one.close = one.end = one.inner
        else:
            one.close, one.end = at, self._text.index(b">", at) + 1

    def _said(self, text: str) -> None:
        self._open[-1].text += text

    def _doctype(self, *_args: object) -> None:
        raise ValueError("it has a document type; a domain has none")


def _after_tag(text: bytes, start: int) -> int:
    """Return where the tag that begins here ends; a value in it may have a '>' of its own."""
    at, quote = start, 0
    while True:
        byte = text[at]
        if quote:
            quote = 0 if byte == quote else quote
        elif byte in b"\"'":
            quote = byte
        elif byte == ord(">"):
            return at + 1
        at += 1


@dataclass(frozen=True, slots=True)
class Edit:
    """Put `new` in the place of what is from `start` to `end`."""

    start: int
    end: int
    new: bytes


def edited(text: bytes, edits: Iterable[Edit]) -> bytes:
    """Return a text with edits made, which do not overlap; of two at one place in their order."""
    parts, at = [], 0
    for one in sorted(edits, key=lambda edit: edit.start):
        parts += [text[at : one.start], one.new]
        at = one.end
    return b"".join([*parts, text[at:]])


def inside(text: bytes, element: Element, new: bytes) -> Edit:
    """Return the edit that puts `new` at the end of an element's content."""
    if element.close < element.end:
        return Edit(element.close, element.close, new)
    # An empty one, which gets an end tag.
    tag = text[element.start : element.end]
    name = tag[1:].split(maxsplit=1)[0].rstrip(b"/>")
    opened = tag.removesuffix(b">").rstrip().removesuffix(b"/").rstrip()
    return Edit(element.start, element.end, opened + b">" + new + b"</" + name + b">")


def without(text: bytes, element: Element) -> Edit:
    """Return the edit that takes an element away, with the blanks before it."""
    start = element.start
    while start and text[start - 1 : start] in (b" ", b"\t", b"\n"):
        start -= 1
    return Edit(start, element.end, b"")


def escaped(text: str) -> str:
    """Return a text as it stands in content, or between quotes."""
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"),
                          ("'", "&apos;")):  # fmt: skip
        text = text.replace(plain, entity)
    return text
