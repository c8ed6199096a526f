# SPDX-License-Identifier: LGPL-2.1-or-later
"""The XML contract: parsed at start, served verbatim."""

import functools
import importlib.resources
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svirtd.errors import StartError
from svirtd.host.bus import parse_introspection

ROOT = "/org/svirt1"
VM_FOLDER = ROOT + "/vm"
NAME = "org.svirt1"
MANAGER = "org.svirt1.Manager"
VM = "org.svirt1.VM"
JOB_FOLDER = ROOT + "/job"
JOB = "org.svirt1.Job"
GROUP_FOLDER = ROOT + "/group"
GROUP = "org.svirt1.Group"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

_EVERYWHERE = (PEER, INTROSPECTABLE)
_ROOT_INTERFACES = (*_EVERYWHERE, PROPERTIES, OBJECT_MANAGER, MANAGER)
_VM_INTERFACES = (*_EVERYWHERE, PROPERTIES, VM)
_JOB_INTERFACES = (*_EVERYWHERE, PROPERTIES, JOB)
_GROUP_INTERFACES = (*_EVERYWHERE, PROPERTIES, GROUP)

_FILES = (
    "standard.xml",
    "org.svirt1.Manager.xml",
    "org.svirt1.VM.xml",
    "org.svirt1.Group.xml",
    "org.svirt1.Job.xml",
)
# With the comment above it.
_INTERFACE: Final = re.compile(
    r'(?:  <!--(?:(?!-->).)*-->\n)?  <interface name="([^"]+)">.*?</interface>\n', re.S
)
_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of the contract: signatures of its members, and its text with what is above."""

    name: str
    methods: Mapping[str, tuple[str, str]]
    signals: Mapping[str, str]
    properties: Mapping[str, str]
    text: str


@functools.cache
def load() -> Mapping[str, Interface]:
    """Read every interface of the contract, once in a process. Raises StartError if a file is
    missing or broken."""
    found: dict[str, Interface] = {}
    for file in _FILES:
        text = _read(file)
        try:
            parsed = parse_introspection(text)
        except ValueError as error:
            raise StartError(f"the contract file {file} is broken: {error}") from error
        texts = {match[1]: match[0] for match in _INTERFACE.finditer(text)}
        for name, (methods, signals, properties) in parsed.items():
            if name not in texts:
                raise StartError(f"the contract file {file} has no text for {name}")
            found[name] = Interface(name, methods, signals, properties, texts[name])
    return found


def interfaces_of(path: str) -> tuple[str, ...]:
    """Return the names of the interfaces that an object at this path has."""
    if path == ROOT:
        return _ROOT_INTERFACES
    if path.startswith(VM_FOLDER + "/"):
        return _VM_INTERFACES
    if path.startswith(JOB_FOLDER + "/"):
        return _JOB_INTERFACES
    if path.startswith(GROUP_FOLDER + "/"):
        return _GROUP_INTERFACES
    return _EVERYWHERE


def introspection(contract: Mapping[str, Interface], path: str, children: list[str]) -> str:
    """Return the XML of an object: its interfaces verbatim, and its children."""
    parts = [_HEAD, "<node>\n"]
    parts += [contract[name].text for name in interfaces_of(path)]
    parts += [f'  <node name="{child}"/>\n' for child in children]
    return "".join([*parts, "</node>\n"])


def _read(file: str) -> str:
    """Read a contract file: installed beside the package, or from the source tree's dbus/."""
    installed = importlib.resources.files("svirtd") / "contract" / file
    if installed.is_file():
        return installed.read_text("utf-8")
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        with open(os.path.join(here, "dbus", file), encoding="utf-8") as source:
            return source.read()
    except OSError as error:
        raise StartError(f"the contract file {file} is missing: {error}") from error
