// Package cluster keeps what must survive of a cluster: its nodes, the
// machines seen near it, the addresses given to them, and what happened.
//
// # Words
//
// A node is one machine of the inventory. A sighting is a machine seen asking
// to boot; it is noted whether or not it belongs to a node. Assigning ties a
// machine's MAC to a node; the reservation that follows from it is in force
// with the next packet, because every reader reads the same state. Arming
// permits exactly one destructive install. A lease is an address given by
// DHCP. An event is one thing that happened, written for people. A collection
// is the window in which unknown machines are given an address and made to
// wait.
//
// # Changes
//
// Every change is a value of a type that implements Change, and passes through
// Cluster.Commit, the one function that writes. Commit checks the change
// against the rules and the state as it is at that moment, completes it (a
// default netmask, the next free node), writes it as an Entry into the log and
// its effect into the state's own buckets in one bbolt transaction, waits for
// fsync, and only then lets readers see it and returns. Several changes given
// to one Commit happen all or not at all. Concurrent callers share one
// transaction, and so one fsync; a refused caller does not hurt the others.
//
// A change that would break a rule gives a *RefusedError and alters nothing. A
// change that asks for what is already so succeeds and writes nothing.
//
// The states of a node, and what moves it between them:
//
//	Discovered  --Assign-->        Assigned
//	Assigned, Installed, Failed, Armed  --Arm-->  Armed
//	Armed       --BeginInstall-->  Installing   (again after a power cut: same install)
//	Installing  --Finish-->        Installed    (the only thing that uses up the arming)
//	Armed, Installing  --Fail-->   Failed
//	Armed, Installing, Failed  --Disarm-->  Installed if it runs something, else Assigned
//	any but Installing  --Unassign-->  Discovered
//
// An update makes an Installed node equal to another version in place, without
// leaving that state: OrderUpdate, BeginUpdate when the node is given its
// orders, EndUpdate when it runs the version, or with the reason why not. A
// later order takes the place of an earlier one, and so does an Arm.
//
// # Replication
//
// An entry carries its sequence number and its time; applying it reads no
// clock, no configuration and no randomness. Cluster.Log reads entries,
// Cluster.Replicate applies them elsewhere: the same entries applied to an
// empty state give the same state, events included. The log keeps the last
// Options.KeepLog entries; what is older is in the state itself, and Log then
// answers a *CompactedError. Likewise the last Options.KeepEvents events and
// at most Options.KeepSightings sightings of unassigned machines are kept, so
// a hostile segment cannot fill the disk.
//
// # Guarantees
//
//   - What Commit acknowledged survives kill -9, and power loss as far as the
//     disk keeps the promise of fsync.
//   - A full disk gives an error and changes nothing, on disk or in memory;
//     the next Commit works once there is space.
//   - A read is a consistent copy; nobody sees a change before it is durable.
//   - One process owns a state: a second Open gives ErrLocked.
//
// # Not guaranteed
//
// Sight and Progress are kept in memory between the moments that matter (the
// first sighting of a machine, the beginning of a stage) and written every
// Options.FlushEvery, and on Close: a crash may lose the last few seconds of a
// counter. An event's text is for people and may change between versions.
package cluster
