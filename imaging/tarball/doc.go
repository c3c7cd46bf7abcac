// Package tarball brings images in from tar archives, and out to them.
//
// # Words
//
// A member is one file of an archive with its headers and data. An extended
// header comes before a member and says what has no room in the member's own:
// it is made of records. A run is a piece of a file's data between two holes.
//
// # Import
//
// Import reads an archive once, from its beginning to its end: v7, ustar, pax,
// GNU tar's and star's formats, plain or compressed with gzip, zstd, xz or
// bzip2, which is told by the first bytes. It is a Source of imaging.Capture:
// the data of files is cut into chunks as it is read, the store is asked which
// it lacks, and those are stored in blocks. Of members all is remembered but
// their data; when the archive has ended, they become the entries of the
// version, which is the tree that tar would have unpacked as root with
// --numeric-owner:
//
//   - Of several members of one name the last counts. A directory that is not
//     empty can only be followed by a directory.
//   - Hard links may come before what they lead to. The first name in canonical
//     order becomes the file, wherever it was in the archive.
//   - Directories that the archive does not have are made: root's, 0755, of
//     1970. Leading slashes are taken off. Both are in the report's Notes.
//   - Inode flags, as of chattr(1), are taken from SCHILY.fflags (bsdtar, star)
//     by the names that libarchive has for Linux' flags, and from DOPPEL.fflags,
//     where an export has those that libarchive has no name for; quota projects
//     from DOPPEL.project. Names of flags that Linux does not have (uchg, hidden)
//     are in the report's Notes.
//   - Extended attributes are taken from SCHILY.xattr (GNU tar), from
//     LIBARCHIVE.xattr (bsdtar) and from RHT.security.selinux; ACLs in words
//     become the kernel's attributes. A name in an ACL is looked up in the
//     archive's own etc/passwd and etc/group, then on this machine; one that
//     nobody knows is lost, and the report says so.
//   - Holes are kept: GNU tar's old format, and its pax formats 0.0, 0.1 and 1.0.
//   - Secrets are found and classed as in a capture: by the first name in
//     canonical order, and by what a file begins with.
//   - What is in var/lib/doppel and etc/doppel is left out, as in a capture.
//   - Host name, system and machine are what files in the archive say. Of disks
//     it says nothing.
//
// # Hostile archives
//
// An import writes into the store and nowhere else. An archive is refused as a
// whole, naming the member and where in the archive it is, that is damaged or
// cut off (one without the blocks of zeros at its end is), that has a name with
// .. in it, a NUL, a hard link to what it does not have or to a directory, a
// member below what is no directory, a number that Linux does not have, or an
// extended header that makes no sense. Every length is held against a bound, and
// against what really comes, before memory is taken for it: one member's headers
// take 16 MiB at most, all that is remembered 1 GiB, decompression a window of
// 128 MiB.
//
// # Export
//
// Export writes a version as a pax archive in canonical order, the same bytes
// every time, with memory for some 32 MiB of contents. Holes are in GNU's format
// 1.0, which GNU tar and bsdtar read. Inode flags and projects are in the
// records that import takes them from. An archive is not sealed: what is of
// class node or head is left out unless it is asked for. That, sockets, and what
// this reader may not know are listed in the report.
//
// # What it does not guarantee
//
//   - A file whose first name in the archive is innocent, and which another name
//     makes a secret, was stored for everyone before that was known. It is
//     stored again for heads, and the first copy is of no version; it stays in
//     its pack until the pack is removed.
//   - bsdtar writes times before 1970 in a way of its own: its fractions count
//     the other way, so such a time comes out up to a second off. It knows no
//     hard links of devices, GNU tar none of devices and FIFOs.
//   - Of an xz archive, only the first block is asked for the size of its
//     dictionary before memory is taken for it.
//   - GNU tar neither packs nor unpacks inode flags; it warns of a keyword that
//     it does not know. bsdtar does both, but for dontcompress and dax (chattr's
//     m and x); it sets those of a directory, all but immutable and append only,
//     before it makes what is in there, which inherits some. No other program
//     knows projects.
//   - Access, change and birth times are not taken, as in a capture. Members of
//     archives on several volumes are refused.
package tarball
