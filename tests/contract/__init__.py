# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests that hold the parts of the repository against each other."""
