#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The life of an isolated virtual machine with busctl alone: busctl.sh NAME DISK
#
# isolated-vm.py does the same in a program; "WRITING A CLIENT" in org.svirt1(5) explains the calls, and
# how polkit is helped to ask where somebody has to agree first: busctl alone does not see to that.
set -eu
name=$1
disk=$(realpath "$2")

manager() { # MEMBER SIGNATURE ARGUMENT…: a dialog may take longer than the usual 25 s
    busctl --timeout=300 -- call org.svirt1 /org/svirt1 org.svirt1.Manager "$@"
}

echo "# What is this svirtd, and do its labels keep anybody out?"
busctl get-property org.svirt1 /org/svirt1 org.svirt1.Manager Version SELinuxMode Enforced

echo "# Watch. (busctl monitor shows calls as well, and is for root.)"
gdbus monitor --system --dest org.svirt1 &
watching=$!
trap 'kill $watching' EXIT

echo "# Create: a name, the ten words of a command, one resource with two keys, no options."
manager Launch 'sasaa{sv}a{sv}' "$name" \
    10 /usr/bin/qemu-system-x86_64 -nodefaults -display none -m 64 \
    -drive 'file={resource.disk},format=raw,if=virtio' -qmp 'unix:{runtime}/qmp,server=on,wait=off' \
    1 2 id s disk path s "$disk" \
    0

echo "# Look at the object: Launch has named it, and GetVM does."
vm=$(manager GetVM s "$name" | cut -d '"' -f 2)
busctl get-property org.svirt1 "$vm" org.svirt1.VM State Unit ProcessContext Resources
busctl --no-pager tree --list org.svirt1
busctl --no-pager introspect org.svirt1 "$vm" org.svirt1.VM

echo "# Stop: the command is ended, and the disk has its earlier label again."
busctl call org.svirt1 "$vm" org.svirt1.VM Release 'a{sv}' 0
