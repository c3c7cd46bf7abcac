package tftpd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// File is what a name stands for. Its bytes do not change while they are read,
// by any number of clients.
type File struct {
	Content io.ReaderAt
	Size    int64
}

// Files is a fixed table of names, written without a leading slash.
type Files map[string]File

// Lookup finds a name.
func (f Files) Lookup(name string) (File, bool) {
	file, ok := f[name]
	return file, ok
}

// Server hands out files, to read only.
type Server struct {
	// Lookup says what a name stands for; it gets names with slashes only, none
	// leading. Files.Lookup is one.
	Lookup func(name string) (File, bool)
	Log    *slog.Logger
	// Grace is how long running transfers may go on once ctx is done; default 2 s.
	Grace time.Duration
}

// Listen opens the server's socket on addr (port 69 if addr's is 0), on one interface if
// iface is not empty.
func Listen(ctx context.Context, iface string, addr netip.AddrPort) (*net.UDPConn, error) {
	return nil, io.EOF
}

// Serve answers until ctx is done.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error { return nil }
