# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtd costs, as ratios to floors: the best that this machine can do, measured in the same
run, round by round in turn with the subject. Ratios travel between machines; milliseconds do not.
"""
