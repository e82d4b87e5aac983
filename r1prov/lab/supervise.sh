#!/bin/sh
# Keeps one throwaway host running: supervise.sh MACHINE LOWER[:LOWER] HOSTDIR COMMAND...
# Started in a mount namespace of its own, so that the overlay vanishes with the last process of the host, whatever ended it.
set -eu

machine=$1 lower=$2 hostdir=$3
shift 3

# systemd-nspawn --keep-unit makes its control groups below its own one. Two hosts started from one shell would share them, and
# each systemd would see the other's processes in its units: so every host gets a group of its own (pure v2, hybrid, v1).
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    if [ -e "$hierarchy/cgroup.procs" ]; then
        mkdir -p "$hierarchy/$machine"
        echo $$ >"$hierarchy/$machine/cgroup.procs"
    fi
done

# volatile: nothing is synced to the disk for a host that does not outlive this machine's next boot. A package installation syncs each file.
mount -t overlay "$machine" -o "lowerdir=$lower,upperdir=$hostdir/upper,workdir=$hostdir/work,volatile" "$hostdir/root"

# A container has a data disk apart. It vanishes with the last process, too: mount frees the loop device at the end.
if [ -e "$hostdir/data.img" ]; then
    mount -o loop,discard "$hostdir/data.img" "$hostdir/data"
fi

# systemd-nspawn leaves lock files and folders in /run/systemd, and asks there whether the outer machine runs systemd: hide it.
mkdir -p /run/systemd
mount -t tmpfs "$machine" /run/systemd

# 133 is how systemd-nspawn says that the host asked for a reboot.
status=133
while [ "$status" = 133 ]; do
    status=0
    "$@" || status=$?
done
exit "$status"
