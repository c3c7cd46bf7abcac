# Runs a head: the tree $1 becomes the root of this process's own mount, PID
# and host name space, its sshd listens, and two files change all the time.
tree=$1
hostname "$2"
mount --bind "$tree" "$tree"
cd "$tree"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/sshd
(
	n=0
	while :; do
		n=$((n + 1))
		echo "line $n of a log that grows" >>var/log/app.log
		echo "$n" >srv/.state.new
		mv srv/.state.new srv/state
		sleep 0.05
	done
) &
chroot . /usr/sbin/sshd -D -e >&2 &
until chroot . /usr/bin/python3 -c 'import socket; socket.create_connection(("127.0.0.1", 22))' 2>/dev/null; do sleep 0.1; done
echo ready
exec >&2
wait
