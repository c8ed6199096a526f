# SPDX-License-Identifier: LGPL-2.1-or-later
# The part of libaudit's Python binding that svirtd uses. What fails returns a negative number.

AUDIT_USER_AVC: int

def audit_open() -> int: ...
def audit_log_user_avc_message(
    fd: int,
    type: int,
    message: str,
    hostname: str | None,
    addr: str | None,
    tty: str | None,
    uid: int,
) -> int: ...
