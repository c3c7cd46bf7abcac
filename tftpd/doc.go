// Package tftpd hands out files by TFTP (RFC 1350, with the options blksize and
// tsize of RFC 2348 and 2349), which is how firmware fetches its boot loader.
//
// # Words
//
// A name is what a client asks for. A File is what a name stands for. Files is
// a table of them.
//
// # Steps
//
// The caller opens the socket with Listen and gives it to Server.Serve. For each
// read request the name is cleaned (Name) and looked up; the file is sent from a
// port of its own, each block until the client has acknowledged it; one line of
// the log says what was sent to whom, or why not.
//
// # Guarantees
//
//   - Only what Lookup knows is sent. No name is ever joined to a path; the file
//     system is not touched.
//   - Nothing is written. Write requests are refused with error 2.
//   - Any number of clients read at the same time, each as often as it likes;
//     at most 512 transfers run at once, and a client that falls silent is given
//     up after nine seconds.
//   - Malformed packets change nothing.
//   - Serve returns at the latest Grace after its context is done.
//
// # Not guaranteed
//
//   - TFTP has no authentication and no encryption: nothing secret belongs here.
//   - There is no windowsize (RFC 7440), so a transfer is as slow as the round
//     trip. Large files go by HTTP.
//   - Files in netascii mode are converted as RFC 1350 asks, so the size that
//     tsize tells is that of the file, not that of the bytes on the wire.
package tftpd
