# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong with the sandbox itself."""


class SandboxError(Exception):
    """The sandbox could not be built or removed. The text says which part, and what to do."""


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived while the sandbox was being built."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum
