# SPDX-License-Identifier: LGPL-2.1-or-later
"""What users have to copy from: the commands that org.svirt1(5) shows, and the examples."""

import gzip
import re
from pathlib import Path
from typing import Final

from tests.support import REPO

_DOC: Final = Path("/usr/share/doc/svirtd")
_PAGE: Final = Path("man/org.svirt1.5")
_INSTALLED_PAGE: Final = Path("/usr/share/man/man5/org.svirt1.5.gz")


def examples(section: str) -> list[str]:
    """Return what a section displays literally, as a reader copies it."""
    checkout = REPO / _PAGE
    page = (
        checkout.read_text("utf-8")
        if checkout.exists()
        else gzip.decompress(_INSTALLED_PAGE.read_bytes()).decode()
    )
    _, _, rest = page.partition(f"\n.Sh {section}\n")
    shown = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", rest.partition("\n.Sh ")[0], re.M | re.S)
    assert shown
    return [text.replace("\\e", "\\").replace("\\(aq", "'") for text in shown]


def programs() -> list[Path]:
    """Return the programs of examples/: of the checkout, or in the guest of the package."""
    folder = REPO / "examples"
    return list((folder if folder.exists() else _DOC / "examples").iterdir())
