// Package resync tells how a tree differs from its image. It lies in the
// directory sync, and is named differently because it is always used beside
// the standard library's sync.
//
// # Words
//
// Drift is how a tree differs from its manifest. Some of it may be: an
// installed node has a host name, addresses and a machine-id of its own. What
// may be is decided by the caller (clone's table of identity files), together
// with the reason; everything else counts.
//
// # What it does
//
// Drift compares a tree that nothing is running in, such as the mounted disk
// of a machine that is off, entry by entry: contents by their digests, and all
// metadata. Then it sorts every difference into those that may be and those
// that may not. The time of a directory changes with what is made, removed or
// replaced in it, so it may differ where something in the directory may.
//
// # What it does not guarantee
//
// A tree that changes while it is compared is judged by what was read. A
// difference below an excused directory is not excused by that: each path is
// judged for itself.
package resync
