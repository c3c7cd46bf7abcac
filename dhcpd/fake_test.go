package dhcpd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// memory is Leases that last as long as the test. broken makes it refuse.
type memory struct {
	mu     sync.Mutex
	leases map[netip.Addr]Lease
	writes int
	broken bool
}

var errBroken = errors.New("no space left on device")

func newMemory() *memory { return &memory{leases: make(map[netip.Addr]Lease)} }

func (m *memory) All(context.Context) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Lease
	for _, l := range m.leases {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Lease) int { return cmp.Compare(number(a.Addr), number(b.Addr)) })
	return all, nil
}

func (m *memory) Put(ctx context.Context, l Lease) error {
	return m.apply([]Change{{Lease: l}})
}

func (m *memory) Delete(ctx context.Context, addr netip.Addr) error {
	return m.apply([]Change{{Lease: Lease{Addr: addr}, Gone: true}})
}

func (m *memory) apply(changes []Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.broken {
		return errBroken
	}
	for _, c := range changes {
		if c.Gone {
			delete(m.leases, c.Lease.Addr)
		} else {
			m.leases[c.Lease.Addr] = c.Lease
		}
	}
	return nil
}

// lease is the lease of addr, if there is one.
func (m *memory) lease(addr netip.Addr) (Lease, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.leases[addr]
	return l, ok
}

// batched is memory that takes many changes at once, as slowly as a disk.
type batched struct {
	*memory
	write time.Duration
}

func (b batched) Apply(_ context.Context, changes []Change) error {
	time.Sleep(b.write)
	return b.apply(changes)
}

// book is a Handler that looks things up.
type book struct {
	mu       sync.Mutex
	policies map[MAC]Policy // the zero MAC stands for all others
	reserved map[netip.Addr]bool
	queries  []Query
}

func newBook() *book {
	return &book{policies: make(map[MAC]Policy), reserved: make(map[netip.Addr]bool)}
}

func (b *book) Policy(_ context.Context, q Query) (Policy, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queries = append(b.queries, q)
	if p, ok := b.policies[q.MAC]; ok {
		return p, nil
	}
	return b.policies[MAC{}], nil
}

func (b *book) Reserved(addr netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reserved[addr]
}

func (b *book) set(m MAC, p Policy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policies[m] = p
}

// asked is what it was asked.
func (b *book) asked() []Query {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.queries)
}

// sent is a message that went out.
type sent struct {
	message []byte
	to      Destination
}

// arrived is a packet that comes in.
type arrived struct {
	bytes     []byte
	broadcast bool
}

// tape is a Conn without a network.
type tape struct {
	in chan arrived

	mu     sync.Mutex
	out    []sent
	users  map[netip.Addr]MAC // who answers ARP
	asked  []netip.Addr
	noMAC  bool // frames cannot be sent
	closed bool
}

func newTape() *tape { return &tape{in: make(chan arrived), users: make(map[netip.Addr]MAC)} }

func (t *tape) Interface() string { return "eth1" }

func (t *tape) Read(ctx context.Context, buf []byte) (Arrival, error) {
	select {
	case <-ctx.Done():
		return Arrival{}, ctx.Err()
	case p := <-t.in:
		return Arrival{N: copy(buf, p.bytes), Broadcast: p.broadcast, From: netip.IPv4Unspecified()}, nil
	}
}

func (t *tape) Send(message []byte, to Destination) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errors.New("sending on a closed connection")
	}
	if t.noMAC && to.MAC != (MAC{}) {
		return errors.New("no packet sockets here")
	}
	t.out = append(t.out, sent{bytes.Clone(message), to})
	return nil
}

func (t *tape) InUse(ctx context.Context, addr netip.Addr, wait time.Duration) (MAC, bool, error) {
	t.mu.Lock()
	t.asked = append(t.asked, addr)
	by, used := t.users[addr]
	t.mu.Unlock()
	if !used {
		time.Sleep(wait)
	}
	return by, used, nil
}

func (t *tape) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return nil
}

// take empties the tape of what was sent.
func (t *tape) take() (out []sent, asked []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out, asked = t.out, t.asked
	t.out, t.asked = nil, nil
	return out, asked
}

// lines of a log, as the transcripts show them.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logBook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logBook) WithGroup(string) slog.Handler            { return l }

func (l *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + ": " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "reason", "error", "by", "left_out":
			if a.Value.String() != "" {
				line += ": " + a.Value.String()
			}
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

func (l *logBook) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

func mac(t testing.TB, s string) MAC {
	t.Helper()
	m, err := ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
