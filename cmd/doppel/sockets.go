package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"doppel/dhcpd"
	"doppel/tftpd"
	"doppel/web"
)

// sockets are all that the daemon listens on. They are open before any is
// served, so that a daemon that cannot have one of them answers nobody.
type sockets struct {
	dhcp          *dhcpd.Socket
	tftp          *net.UDPConn
	files         tftpd.Files // that TFTP serves, from memory
	plain, secure net.Listener
	admin         net.Listener
}

// listen opens all sockets, or none.
func (d *daemon) listen(ctx context.Context) (s *sockets, err error) {
	s = &sockets{}
	if s.files, err = tftpFiles(d.loaders); err != nil {
		return nil, err
	}
	var opened []io.Closer
	defer func() {
		if err != nil {
			for _, c := range opened {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	open := func(what string, fn func() (io.Closer, error)) {
		if err != nil {
			return
		}
		c, e := fn()
		if e != nil {
			err = &hintError{fmt.Errorf("opening %s: %w", what, e), "doppel preflight says what is in the way"}
			return
		}
		opened = append(opened, c)
	}
	address := d.segment.Addr.Addr()
	open("DHCP on "+d.segment.Interface, func() (c io.Closer, err error) {
		s.dhcp, err = dhcpd.Listen(ctx, d.segment.Interface)
		return s.dhcp, err
	})
	open(fmt.Sprintf("TFTP on %s", address), func() (c io.Closer, err error) {
		s.tftp, err = tftpd.Listen(ctx, d.segment.Interface, netip.AddrPortFrom(address, 69))
		return s.tftp, err
	})
	tcp := func(to *net.Listener, a netip.AddrPort) {
		open(fmt.Sprintf("HTTP on %s", a), func() (c io.Closer, err error) {
			var lc net.ListenConfig
			*to, err = lc.Listen(ctx, "tcp4", a.String())
			return *to, err
		})
	}
	tcp(&s.plain, d.httpAddr())
	tcp(&s.secure, d.tlsAddr())
	open("the socket "+d.g.socket(), func() (c io.Closer, err error) { s.admin, err = web.ListenUnix(d.g.socket()); return s.admin, err })
	if err != nil {
		return nil, err
	}
	return s, nil
}
