# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m svirtd.ctl`: the same as svirtctl."""

from svirtd.ctl.main import main

if __name__ == "__main__":
    main()
