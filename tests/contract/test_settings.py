# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: keys that are read, the manual page and the sample say the same."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd import config
from svirtd.config import Config
from svirtd.core import walls
from svirtd.errors import ConfigError
from svirtd.host import kernel
from tests.contract import sources

_SAMPLE: Final = sources.UNITS / "svirtd.toml"
_KEYS: Final = set(config._KEYS)
_WALL: Final = "wall.NAME"
# Without a default of their own: the loaded policy says. The sample shows the reference policy's.
_FROM_POLICY: Final = {
    ("labels", "process-context"): kernel._PROCESS,
    ("labels", "image-context"): kernel._IMAGE,
    ("labels", "content-context"): kernel._CONTENT,
}


def _uncommented() -> str:
    """The sample with every key in force: prose has a blank after its "#", keys have not."""
    text = _SAMPLE.read_text("utf-8")
    return re.sub(r'^#([a-z-]+ = |    "|\])', r"\1", text, flags=re.M)


def _flat(tables: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(name, key): value for name, table in tables.items() for key, value in table.items()}


def _on_page() -> dict[tuple[str, str], Any]:
    """The keys of svirtd.toml(5) with the defaults that it shows, None where it shows none."""
    found: dict[tuple[str, str], Any] = {}
    where = ""
    text = sources.section(sources.page("svirtd.toml.5"), "DESCRIPTION")
    for line in text.splitlines():
        if match := re.fullmatch(r"\.Ss \[(.*)\]", line):
            where = match[1]
        elif match := re.fullmatch(r"\.It Cm (\S+)(?: Li = (.*))?", line):
            shown = match[2] and tomllib.loads(f"x = {match[2].replace(chr(92) + '(dq', chr(34))}")
            assert (where, match[1]) not in found
            found[where, match[1]] = shown["x"] if shown else None
    return found


def test_every_setting_has_a_key() -> None:
    """A field of Config that no key reaches could never be set."""
    settings = {field.name for cls in (Config, config.Limits) for field in fields(cls)}
    assert {field for field, _ in config._KEYS.values()} == settings - {"limits", "walls"}


def test_sample_changes_nothing_as_it_is(tmp_path: Path) -> None:
    assert config.load(str(_SAMPLE)) == Config()


def test_sample_has_every_key() -> None:
    assert set(_flat(tomllib.loads(_uncommented()))) == _KEYS


def test_sample_shows_the_defaults(tmp_path: Path) -> None:
    shown = _flat(tomllib.loads(_uncommented()))
    assert {key: shown[key] for key in _FROM_POLICY} == _FROM_POLICY
    file = tmp_path / "svirtd.toml"
    lines = _uncommented().splitlines(keepends=True)
    file.write_text("".join(x for x in lines if not re.match("[a-z]+-context", x)), "utf-8")
    assert config.load(str(file)) == Config()


def test_page_has_every_key() -> None:
    assert set(_on_page()) == _KEYS | {(_WALL, key) for key in walls.KEYS}


def test_the_wall_of_the_sample_is_one(tmp_path: Path) -> None:
    """Walls have names of the site's own: the sample shows one as an example, below prose."""
    file = tmp_path / "svirtd.toml"
    lines = re.findall(r"^#    (.*)$", _SAMPLE.read_text("utf-8"), re.M)
    file.write_text("\n".join(one for one in lines if "_t" not in one), "utf-8")
    (wall,) = config.load(str(file)).walls
    assert wall.scope is walls.Scope.VM


def test_page_shows_the_defaults() -> None:
    on_page = _on_page()
    classes = on_page.pop((_WALL, "classes"), "")
    assert classes is None
    assert on_page.pop((_WALL, "scope")) == walls.Wall("x", ()).scope
    assert {key for key, value in on_page.items() if value is None} == set(_FROM_POLICY)
    sample = _flat(tomllib.loads(_uncommented()))
    assert {key: value for key, value in on_page.items() if value is not None} == {
        key: value for key, value in sample.items() if key not in _FROM_POLICY
    }


def test_page_and_sample_say_which_keys_need_a_restart(tmp_path: Path) -> None:
    """Each key that a reload leaves for later is marked so, and no other."""
    text = sources.section(sources.page("svirtd.toml.5"), "DESCRIPTION")
    items = re.split(r"^\.It Cm (\S+).*$", text.partition(".Ss ")[2], flags=re.M)[1:]
    marked = {
        name for name, body in zip(items[::2], items[1::2], strict=True) if ".Em Restart" in body
    }
    file = tmp_path / "svirtd.toml"
    waiting = set()
    for section, key in _KEYS:
        file.write_text(f"[{section}]\n{key} = {_other(section, key)}\n", "utf-8")
        if config.reload_changes(Config(), config.load(str(file)))[1]:
            waiting.add(key)
    assert marked == waiting
    paragraphs = re.split(r"\n\n|(?m:^\[.*\]$)", _SAMPLE.read_text("utf-8"))
    assert {
        key
        for paragraph in paragraphs
        if "(restart)" in paragraph
        for key in re.findall(r"^#([a-z-]+) = ", paragraph, re.M)
    } == waiting


def _other(section: str, key: str) -> str:
    """A value that the key takes and that is not its default."""
    special = {
        "require": '"none"',
        "path": '"/other"',
        "directory": '"/other"',
        "group-commit": "false",
        "private": '"c0.c99"',
        "groups": '"c800.c900"',
        "reserved": '"c5"',
        "slice": '"other.slice"',
        "relabel-from": '["other_t"]',
        "relabel-devices-from": '["other_t"]',
        "repair": "false",
        "adopt": '["*"]',
        "require-adopted": "true",
        "interval": "60",
    }
    if (section, key) in _FROM_POLICY:
        return '"other_u:other_r:other_t:s0"'
    return special.get(key, "3")


@pytest.mark.parametrize(("section", "key"), sorted(_KEYS))
def test_the_range_on_the_page_is_the_one_that_is_read(
    section: str, key: str, tmp_path: Path
) -> None:
    text = sources.section(sources.page("svirtd.toml.5"), "DESCRIPTION")
    body = (
        text.partition(f".Ss [{section}]\n")[2].partition(f".It Cm {key}")[2].partition("\n.It")[0]
    )
    said = re.search(r"Whole number,(?: seconds,)? (\d+) to (\d+)\.", body)
    file = tmp_path / "svirtd.toml"
    file.write_text(f"[{section}]\n{key} = -1\n", "utf-8")
    with pytest.raises(ConfigError) as refused:
        config.load(str(file))
    expected = re.search(r"a whole number from (\d+) to (\d+)", str(refused.value))
    assert (said and said.groups()) == (expected and expected.groups())
