// Package resync keeps doubles equal to what they were made from: when the
// source is captured again, which nodes are updated when, and how a tree
// differs from its image. It lies in the directory sync, and is named
// differently because it is always used beside the standard library's sync.
//
// # Words
//
// A round is one capture of the source that an image follows; a window is when
// rounds may begin. A follower is a node that is to be kept equal to the latest
// version. Drift is how a tree differs from its manifest. Some of it may be: an
// installed node has a host name, addresses and a machine-id of its own. What
// may be is decided by the caller (clone's table of identity files), together
// with the reason; everything else counts.
//
// # What it does
//
// Schedule says when the next round begins, Loop runs rounds by it, and Roll
// decides whose update is ordered next. None of them knows how a round or an
// update is carried out.
//
// Drift compares a tree entry by entry, contents and all metadata. Then it
// sorts every difference into those that may be and those that may not. The
// time of a directory changes with what is made, removed or replaced in it, so
// it may differ where something in the directory may.
//
// # What it guarantees
//
// Rounds never overlap. One that was missed is caught up, but not each of many.
// After a failure the next attempt comes soon, and then later each time, up to
// the interval. A clock that is put back delays rounds by one interval at most.
// No more nodes are updated at once than allowed, and when one has failed on a
// version, no other is updated to it until that one has succeeded.
//
// # What it does not guarantee
//
// A tree that changes while it is compared is judged by what was read. A
// difference below an excused directory is not excused by that: each path is
// judged for itself.
package resync
