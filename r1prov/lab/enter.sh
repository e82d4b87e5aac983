# Turns what systemd-nspawn has set up into what Docker sets up, and becomes the first process: `bash /init/boot/boot.sh`.
set -eu

mount -o remount,size=64M /dev/shm

# Control groups can be read, but not made.
for place in $(cut -d ' ' -f 2 /proc/self/mounts); do
    case $place in
    /sys/fs/cgroup*) mount -o remount,bind,ro "$place" ;;
    esac
done

# Docker has no file system of its own at /run, so it is a part of the container's layer and outlives a restart. systemd-nspawn listens
# there, which keeps it busy.
umount --recursive --lazy /run

# These are the capabilities that Docker leaves to a container which is not privileged. Another one may be given to this script.
files=+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap
others=+audit_write,+kill,+net_bind_service,+net_raw,+setgid,+setpcap,+setuid,+sys_chroot
exec env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOSTNAME="$(hostname)" \
    setpriv --bounding-set="-all,$files,$others${1:+,$1}" --inh-caps=-all bash /init/boot/boot.sh
