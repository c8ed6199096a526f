# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of attacks: one file per class, each mounted by an unprivileged process.

`stranger` is who attacks, `defences` what can be switched off, `arena` where both meet the daemon.
"""
