// Package wire is the protocol between a capture and the agent on the head.
//
// Words. The client is the end that captures: it holds the imaging.Sink. The
// agent is the end on the head: it holds the tree, as an imaging.Source. A
// message is one frame: a byte that says its kind, four bytes of length
// (big-endian), and the payload. A payload is packed where that makes it
// shorter: compressed by zstd, with its own length in front. Entries are; blocks
// come compressed, digests do not yield, and questions are waited for.
//
// Steps. Both ends talk over one byte stream each way, which usually are the
// standard output and input of `doppel-agent capture` at the far end of an SSH
// session. The agent speaks first: what precedes its greeting (a login shell's
// chatter) is skipped, up to a bound. The client greets back; then it asks for
// a description and for a scan. During the scan the agent puts the sink's
// questions (is this file cached, is this chunk missing) and sends blocks,
// entries and notes. Every question has a number and may be under way beside
// others; blocks, entries and notes are sent without waiting for an answer.
//
// What a file held last time never crosses the wire: where the client answers
// "cached", the agent's entry says "as cached", and the client puts in the
// content that its own sink gave, and the stamp that it was asked about. A
// capture of an unchanged tree therefore costs its entries' metadata and
// nothing else: some 30 bytes a file.
//
// An agent that stays may watch its tree between scans. The client asks it for a
// scan since the one with a certain mark, and then gets the names of directories
// in which nothing has changed in the place of their entries; or asks first
// whether all is quiet since then, which is answered by yes or no.
//
// Guarantees. Every length is bounded before anything is allocated for it, and
// memory follows the bytes that truly arrived (of a packed payload, sixteen
// times those at most, and 256 KiB), so a lying peer gets an error
// (*ProtocolError), never the memory. Paths, kinds and sums of sizes are checked
// where they enter. Blocks, entries and notes reach the sink in the order in
// which the agent gave them, each only when the one before it is done; that is
// also the flow control: while the sink is busy the client stops reading, and
// the stream's window stops the agent. An agent that hears nothing for Silence
// gives up, so that none outlives a client that lost its power; the client
// therefore pings.
//
// Not guaranteed. The bytes of chunks are not verified here: the sink does that
// against their IDs, wherever they come from. The stream is neither encrypted
// nor authenticated: SSH does that.
package wire
