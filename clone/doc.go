// Package clone turns a blank machine into a node: it decides what the machine
// is to become, and carries that out.
//
// # Words
//
// A plan is what one machine is to become for one install: disk, partitions,
// image, name, address, what happens after. Its id, that of the install,
// becomes the GUID of the disk's GPT. A stage is a step of carrying it out; a
// report is the machine's word on a stage. The record says, on the disk
// itself, which partitions were formatted to the end. The identity of a node is
// what makes it differ from its image; one table of files (Identity) says what
// that is, and everything that is not in it is equal on every double.
//
// # Planning
//
// MakePlan is pure. The disk: the one that carries this install already; else
// the one the operator named; else the only one that is writable, fixed, not on
// USB and large enough. Two that qualify are a question for the operator. The
// partitions: the head's own, in its order, with its types, names, labels,
// UUIDs and sizes, the difference between the two disks given to, or taken
// from, the largest part of the tree; a head of which no layout was recorded
// gets root and swap. What the machine's firmware needs is added when the head
// had started by another. The table is always a GPT. New UUIDs follow from the
// plan's id, so a plan made twice is the same.
//
// Check tells beforehand whether an image brings all that an install needs of
// it: the installer has no tools of its own.
//
// # Carrying out
//
// Install goes through the stages of protocol.go:
//
//	tools       mkfs and its like, with their libraries, out of the image into memory
//	partition   wipe, write the table; skipped when the disk carries this plan
//	format      each file system once, then the record; with the head's features
//	apply       imaging.Apply of the whole image
//	identity    WriteIdentity
//	bootloader  GRUB by the image's own tools, chrooted; grub.cfg kept where it
//	            is as true here as on the head, else made
//	agent       the agent, its unit, the node's credentials
//
// Update makes a node that runs equal to an image, in place, through stages of
// its own: check, pre, apply, identity, bootloader, settle, post. The table of
// identity files says what the node keeps.
//
// # Guarantees
//
// Whatever stops an install (power, a fault, the operator), doing it again with
// the same plan continues it: the table is written last of all that wipes, the
// record after what it records is durable, Apply finds what is right already,
// and by content, since sizes and times say nothing after a power cut; the
// stages behind it come to the same however often they are done. A chunk that
// is not what it should be stops the install before a file is made of it, and
// the error names it. Right before the first write the caller is asked once more
// whether it still may be (InstallOptions.Permit). A disk that anything has mounted is not partitioned
// (O_EXCL). Programs of the image run chrooted, and see no block device but the
// plan's. When Install returns, nothing is left mounted, and without an error
// all of it is durable.
//
// Identity files are written beneath the node's tree, through os.Root: a link
// in an image leads nowhere outside.
//
// A compute node gets a machine-id, SSH host keys and storage initiator names of
// its own, password hashes locked, and an address in the style of
// configuration that the image uses; the head's own addresses go, with all
// configuration that holds them. A node of the role head keeps host keys and
// passwords.
//
// # What it does not guarantee
//
// The image's initramfs is used as it is. One that was made for the head's
// hardware alone (MODULES=dep, dracut's host-only mode) does not start other
// hardware. LVM, md, btrfs and dm-crypt are not laid out again. Files written
// here carry no SELinux labels; an image that enforces SELinux needs
// /.autorelabel. On UEFI, the ESP is mounted by the installer's kernel, which
// needs vfat; an entry in the firmware's list is added, right behind network boot, but a
// firmware that refuses it starts the disk by the fallback path all the same.
// Interrupted while keys are generated, an install comes to other keys.
package clone
