// Package imaging makes images of trees: it captures a tree as a version of an
// image, keeps versions in a catalog, and makes a tree equal to one again.
//
// # Words
//
// An entry is one name in a tree with all its metadata. A manifest is every
// entry of a tree in canonical order, with what the host says of itself, its
// disk's layout and what it boots with; its digest is the identity of the
// version. A chunk is a piece of a file's data, cut where the data says so, and
// named by the digest of its bytes. Chunks travel in blocks for one audience.
// A source is something that can be captured. A class says whose a file's
// content is, and so for which audience it is sealed.
//
// # Capturing
//
// Capture asks a Source to describe its host and to scan its tree. ScanTree is
// the one engine that does so, on this machine, in the agent on another, and
// over SFTP. It walks in canonical order; asks which files are known by their
// stamp from the last capture and wholly in the store; reads, cuts and hashes
// the rest; asks which chunks the store lacks; and sends those, compressed.
// Capture makes the packs durable, then the manifest, and writes the image's
// name last. A tree that has not changed makes no new version.
//
// A tree is captured while it is used:
//   - A file that only grew while it was read is kept at the length and with
//     the times it had when it was opened.
//   - A file that changed otherwise is read again, three times at most, and
//     then kept as it was read last and noted as unstable. One that is cut off
//     each time is kept as far as there was something to read.
//   - A name that went away after it was listed is left out and noted.
//   - What cannot be read (no permission, an I/O error) fails the capture and
//     names the path: there is no image of half a tree.
//
// A version is not a snapshot, unless the request has it read from snapshots
// (see Consistency): two files may be of two instants. Files of a database that
// runs are as after a power cut at best; dump it before.
//
// Every entry keeps kind, mode, owner by number, modification time to the
// nanosecond, extended attributes (ACLs and capabilities among them), inode
// flags as of chattr(1) and the quota project, holes, hard links, link targets
// and device numbers. Access, change and birth times and inode numbers are not
// kept. Which blocks files share (reflinks) is not kept either; Apply has equal
// files share theirs where the file system can.
//
// Left out are the contents of /proc, /sys, /dev, /run, /tmp, /var/tmp, of
// doppel's own /var/lib/doppel and /etc/doppel and of any other directory that
// is the state of a doppel, of network and virtual file systems, what is
// mounted a second time, and what the request excludes. The directories
// themselves stay, as Opaque, without a modification time. Local disks that are
// mounted in the tree are part of it.
//
// A file is known again by inode, size, modification and change time. One that
// changed so shortly before the scan that another change could fall into the
// same tick of the clock is read again the next time.
//
// # Watching
//
// A Source that stays between captures may be a Watcher. Captures that keep a
// Watch between them then ask it first whether anything has changed at all, and
// otherwise for the continuation of the last scan: directories in which nothing
// happened come as the same, and their entries, with what the cache knows of
// their files, are taken from the last version. The version is what it would be
// had everything been looked at, but for what the kernel does not tell: writes
// through shared memory mappings until the file is closed. Watch.RescanEvery
// bounds how long these stay unseen.
//
// # Secrets
//
// Classify is the table of secrets by path; DetectSecret finds private keys
// that no rule knows by what files begin with. Content of the classes node and
// head is sealed for heads, and so are its digests: they are in the manifest's
// head part, which is sealed on its own. A reader without the head's key gets
// such entries Withheld. The names, sizes and metadata of secrets are no secret.
// A secret that has another, unsuspicious name (a hard link) earlier in the
// canonical order goes by that name, unless it looks like a private key.
//
// # The catalog
//
// A Catalog is the images of a state directory. A name points to nothing that
// is not durable and verified: chunks are verified when they come, packs are
// durable before the manifest, the manifest before the name. Killing a capture
// or filling its disk leaves every version as it was; what had come is used by
// the next capture, or swept up by the next removal. Versions are numbered from
// 1, and no number is used twice.
//
// # Repair
//
// Prune gives back the room of what no version needs, Verify finds what is
// damaged, and Repair saves what is whole of it. FORMAT.md describes all that is
// on disk byte by byte, with the reasons.
package imaging
