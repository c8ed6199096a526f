# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m svirtd`."""

import sys

from svirtd.daemon import main

sys.exit(main())
