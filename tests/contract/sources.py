# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the contract tests read: the XML, the manual pages, the files of the repository.

The XML is parsed here with the standard library alone, so that the daemon's own reading of it is
held against a second one.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

REPO = Path(__file__).resolve().parents[2]
DBUS = REPO / "dbus"
MAN = REPO / "man"
UNITS = REPO / "units"
NAME = "org.svirt1"

# Where git is not at hand: what a checkout has beside the project's files.
_NOT_OURS = re.compile(r"(^|/)(\..*cache|\.git|\.venv|\.hypothesis|__pycache__|.*\.egg-info)(/|$)")


@dataclass(frozen=True, slots=True)
class Member:
    """A method, signal or property; an argument is (type, name)."""

    kind: str
    name: str
    takes: tuple[tuple[str, str], ...]
    returns: tuple[tuple[str, str], ...]
    documented: bool

    @property
    def signature(self) -> str:
        """Of the arguments in; of a property, its type."""
        return "".join(kind for kind, _ in self.takes)

    @property
    def result(self) -> str:
        """The signature of the arguments out."""
        return "".join(kind for kind, _ in self.returns)


def contract_files() -> list[Path]:
    """Return the contract's own XML files, the standard interfaces left out."""
    return sorted(DBUS.glob(f"{NAME}.*.xml"))


@cache
def interfaces() -> dict[str, tuple[Member, ...]]:
    """Return the members of every interface of the contract."""
    found: dict[str, tuple[Member, ...]] = {}
    for file in [*contract_files(), DBUS / "standard.xml"]:
        for interface in _parse(file).iter("interface"):
            found[interface.attrib["name"]] = tuple(_members(interface))
    return found


def elements(file: Path) -> list[ElementTree.Element]:
    """Return every element of an XML file, comments left out."""
    return [element for element in _parse(file).iter() if is_element(element.tag)]


def own_interfaces() -> dict[str, tuple[Member, ...]]:
    """Return the members of svirtd's own interfaces."""
    return {name: members for name, members in interfaces().items() if name.startswith(NAME)}


def own_members(kind: str) -> dict[tuple[str, str], Member]:
    """Return svirtd's own members of one kind, by interface and name."""
    return {
        (interface, member.name): member
        for interface, members in own_interfaces().items()
        for member in members
        if member.kind == kind
    }


def is_element(tag: object) -> bool:
    """A comment's tag is the function that makes comments."""
    return isinstance(tag, str)


def _parse(file: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return ElementTree.parse(file, parser).getroot()


def _members(interface: ElementTree.Element) -> Iterator[Member]:
    """A comment documents the member below it and like members that follow without a gap."""
    documented = ""
    for child in interface:
        if not is_element(child.tag):
            documented = "next"
            continue
        if documented == "next":
            documented = child.tag
        elif documented != child.tag:
            documented = ""
        arguments = [
            (arg.attrib["type"], arg.attrib.get("name", ""), arg.attrib.get("direction", ""))
            for arg in child.iter("arg")
        ]
        if child.tag == "property":
            arguments = [(child.attrib["type"], child.attrib["name"], "")]
        yield Member(
            kind=child.tag,
            name=child.attrib["name"],
            takes=tuple((kind, name) for kind, name, way in arguments if way != "out"),
            returns=tuple((kind, name) for kind, name, way in arguments if way == "out"),
            documented=bool(documented),
        )


def page(name: str) -> str:
    """Return the source of a manual page."""
    return (MAN / name).read_text("utf-8")


def section(text: str, *titles: str) -> str:
    """Return what is below `.Sh` (and then `.Ss`) of these titles in a manual page's source."""
    for macro, title in zip(("Sh", "Ss"), titles, strict=False):
        start = re.search(rf"^\.{macro} {re.escape(title)}$", text, re.M)
        assert start, f"no section {title!r}"
        text = text[start.end() :]
        end = re.search(r"^\.S[hs] " if macro == "Ss" else r"^\.Sh ", text, re.M)
        text = text[: end.start()] if end else text
    return text


def tracked_files() -> list[Path]:
    """Return every file of the repository that is under version control."""
    try:
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z"],
            cwd=REPO,
            capture_output=True,
            check=True,
        ).stdout
        files = [REPO / name.decode() for name in listed.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            path
            for path in REPO.rglob("*")
            if not _NOT_OURS.search(path.relative_to(REPO).as_posix())
        ]
    return sorted(path for path in files if path.is_file())


def is_text(path: Path) -> bool:
    """Say whether a file has lines to look at."""
    return b"\0" not in path.read_bytes()[:4096]


def relative(path: Path) -> str:
    """Return a file's name as the repository has it, for messages."""
    return path.relative_to(REPO).as_posix()
