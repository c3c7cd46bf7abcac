#!/bin/busybox sh
# The first process of a machine that is there for TestLVM alone.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
modprobe -a dm-mod dm-snapshot dm-thin-pool xfs loop
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ DOPPEL_SNAPSHOT_GUEST=1
/snapshot.test -test.run '^TestLVM$' -test.v -test.timeout 4m
echo "the tests ended with $?"
poweroff -f
