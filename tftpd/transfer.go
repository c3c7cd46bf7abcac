package tftpd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"github.com/pin/tftp/v3"
)

var errStopping = errors.New("the server is stopping")

// content reads a file for one client. It offers no Seek, so the library takes
// the size that it was told.
type content struct {
	r       io.Reader
	stopped <-chan struct{}
}

func (c *content) Read(p []byte) (int, error) {
	select {
	case <-c.stopped:
		return 0, errStopping
	default:
		return c.r.Read(p)
	}
}

// errReadOnly is error 2 of RFC 1350, access violation.
var errReadOnly = errors.New("this server is read-only")

const accessViolation = 2

// write refuses a write request. The library sends every error as number 1,
// file not found, which makes no sense to the client's user. So the right one is
// sent first, from a port of its own: a client takes the first answer to its
// request for the server's, whatever port it comes from (RFC 1350 section 4).
func (v *serving) write(requested string, from io.WriterTo) error {
	log := v.log.With("name", Name(requested))
	if t, ok := from.(tftp.IncomingTransfer); ok {
		peer := t.RemoteAddr()
		log = log.With("client", peer.AddrPort())
		local := &net.UDPAddr{}
		if p, ok := from.(tftp.RequestPacketInfo); ok {
			local.IP = p.LocalIP()
		}
		if err := sendError(local, &peer, accessViolation, errReadOnly); err != nil {
			log.Debug("refusing a write", "error", err)
		}
	}
	log.Info("write refused")
	return errReadOnly
}

// sendError sends one ERROR packet.
func sendError(local, peer *net.UDPAddr, code byte, reason error) error {
	conn, err := net.DialUDP("udp", local, peer)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	_, err = conn.Write(append([]byte("\x00\x05\x00"+string(code)+reason.Error()), 0))
	return errors.Join(err, conn.Close())
}

// hook logs what is wrong before there is a transfer. All else is logged where
// the transfer is served.
type hook struct{ log *slog.Logger }

func (h hook) OnSuccess(tftp.TransferStats) {}

func (h hook) OnFailure(t tftp.TransferStats, err error) {
	if t.RemoteAddr != nil {
		return
	}
	if network := (*net.OpError)(nil); errors.As(err, &network) {
		h.log.Warn("opening a socket for a transfer", "error", err)
		return
	}
	h.log.Debug("packet ignored", "error", err)
}
