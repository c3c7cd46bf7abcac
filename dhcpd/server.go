package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Server answers the DHCP clients of one interface. Handler and Leases must be
// set; a nil Log says nothing.
type Server struct {
	Config  Config
	Handler Handler
	Leases  Leases
	Log     *slog.Logger
}

// serving is a Server at work.
type serving struct {
	Server
	conn   Conn
	log    *limited
	commit *committer

	mu    sync.Mutex // guards table
	table *table
}

// Serve answers what comes in on conn until ctx is done, then finishes what it
// has begun, closes conn and returns nil. Any other end is an error.
func (s *Server) Serve(ctx context.Context, conn Conn) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	v := &serving{Server: *s, conn: conn}
	if v.Config, err = s.Config.checked(); err != nil {
		return fmt.Errorf("serving DHCP on %s: %w", conn.Interface(), err)
	}
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	v.log = newLimited(log.With("interface", conn.Interface()))
	leases, err := s.Leases.All(ctx)
	if err != nil {
		return fmt.Errorf("reading the leases: %w", err)
	}
	reserved := func(netip.Addr) bool { return false }
	if r, ok := s.Handler.(Reserver); ok {
		reserved = r.Reserved
	}
	v.table = newTable(&v.Config, reserved, leases)
	v.commit = newCommitter(s.Leases)
	defer v.commit.close()
	clients := newLines()
	defer clients.wait() // before the committer, which they wait for
	return v.read(ctx, clients)
}

// read takes packets in and lines them up by client.
func (v *serving) read(ctx context.Context, clients *lines) error {
	buf := make([]byte, maxMessage+1)
	for {
		arrival, err := v.conn.Read(ctx, buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// The socket outlives an interface that goes down and comes back.
			v.log.say(ctx, slog.LevelError, "receiving", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		r, err := parse(buf[:arrival.N], arrival.Broadcast)
		if err != nil {
			v.log.say(ctx, slog.LevelDebug, "packet ignored", "from", arrival.From, "error", err)
			continue
		}
		if !clients.add(r.mac, func() { v.answer(ctx, r) }) {
			v.log.say(ctx, slog.LevelWarn, "more packets than can be answered; some are dropped", "mac", r.mac)
		}
	}
}

// answer does all that a packet calls for. One line of the log says what.
func (v *serving) answer(ctx context.Context, r *request) {
	log := func(level slog.Level, text string, more ...any) {
		v.log.say(ctx, level, text, append([]any{"mac", r.mac, "message", r.kind.String()}, more...)...)
	}
	subnet := v.Config.subnetOf(r)
	if subnet < 0 {
		log(slog.LevelWarn, "the relay's subnet is not configured", "relay", r.giaddr, "link", r.link)
		return
	}
	p, err := v.policy(ctx, r)
	if err != nil {
		log(slog.LevelError, "asking what the client may have", "error", err)
		return
	}
	c := client{r.mac, subnet}
	o, durable := v.decide(ctx, r, c, p)
	if err := <-durable; err != nil {
		log(slog.LevelError, "lease not durable, so not acknowledged", "addr", o.addr, "error", err)
		return
	}
	if o.reply == dhcpv4.MessageTypeNone {
		text := "no answer"
		if o.addr.IsValid() {
			text = "address given back"
		}
		log(o.level, text, "addr", o.addr, "reason", o.why)
		return
	}
	reply := message(&v.Config, v.Config.subnet(subnet), r, p, o)
	to := destination(&v.Config, r, o)
	err = v.conn.Send(reply, to)
	if err != nil && to.MAC != (MAC{}) {
		log(slog.LevelDebug, "sending to the client alone", "error", err)
		to.MAC, to.Addr = MAC{}, netip.AddrPortFrom(everybody, dhcpv4.ClientPort)
		err = v.conn.Send(reply, to)
	}
	if err != nil {
		log(slog.LevelError, "answering", "to", to.Addr, "error", err)
		return
	}
	log(o.level, "answered", "reply", o.reply.String(), "addr", o.addr, "to", to.Addr.Addr(),
		"hostname", p.Hostname, "boot", p.BootFile, "reason", o.why)
}

// policy asks the Handler, where the packet is one that it may decide about.
func (v *serving) policy(ctx context.Context, r *request) (Policy, error) {
	switch {
	case r.kind == dhcpv4.MessageTypeRequest && r.elsewhere(&v.Config):
	case r.kind == dhcpv4.MessageTypeDiscover, r.kind == dhcpv4.MessageTypeRequest, r.kind == dhcpv4.MessageTypeInform:
		// A packet that has come in is answered even by a server about to stop.
		return v.Handler.Policy(context.WithoutCancel(ctx), r.query(v.conn.Interface()))
	}
	return Policy{}, nil
}

// maxAsks bounds how many addresses found in use one packet makes the server
// go through. The client asks again.
const maxAsks = 4

// decide decides, and asks the segment about addresses where that is needed.
// The channel tells when the changes are durable.
func (v *serving) decide(ctx context.Context, r *request, c client, p Policy) (outcome, <-chan error) {
	var o outcome
	for range maxAsks {
		v.mu.Lock()
		o = v.table.decide(r, c, p, time.Now())
		// Queued under the lock: changes to an address become durable in the
		// order in which they were decided.
		durable := v.commit.queue(o.changes)
		v.mu.Unlock()
		if !o.ask.IsValid() {
			return o, durable
		}
		mac, used, err := v.conn.InUse(ctx, o.ask, v.Config.ProbeTime)
		if err != nil {
			// Better an address that is perhaps in use, which a careful client
			// finds out, than none.
			v.log.say(ctx, slog.LevelDebug, "asking whether an address is in use", "addr", o.ask, "error", err)
		}
		v.mu.Lock()
		durable = v.commit.queue(v.table.answered(o.ask, c, answer{used, mac, time.Now()}, p))
		v.mu.Unlock()
		if used && mac != c.mac {
			v.log.say(ctx, slog.LevelWarn, "an address that was to be given is in use", "addr", o.ask, "by", mac)
		}
		if err := <-durable; err != nil {
			v.log.say(ctx, slog.LevelError, "quarantine not durable", "addr", o.ask, "error", err)
		}
	}
	done := make(chan error)
	close(done)
	return silence(slog.LevelWarn, "the addresses tried are all in use"), done
}
