# SPDX-License-Identifier: LGPL-2.1-or-later
# The part of systemd's Python binding that svirtd uses.

from systemd import daemon as daemon
from systemd import journal as journal
