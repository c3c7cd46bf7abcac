package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// Bounds on what an SFTP server may say. The library bounds packets, and checks
// the lengths within them; what it would believe without end is bounded here.
const (
	maxSFTPListing = 512 << 20 // bytes in which one directory is listed: two million names or more
	maxSFTPPath    = 8 << 10   // bytes; a server's PATH_MAX is 4096
)

// The two kinds of answers that are looked at: SSH_FXP_DATA and SSH_FXP_NAME.
const (
	sftpData = 103
	sftpName = 104
)

// sftpGuard reads the answers of an SFTP server and lets none through that
// would keep the capture busy for ever: directories without an end, and files
// that give no bytes and do not end either.
type sftpGuard struct {
	r       io.Reader
	most    int64        // of listing
	listing atomic.Int64 // bytes of names since the last directory was begun

	head [13]byte // length, kind, request, and the length of SSH_FXP_DATA
	have int      // bytes of head that have come
	left int64    // bytes of the packet that come behind head
	err  error
}

func (g *sftpGuard) Read(b []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.r.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		if g.left > 0 {
			skip := min(g.left, int64(len(rest)))
			g.left -= skip
			rest = rest[skip:]
			continue
		}
		took := copy(g.head[g.have:g.need()], rest)
		g.have += took
		rest = rest[took:]
		if g.have < g.need() {
			continue
		}
		if g.err = g.judge(); g.err != nil {
			return 0, g.err
		}
		g.have = 0
	}
	return n, err
}

// need is how many bytes of head there are to be in this packet.
func (g *sftpGuard) need() int {
	switch {
	case g.have < 5:
		return 5
	case g.head[4] == sftpData && binary.BigEndian.Uint32(g.head[:]) >= 9:
		return 13
	}
	return 5
}

// judge looks at the head of a packet.
func (g *sftpGuard) judge() error {
	length := int64(binary.BigEndian.Uint32(g.head[:]))
	g.left = max(length+4-int64(g.have), 0)
	switch {
	case g.have == 13 && binary.BigEndian.Uint32(g.head[9:]) == 0:
		return errors.New("the host's SFTP answers a read with no bytes, and not with the file's end")
	case g.head[4] == sftpName && g.listing.Add(length) > g.most:
		return fmt.Errorf("the host's SFTP lists a directory in more than %d MiB", g.most>>20)
	}
	return nil
}
