# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands that org.svirt1(5) shows."""

import re

from tests.support import REPO


def examples(section: str) -> list[str]:
    """Return what a section displays literally, as a reader copies it."""
    page = (REPO / "man" / "org.svirt1.5").read_text("utf-8")
    _, _, rest = page.partition(f"\n.Sh {section}\n")
    shown = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", rest.partition("\n.Sh ")[0], re.M | re.S)
    assert shown
    return [text.replace("\\e", "\\").replace("\\(aq", "'") for text in shown]
