# split-home.sh DISK DIR: makes the last partition of a raw disk, an ext4 root,
# 1 GiB smaller, and gives that room to a /home of its own.
disk=$1 dir=$2
mkdir -p "$dir/root" "$dir/home"
n=$(sfdisk --json "$disk" | python3 -c 'import json,sys; print(max(json.load(sys.stdin)["partitiontable"]["partitions"], key=lambda p: p["start"])["node"].rsplit(".disk", 1)[1])')
start=$(sfdisk --json "$disk" | python3 -c 'import json,sys; print(max(p["start"] for p in json.load(sys.stdin)["partitiontable"]["partitions"]))')
size=$(sfdisk --json "$disk" | python3 -c 'import json,sys; print(max(json.load(sys.stdin)["partitiontable"]["partitions"], key=lambda p: p["start"])["size"])')
home=$((1 << 21))
rest=$((size - home))
loop=$(losetup --find --show --offset $((start * 512)) --sizelimit $((size * 512)) "$disk")
e2fsck -fy "$loop" >/dev/null || [ $? -le 1 ]
resize2fs "$loop" $((rest / 2))K >/dev/null 2>&1
losetup -d "$loop"
echo "$start,$rest" | sfdisk --no-reread --quiet -N "$n" "$disk"
echo "start=$((start + rest)), size=$home, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=home" | sfdisk --no-reread --quiet --append "$disk"
uuid=$(cat /proc/sys/kernel/random/uuid)
homeloop=$(losetup --find --show --offset $(((start + rest) * 512)) --sizelimit $((home * 512)) "$disk")
mkfs.ext4 -q -U "$uuid" -L home "$homeloop"
unshare --mount --propagation private sh -euc '
	mount -o loop,offset=$1,sizelimit=$2 "$3" "$4/root"
	mount "$5" "$4/home"
	cp -a "$4/root/home/." "$4/home/"
	rm -rf "$4"/root/home/*
	echo "UUID=$6 /home ext4 defaults 0 2" >>"$4/root/etc/fstab"
' split $((start * 512)) $((rest * 512)) "$disk" "$dir" "$homeloop" "$uuid"
losetup -d "$homeloop"
