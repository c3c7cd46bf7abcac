package tftpd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pin/tftp/v3"
)

func TestName(t *testing.T) {
	for in, want := range map[string]string{
		"undionly.kpxe":            "undionly.kpxe",
		"/undionly.kpxe":           "undionly.kpxe",
		"//boot/snponly.efi":       "boot/snponly.efi",
		`\boot\snponly.efi`:        "boot/snponly.efi",
		"undionly.kpxe\xff":        "undionly.kpxe",
		"undionly.kpxe\xff\xff \n": "undionly.kpxe",
		"undionly.kpxe\x00junk":    "undionly.kpxe",
		"../../etc/shadow":         "../../etc/shadow",
		"":                         "",
		"/":                        "",
	} {
		if got := Name(in); got != want {
			t.Errorf("Name(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"undionly.kpxe\xff", `\a\b`, "../..//etc/shadow", "\x00", "\xff\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := Name(s)
		if strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\x00\\") || len(name) > len(s) {
			t.Errorf("Name(%q) = %q", s, name)
		}
		if again := Name(name); again != name {
			t.Errorf("Name(%q) = %q, and that cleaned again %q", s, name, again)
		}
	})
}

// log collects what a server says.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until the log has text.
func (l *log) await(t *testing.T, text string) {
	t.Helper()
	eventually(t, "log line "+text, func() bool { return strings.Contains(l.String(), text) })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// random is content of which no two blocks are alike.
func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	r.Read(b)
	return b
}

func file(b []byte) File { return File{bytes.NewReader(b), int64(len(b))} }

// serve runs a server on conn until the test ends or stop is called, which
// waits for it.
func serve(t *testing.T, conn *net.UDPConn, files Files) (l *log, stop func()) {
	t.Helper()
	l = &log{}
	server := &Server{
		Lookup: files.Lookup, Grace: 500 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, conn) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func listen(t *testing.T) (*net.UDPConn, *net.UDPAddr) {
	t.Helper()
	// Any port: 0 would mean 69.
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return conn, conn.LocalAddr().(*net.UDPAddr)
}

func fetch(addr net.Addr, name string, blksize int) ([]byte, error) {
	c, err := tftp.NewClient(addr.String())
	if err != nil {
		return nil, err
	}
	c.SetTimeout(2 * time.Second)
	c.SetBlockSize(blksize)
	c.RequestTSize(true)
	from, err := c.Receive(name, "octet")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := from.WriteTo(&b); err != nil {
		return nil, err
	}
	if size, ok := from.(tftp.IncomingTransfer).Size(); ok && size != int64(b.Len()) {
		return nil, fmt.Errorf("tsize says %d, and %d bytes came", size, b.Len())
	}
	return b.Bytes(), nil
}

func TestManyClientsTwice(t *testing.T) {
	conn, addr := listen(t)
	files := Files{}
	want := map[string][]byte{}
	// Lengths around the end of a block, none at all, and a longer one.
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 1428, 200_000} {
		name := fmt.Sprintf("file-%d", n)
		want[name] = random(n)
		files[name] = file(want[name])
	}
	serve(t, conn, files)
	before := descriptors(t)
	var clients sync.WaitGroup
	for i := range 50 {
		clients.Go(func() {
			for range 2 {
				for name, content := range want {
					got, err := fetch(addr, name, 512+i*19)
					if err != nil || !bytes.Equal(got, content) {
						t.Errorf("client %d, %s: %d bytes, %v", i, name, len(got), err)
					}
				}
			}
		})
	}
	clients.Wait()
	eventually(t, "descriptors to be closed", func() bool { return descriptors(t) <= before })
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// request is an RRQ or WRQ as it goes on the wire.
func request(op byte, fields ...string) []byte {
	return append([]byte{0, op}, strings.Join(fields, "\x00")+"\x00"...)
}

// raw is a client of which each packet is in the test's hand.
type raw struct {
	t    *testing.T
	conn *net.UDPConn
	peer *net.UDPAddr
}

func newRaw(t *testing.T, server *net.UDPAddr) *raw {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &raw{t, conn, server}
}

func (r *raw) send(b []byte) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDP(b, r.peer); err != nil {
		r.t.Fatal(err)
	}
}

// receive takes the next packet, and its sender for the peer.
func (r *raw) receive() []byte {
	r.t.Helper()
	b := make([]byte, 2048)
	if err := r.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	n, from, err := r.conn.ReadFromUDP(b)
	if err != nil {
		r.t.Fatal(err)
	}
	r.peer = from
	return b[:n]
}

func errorCode(b []byte) (code uint16, ok bool) {
	if len(b) < 5 || b[1] != 5 {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[2:]), true
}

func TestRefusals(t *testing.T) {
	conn, addr := listen(t)
	l, _ := serve(t, conn, Files{"loader": file(random(100))})
	for _, c := range []struct {
		what   string
		packet []byte
		code   uint16
	}{
		{"unknown", request(1, "nothing", "octet"), 1},
		{"unknown with options", request(1, "nothing", "octet", "blksize", "1428", "tsize", "0"), 1},
		{"climbing", request(1, "../../etc/shadow", "octet"), 1},
		{"climbing from a known name", request(1, "loader/../../etc/shadow", "octet"), 1},
		{"absolute", request(1, "/etc/shadow", "octet"), 1},
		{"backslashes", request(1, `..\..\etc\shadow`, "octet"), 1},
		{"no name", request(1, "", "octet"), 1},
		{"write", request(2, "loader", "octet"), 2},
		{"write elsewhere", request(2, "/etc/shadow", "octet", "tsize", "10"), 2},
	} {
		r := newRaw(t, addr)
		r.send(c.packet)
		answer := r.receive()
		if code, ok := errorCode(answer); !ok || code != c.code {
			t.Errorf("%s: answer %q, want error %d", c.what, answer, c.code)
		}
	}
	l.await(t, "write refused")
	l.await(t, "no such file")
}

func TestNamesOfFirmware(t *testing.T) {
	conn, addr := listen(t)
	serve(t, conn, Files{"boot/loader": file([]byte("x"))})
	for _, name := range []string{"boot/loader", "/boot/loader", `\boot\loader`, "boot/loader\xff"} {
		r := newRaw(t, addr)
		r.send(request(1, name, "octet"))
		if got := r.receive(); !bytes.Equal(got, []byte("\x00\x03\x00\x01x")) {
			t.Errorf("%q: %q", name, got)
		}
		r.send([]byte{0, 4, 0, 1})
	}
}

// Firmware asks for the size, and refuses the transfer once it knows.
func TestSizeProbe(t *testing.T) {
	conn, addr := listen(t)
	l, _ := serve(t, conn, Files{"loader": file(random(70_000))})
	r := newRaw(t, addr)
	r.send(request(1, "loader", "octet", "tsize", "0"))
	if got := r.receive(); !bytes.Equal(got, []byte("\x00\x06tsize\x0070000\x00")) {
		t.Fatalf("options answered with %q", got)
	}
	r.send([]byte("\x00\x05\x00\x08User aborted the transfer\x00"))
	l.await(t, "client wanted no more than the size")
	if strings.Contains(l.String(), "WARN") {
		t.Errorf("a size probe is logged as a fault:\n%s", l)
	}
}

// A block whose acknowledgement is lost is sent again, and so are the options.
func TestRetransmission(t *testing.T) {
	conn, addr := listen(t)
	serve(t, conn, Files{"loader": file(random(600))})
	r := newRaw(t, addr)
	r.send(request(1, "loader", "octet", "blksize", "512"))
	for _, ack := range [][]byte{{0, 4, 0, 0}, {0, 4, 0, 1}, {0, 4, 0, 2}} {
		first := r.receive()
		if again := r.receive(); !bytes.Equal(first, again) {
			t.Fatalf("%q was followed by %q before it was acknowledged", first, again)
		}
		r.send(ack)
		r.send(ack) // a duplicate must not make two of all that follows (RFC 1123 section 4.2.3.1)
	}
}

func TestStopWithStuckClient(t *testing.T) {
	conn, addr := listen(t)
	l, stop := serve(t, conn, Files{"loader": file(random(5000))})
	r := newRaw(t, addr)
	r.send(request(1, "loader", "octet"))
	r.receive() // and never acknowledge
	start := time.Now()
	stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	l.await(t, "transfers cut off")
	r.send([]byte{0, 4, 0, 1})
	if code, ok := errorCode(awaitError(r)); !ok || code == 0 {
		t.Errorf("a client that came back late got no error")
	}
}

// awaitError skips repeated blocks.
func awaitError(r *raw) []byte {
	for {
		if b := r.receive(); b[1] != 3 {
			return b
		}
	}
}

func TestStopWaitsForTransfer(t *testing.T) {
	conn, addr := listen(t)
	_, stop := serve(t, conn, Files{"loader": file(random(600))})
	r := newRaw(t, addr)
	r.send(request(1, "loader", "octet"))
	r.receive()
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	r.send([]byte{0, 4, 0, 1})
	if last := r.receive(); last[1] != 3 || last[3] != 2 {
		t.Errorf("the last block is %q", last)
	}
	r.send([]byte{0, 4, 0, 2})
	<-stopped
}

// Descriptors must not grow with requests that fail (pin/tftp#64).
func TestNoDescriptorLeaks(t *testing.T) {
	conn, addr := listen(t)
	l, _ := serve(t, conn, Files{"loader": file(random(10))})
	before := descriptors(t)
	for range 200 {
		r, err := net.DialUDP("udp4", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{
			request(1, "nothing", "octet"), request(2, "loader", "octet"), request(1, "loader", "octet", "tsize", "0"), {0}, {0, 9, 9},
		} {
			if _, err := r.Write(b); err != nil && !errors.Is(err, io.ErrShortWrite) {
				break // refused by the kernel: an answer came to a connected socket
			}
		}
		r.Close()
	}
	l.await(t, "packet ignored")
	eventually(t, "descriptors to be closed", func() bool { return descriptors(t) <= before })
}

// letGo ends the transfer that may have begun, so that they do not add up.
func (r *raw) letGo() {
	if r.conn.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return
	}
	b := make([]byte, 2048)
	if _, from, err := r.conn.ReadFromUDP(b); err == nil {
		r.peer = from
		r.send([]byte("\x00\x05\x00\x00enough\x00"))
	}
}

// Whatever comes in, the server goes on serving.
func FuzzPackets(f *testing.F) {
	for _, b := range [][]byte{
		request(1, "loader", "octet"), request(1, "loader", "octet", "blksize", "1428", "tsize", "0"),
		request(1, "loader", "netascii", "tsize", "0"), request(1, "loader", "octet", "blksize", "99999999999999999999"),
		request(1, "loader", "octet", "blksize", "0"), request(1, "loader", "octet", "windowsize", "64"),
		request(2, "loader", "octet", "tsize", "-1"), {0, 1}, {0, 1, 0, 0}, {0, 3, 0, 0, 1}, {0, 4, 0, 0}, {0, 5, 0, 0, 0}, {0, 6, 0, 0, 0, 0},
		append([]byte{0, 1}, bytes.Repeat([]byte{'a', 0}, 250)...),
		append(request(1, "loader", "octet", "tsize"), bytes.Repeat([]byte("9"), 490)...),
	} {
		f.Add(b)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		f.Fatal(err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	server := &Server{Lookup: Files{"loader": file([]byte("x"))}.Lookup, Grace: time.Millisecond}
	go func() { ended <- server.Serve(ctx, conn) }()
	f.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.Errorf("Serve: %v", err)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1400 {
			return
		}
		fuzzed := newRaw(t, addr)
		fuzzed.send(b)
		defer fuzzed.letGo()
		r := newRaw(t, addr)
		r.send(request(1, "loader", "octet"))
		if got := r.receive(); !bytes.Equal(got, []byte("\x00\x03\x00\x01x")) {
			t.Errorf("after %q, the loader is %q", b, got)
		}
		r.send([]byte{0, 4, 0, 1})
	})
}

func TestListenSaysWhoIsThere(t *testing.T) {
	conn, addr := listen(t)
	defer conn.Close()
	_, err := Listen(t.Context(), "", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(addr.Port)))
	if err == nil || !strings.Contains(err.Error(), "another TFTP server") {
		t.Errorf("listening twice: %v", err)
	}
}
