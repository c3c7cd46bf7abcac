// Package snapshot has a scan of this machine's tree read what holds still:
// snapshots of btrfs and LVM, and file systems that are frozen while they are
// read.
//
// Words. A part is a mount that the scan comes to. The keeper is a process
// beside the one that scans, which has everything that must be given back:
// snapshots, frozen file systems, and the view, the tree as it is to be scanned,
// in a mount namespace of the keeper's own. Its owner is the keeper, as a name
// says it: this boot, process id and start time.
//
// Steps. The scanning process reads the mount table, makes a plan (what is
// mounted where in the tree, which of it is read, which btrfs subvolumes are
// nested in it) and starts the keeper with a socket between the two. The keeper
// removes what dead owners have left, takes all snapshots, one right after the
// other, mounts them read-only, and puts the view together: snapshots where there
// are any, and everything else bound there from the live tree. The scan walks the
// view through /proc/PID/root as it would walk the live tree, and classifies
// mounts by the live mount table, so that a tree that is quiet gives the same
// image either way. When the scan is over, the keeper looks whether the snapshots
// were good to the end, and removes them.
//
// btrfs snapshots are made by ioctls (ioctl-btrfs: BTRFS_IOC_SNAP_CREATE_V2, read-only),
// below a directory of the file system's top level, which the view does not show
// and whose making leaves no new time on it. Subvolumes that are nested in others
// are snapshotted, too; those that are read-only are read as they are. LVM's are
// made by the head's own lvm(8): of thin volumes without further ado, of others
// with room from the free extents of their volume group (see shares). What a
// snapshot costs is copied before it is written to the origin, for as long as the
// capture takes; one that has no more room is no more, and the capture fails.
//
// A file system that is to be frozen is so (ioctl_fifreeze(2)) from when the scan
// comes into it until it has read the last of it, or until the bound is over. It
// must not be one that this process, or the host's logins, need.
//
// Guarantees. Each process notices the other's end by the socket's. When the
// scanning process ends, however it does, the keeper releases everything and
// ends; when the keeper is killed, the scanning one fails and starts a keeper that
// releases what it held. When both are killed, the view is gone with the keeper's
// namespace; snapshots, and what is frozen, are released by the next capture, by
// the owner in their names. A keeper never kills an lvm command, which could leave
// a volume suspended; whoever waits for a killed keeper's end waits for that, too.
//
// Not guaranteed. Snapshots of several file systems, or of several subvolumes,
// are not of one instant, but taken within moments. The kernel does not thaw by
// itself: when both processes are killed while something is frozen and no further
// capture comes, it stays so until fsfreeze(8) -u.
package snapshot
