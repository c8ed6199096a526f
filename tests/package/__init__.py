# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package tier: what is installed from the tree, and on which Debian."""
