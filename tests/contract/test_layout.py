# SPDX-License-Identifier: LGPL-2.1-or-later
"""The house rules: who may use whom, one door to each foreign library, how files look."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import svirtd
from tests.contract import sources

_PACKAGE: Final = sources.REPO / "svirtd"
_MODULES: Final = sorted(_PACKAGE.rglob("*.py"))
_LINES_MAX: Final = 400

# Room → the rooms that it may use, itself included. An arrow points down or stays in the room.
_MAY_USE: Final = {
    "errors": set[str](),
    # Boundaries for tests, reached from wherever something could be cut off.
    "failpoints": set[str](),
    "core": {"core", "errors"},
    "config": {"core", "errors"},
    "host": {"host", "core", "errors", "failpoints"},
    "book": {"book", "core", "errors", "failpoints"},
    "engine": {"engine", "host", "book", "config", "core", "errors", "failpoints"},
    "api": {"api", "engine", "host", "book", "config", "core", "errors", "failpoints"},
    "ctl": {"ctl", "host", "core", "errors"},
    "service": {"api", "engine", "host", "book", "config", "core", "errors", "failpoints"},
    "daemon": {"service", "engine", "host", "book", "config", "core", "errors", "failpoints"},
    "__main__": {"daemon"},
    # Holds the version; every room may read that.
    "__init__": set[str](),
}

# Foreign library → its door: the modules that may import it.
_DOORS: Final = {
    "audit": r"host/audit\.py",
    "selinux": r"host/kernel\.py",
    "dbus_next": r"host/(bus|transport|message|marshal)\.py",
    "sqlite3": r"book/\w+\.py",
    "sqlite_utils": r"book/\w+\.py",
    "systemd.journal": r"host/journal\.py",
    # Not foreign, and as well worth being looked at in one place.
    "subprocess": r"ctl/programs\.py",
    "systemd.daemon": r"host/notify\.py",
    "libvirt": r"ctl/libvirt_door\.py",
    "click": r"ctl/\w+\.py",
    "rich": r"ctl/\w+\.py",
}

# Pure: the same arguments give the same result, and nothing outside is touched.
_PURE: Final = {
    "bisect",
    "collections",
    "dataclasses",
    "datetime",  # to write a moment down; test_clock.py sees that nobody asks it for the time
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "typing",
    "xml",  # expat, on text that was handed over
}
_IMPURE_CALLS: Final = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}

_SQL: Final = re.compile(
    r"\b(SELECT\b.*\bFROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM|CREATE (UNIQUE )?(TABLE|INDEX)"
    r"|DROP TABLE|ALTER TABLE|PRAGMA \w|BEGIN IMMEDIATE|SAVEPOINT)",
    re.S,
)

_SPDX: Final = "SPDX-License-Identifier: LGPL-2.1-or-later"
# Plain text without a way to write a comment.
_NO_COMMENTS: Final = {"LICENSE", "NEWS", "changelog", "copyright", "format"}
_UNFINISHED: Final = re.compile(r"\b(" + "TO" + "DO|FIX" + "ME|X" + r"XX|HA" + r"CK)\b")


def _id(path: Path) -> str:
    return sources.relative(path)


def _room(module: str) -> str:
    """The room of a module such as svirtd.core.mcs; a name of the package itself is no room."""
    room = f"{module}.".split(".")[1]
    return room if room in _MAY_USE else "__init__"


def _own_room(path: Path) -> str:
    first = path.relative_to(_PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Yield each module that a file imports, wherever in the file; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_id(path)}:{node.lineno}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_known() -> None:
    assert {_own_room(path) for path in _MODULES} <= set(_MAY_USE)


@pytest.mark.parametrize("path", _MODULES, ids=_id)
def test_arrows_point_down(path: Path) -> None:
    rooms = {_room(name) for name in _imports(path) if name.partition(".")[0] == "svirtd"}
    assert rooms - _MAY_USE[_own_room(path)] - {"__init__"} == set()


@pytest.mark.parametrize("path", _MODULES, ids=_id)
def test_every_foreign_library_is_behind_its_door(path: Path) -> None:
    place = path.relative_to(_PACKAGE).as_posix()
    through_the_wall = []
    for name in _imports(path):
        top = name.partition(".")[0]
        library = ".".join(name.split(".")[:2]) if top == "systemd" else top
        if top in sys.stdlib_module_names | {"svirtd"} and top not in _DOORS:
            continue
        if not re.fullmatch(_DOORS.get(library, "nowhere"), place):
            through_the_wall.append(name)
    assert not through_the_wall


@pytest.mark.parametrize("path", sorted((_PACKAGE / "core").rglob("*.py")), ids=_id)
def test_core_is_pure(path: Path) -> None:
    imported = {name.partition(".")[0] for name in _imports(path)}
    assert imported - _PURE - {"svirtd"} == set()
    called = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & _IMPURE_CALLS == set()


@pytest.mark.parametrize("path", [path for path in _MODULES if _own_room(path) != "book"], ids=_id)
def test_sql_is_in_the_book_only(path: Path) -> None:
    statements = [
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _SQL.search(node.value)
    ]
    assert not statements


@pytest.mark.parametrize("path", _MODULES, ids=_id)
def test_module_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= _LINES_MAX


@pytest.mark.parametrize("path", _MODULES, ids=_id)
def test_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sources.tracked_files()
        if path.name not in _NO_COMMENTS and sources.is_text(path) and path.stat().st_size
    ],
    ids=_id,
)
def test_file_says_its_licence_first(path: Path) -> None:
    first, *rest = path.read_text("utf-8").splitlines()
    # These must themselves be first in their files.
    if first.startswith(("#!", "<?xml")):
        first = rest[0]
    assert _SPDX in first


def test_nothing_is_marked_as_unfinished() -> None:
    marked = [
        f"{sources.relative(path)}:{number}"
        for path in sources.tracked_files()
        if sources.is_text(path)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if _UNFINISHED.search(line)
    ]
    assert not marked


def test_one_version_everywhere() -> None:
    with open(sources.REPO / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    newest = re.search(r"^## v(\S+)", (sources.REPO / "NEWS").read_text("utf-8"), re.M)
    assert newest
    assert svirtd.__version__ == project["version"] == newest[1]
