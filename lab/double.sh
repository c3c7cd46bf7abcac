# Runs a node's agent: what is at $1, a disk or a directory, becomes the root of
# this process's own mount, PID and host name space, which is mounted at $2 for
# that.
hostname "$3"
if [ -b "$1" ]; then mount -t ext4 "$1" "$2"; else mount --bind "$1" "$2"; fi
cd "$2"
mkdir -p proc sys dev run tmp
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
chroot . /usr/lib/doppel/doppel-agent node &
wait
