# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest tier: the package in a Debian guest whose kernel enforces SELinux.

`build` makes the guest from Debian's packages and the tree, `machine` boots it; what runs in it is
in `inside/`. Needs root; the guest has no network, nothing is mounted on the host.
"""
