// Package remote reaches a head over SSH and makes imaging.Sources of it.
//
// Words. A target is what the user typed: [USER@]HOST[:PORT]. A connection is
// one SSH connection to it, by way of jump hosts where ssh_config says so. The
// agent is doppel-agent, running on the head for the length of one capture.
//
// Steps. Dial reads ssh_config as ssh would, connects, judges the host key by
// known_hosts, and logs in with keys, the user's ssh-agent, or what the user
// types. Agent asks the head what it is, puts the doppel-agent binary into a
// private temporary directory there (unless the one that is installed has the
// right digest), starts it, and speaks imaging/wire with it. SFTP needs nothing
// on the head but sshd's sftp subsystem, and tells what it cannot carry.
//
// Guarantees. A host key that known_hosts contradicts is never accepted. One
// session is open at a time, so MaxSessions 1 does. The agent unlinks itself as
// soon as it runs, and the temporary directory is gone before the capture
// begins: whatever happens afterwards, a cut connection and a lost client
// included, nothing is left on the head; the agent ends by itself. A peer that
// is gone is noticed within about 30 seconds. Passwords and passphrases are
// held for the login alone (sudo's: until the agent has started) and are never
// logged.
//
// Not guaranteed. A connection that ends between creating the temporary
// directory and starting the agent leaves that directory, with or without the
// agent in it, in /tmp or its like, named doppel-agent.*; the next capture by
// the same login removes those older than two hours. Of ssh_config, what needs
// programs to be run is not carried out: Match exec never matches, and
// ProxyCommand is refused in words. StrictHostKeyChecking no is taken for
// accept-new. Compression, forwarding and multiplexing mean nothing here.
// Through SFTP, a directory that is renamed during the walk may take the walk
// out of the tree; and what SFTP cannot carry is lost, and noted.
package remote
