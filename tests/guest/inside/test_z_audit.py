# SPDX-License-Identifier: LGPL-2.1-or-later
"""The account of denials after all other tests: nothing of svirtd's is on it that was not meant."""

from typing import Final

from tests.guest.inside.audit import Audit

_OURS: Final = {"svirtd_t", "svirt_t", "svirtd_offline_t", "svirtd_view_t", "svirtd_zone_t"}


def test_nothing_else_was_denied(audit: Audit) -> None:
    """To svirtd or a VM, or to anybody else on what is theirs."""
    assert audit.expected, "no test has provoked a denial: run all of them"
    left = [
        one.text
        for one in audit.unexpected()
        if one.source.type in _OURS
        or one.target.type in _OURS
        or one.target.type.startswith(("svirtd_", "svirt_image"))
    ]
    assert not left, "\n".join(left)
