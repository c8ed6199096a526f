# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus tier's tests of other people's clients, against the installed service."""

from tests.bus.test_clients import (  # noqa: F401 -- collected from here
    test_busctl,
    test_busctl_shows_every_member,
    test_gdbus,
    test_introspection_of_every_object_is_the_contract,
)
