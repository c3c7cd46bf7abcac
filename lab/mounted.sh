# mounted.sh DISK DIR TABLE COMMAND…: mounts a disk's file systems read-only at
# DIR, by the fstab on it, and runs COMMAND. TABLE has a line a file system:
# UUID OFFSET SIZE.
disk=$1 dir=$2 table=$3
shift 3
mkdir -p "$dir"
attach() { mount -o "ro,loop,offset=$2,sizelimit=$3${5:-}" "$disk" "$4"; }
root=
while read -r uuid offset size; do
	[ -n "$uuid" ] || continue
	attach "$uuid" "$offset" "$size" "$dir"
	if [ -e "$dir/etc/fstab" ]; then
		root=$uuid
		break
	fi
	umount "$dir"
done <<END
$table
END
[ -n "$root" ] || { echo "no file system of $disk has an etc/fstab" >&2; exit 1; }
while read -r uuid offset size; do
	[ -n "$uuid" ] && [ "$uuid" != "$root" ] || continue
	point=$(awk -v u="UUID=$uuid" '$1 == u {print $2}' "$dir/etc/fstab")
	[ -n "$point" ] && attach "$uuid" "$offset" "$size" "$dir$point"
done <<END
$table
END
exec "$@"
