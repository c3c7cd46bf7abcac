// Package remote reaches a head over SSH and makes imaging.Sources of it.
//
// Words. A target is what the user typed: [USER@]HOST[:PORT]. A connection is
// one SSH connection to it, by way of jump hosts where ssh_config says so. The
// agent is doppel-agent, running on the head for the length of one capture.
//
// Steps. Dial reads ssh_config as ssh would, connects, judges the host key by
// known_hosts, and logs in with keys, the user's ssh-agent, or what the user
// types. Agent starts a shell there that says what the head is, makes a private
// temporary directory, takes the doppel-agent binary off its standard input
// (packed, where gzip is there to unpack it), tries it, and runs it, which then
// speaks imaging/wire. That is one session where the login is root's; where it
// is not, or an agent is installed (one with the right digest is run as it is),
// the first ends with what the head is, and others follow. SFTP needs nothing on
// the head but sshd's sftp subsystem, and tells what it cannot carry.
//
// Guarantees. A host key that known_hosts contradicts is never accepted. One
// session is open at a time, so MaxSessions 1 does; neither SFTP nor a terminal
// is needed for the agent. Nothing is left on the head, wherever a connection
// breaks off or a client is killed: the end of its input ends the shell, which
// removes its directory whatever else happened; the agent unlinks itself as
// soon as it runs, and ends by itself. A peer that is gone is noticed within
// about 30 seconds. Weak algorithms are taken only by a host that knows no
// others, and a warning names them. Passwords and passphrases are held for the
// login alone (sudo's: until the agent has started) and are never logged.
//
// Not guaranteed. A head that loses its power, or kills the shell with a signal
// that cannot be caught, in the seconds in which the agent is sent, keeps the
// directory doppel-agent.* in /tmp or its like; the next capture by the same
// login removes those older than two hours. A client that vanishes without a
// word keeps what it started until sshd notices (ClientAliveInterval, or TCP),
// but the agent not longer than a minute or two. Of ssh_config, what needs
// programs to be run is not carried out: Match exec never matches, and
// ProxyCommand is refused in words. StrictHostKeyChecking no is taken for
// accept-new. Compression, forwarding and multiplexing mean nothing here.
// Through SFTP, a directory that is renamed during the walk may take the walk
// out of the tree; and what SFTP cannot carry is lost, and noted.
package remote
