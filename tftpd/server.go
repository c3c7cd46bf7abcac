package tftpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/sys/unix"
)

const (
	port = 69
	// A client that does not answer is asked again after timeout, and given up
	// after as many times. Firmware waits between one and a few seconds itself.
	timeout = time.Second
	retries = 8
	// maxTransfers bounds the descriptors that a flood of requests can take.
	maxTransfers = 512
	defaultGrace = 2 * time.Second
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
	// Lookup says what a name stands for. It gets the name as Name has cleaned
	// it. Files.Lookup is one.
	Lookup func(name string) (File, bool)
	// Log may be nil.
	Log *slog.Logger
	// Grace is how long transfers may go on once ctx is done; default 2 s.
	Grace time.Duration
}

// Listen opens the server's socket on addr; port 0 means the one of TFTP. If
// iface is not empty, packets of other interfaces do not reach it.
func Listen(ctx context.Context, iface string, addr netip.AddrPort) (*net.UDPConn, error) {
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), port)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if iface == "" {
			return nil
		}
		var failed error
		if err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), iface) }); err != nil {
			return err
		}
		return failed
	}}
	conn, err := config.ListenPacket(ctx, "udp", addr.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listening for TFTP on %v: another TFTP server runs on this machine (ss -lunp 'sport = :%d' shows which; stop it first): %w", addr, addr.Port(), err)
	case err != nil:
		return nil, fmt.Errorf("listening for TFTP on %v: %w", addr, err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listening for TFTP on %v: %T is no UDP socket", addr, conn), conn.Close())
	}
	return udp, nil
}

// Name cleans a name as clients send it. Boot loaders put a slash before it,
// some UEFI firmware writes backslashes, and some PXE stacks end it with 0xff or
// blanks. Nothing else is made of it: a name with ".." is just one that nobody
// has.
func Name(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	for len(s) > 0 && strings.IndexByte(" \t\r\n\xff", s[len(s)-1]) >= 0 {
		s = s[:len(s)-1]
	}
	s = strings.ReplaceAll(s, `\`, "/")
	return strings.TrimLeft(s, "/")
}

// serving is a Server at work.
type serving struct {
	lookup  func(string) (File, bool)
	log     *slog.Logger
	stopped <-chan struct{} // no transfer goes on after this
	running atomic.Int64
}

// Serve answers until ctx is done, gives transfers a moment to finish, closes
// conn, and returns nil. Only Serve may close conn.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	grace := s.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	stopped := make(chan struct{})
	v := &serving{lookup: s.Lookup, log: s.Log, stopped: stopped}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	library := tftp.NewServer(v.read, v.write)
	library.SetTimeout(timeout)
	library.SetRetries(retries)
	// The library would sleep up to a second before it repeats itself, on top
	// of the timeout, and hear nothing meanwhile.
	library.SetBackoff(func(int) time.Duration { return 0 })
	library.SetHook(hook{v.log})
	ended := make(chan error, 1)
	go func() { ended <- library.Serve(conn) }()
	select {
	case err := <-ended:
		return errors.Join(fmt.Errorf("serving TFTP on %v: %w", conn.LocalAddr(), err), conn.Close())
	case <-ctx.Done():
	}
	idle := make(chan struct{})
	go func() { library.Shutdown(); close(idle) }()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-idle:
		close(stopped)
		<-ended
		return nil
	case <-timer.C:
	}
	// What still runs ends with the next block its client wants, or, if the
	// client is gone, when the library has given it up, timeout * (retries + 1)
	// after its last word. Nobody has to wait for that.
	close(stopped)
	v.log.Warn("transfers cut off", "transfers", v.running.Load())
	return nil
}

// read serves a read request.
func (v *serving) read(requested string, to io.ReaderFrom) error {
	start := time.Now()
	peer := netip.AddrPort{}
	if t, ok := to.(tftp.OutgoingTransfer); ok {
		addr := t.RemoteAddr()
		peer = addr.AddrPort()
	}
	name := Name(requested)
	log := v.log.With("name", name, "client", peer)
	if v.running.Add(1) > maxTransfers {
		v.running.Add(-1)
		log.Warn("too many transfers at once; refused")
		return errors.New("too many transfers, try again")
	}
	defer v.running.Add(-1)
	file, ok := v.lookup(name)
	if !ok {
		log.Info("no such file; refused")
		return errors.New("no such file")
	}
	content := &content{r: io.NewSectionReader(file.Content, 0, file.Size), stopped: v.stopped}
	if t, ok := to.(tftp.OutgoingTransfer); ok {
		t.SetSize(file.Size)
	}
	n, err := to.ReadFrom(content)
	log = log.With("bytes", n, "duration", time.Since(start).Round(time.Millisecond))
	switch {
	case err == nil:
		log.Info("file sent")
	case n == 0 && strings.Contains(err.Error(), "sending block 0: code="):
		// Firmware that wants to know only the size asks for the file, and
		// refuses it when the options come back (RFC 2347: error 8).
		log.Debug("client wanted no more than the size", "answer", err)
	default:
		log.Warn("transfer ended early", "error", err)
	}
	return err
}
