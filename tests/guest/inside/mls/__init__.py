# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs in the guest, as root in an administrator's context, against the installed service."""
