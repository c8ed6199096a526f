# SPDX-License-Identifier: LGPL-2.1-or-later

def notify(
    status: str,
    unset_environment: bool = False,
    pid: int = 0,
    fds: list[int] | None = None,
) -> bool: ...
