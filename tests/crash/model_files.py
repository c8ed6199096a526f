# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of the model, and what third parties do to them."""

from dataclasses import dataclass, field

from tests.crash.model import VIEW, File, Pair


@dataclass(slots=True)
class Files:
    """Files by name, and the categories of which VMs get theirs."""

    pool: Pair
    files: dict[str, File] = field(default_factory=dict)
    view_readonly: bool = False

    def at(self, path: str) -> File | None:
        """Return the file that a path leads to."""
        return self.files.get(path.rpartition("/")[2])

    def writable(self, path: str, part: File | None = None) -> bool:
        """Say whether a file at a path, or in it, can be written and labelled by that path."""
        file = part or self.at(path)
        read_only = self.view_readonly and path.startswith(f"{VIEW}/")
        return file is not None and not file.immutable and not read_only

    def parts(self, path: str) -> list[File]:
        """Return the file that a path leads to; of a folder, with all that is in it."""
        root = path.rpartition("/")[2]
        return [
            file for name, file in self.files.items() if name == root or name.startswith(f"{root}/")
        ]

    # -- third parties ----------------------------------------------------------------------

    def make(self, name: str, ino: int, label: str | None) -> None:
        """A new file; what an earlier one of its number was is over."""
        self.files[name] = File(ino, label, {name})

    def remove(self, name: str) -> None:
        """One name of a file goes."""
        self.files.pop(name).names.discard(name)

    def rename(self, name: str, to: str) -> None:
        """A file gets another name, over whatever had it."""
        if to in self.files:
            self.remove(to)
        file = self.files.pop(name)
        file.names = (file.names - {name}) | {to}
        self.files[to] = file

    def rename_tree(self, root: str, to: str) -> None:
        """A folder gets another name, and what is in it with it."""
        for name in [one for one in self.files if one == root or one.startswith(f"{root}/")]:
            self.rename(name, to + name.removeprefix(root))

    def link(self, name: str, to: str) -> None:
        """A file gets one more name."""
        file = self.files[to] = self.files[name]
        file.names.add(to)

    def relabel(self, name: str, label: str | None) -> None:
        """Somebody else sets a label."""
        file = self.files[name]
        file.label, file.theirs = label, True
