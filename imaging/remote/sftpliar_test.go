package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"doppel/imaging"
)

// What SFTP's packets are made of: numbers are big-endian, strings have their
// length in front.
func u32(v uint32) []byte      { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte      { return binary.BigEndian.AppendUint64(nil, v) }
func str(s string) []byte      { return append(u32(uint32(len(s))), s...) }
func cat(p ...[]byte) []byte   { return bytes.Join(p, nil) }
func sized(body []byte) []byte { return append(u32(uint32(len(body))), body...) }

// attrs are size, owner, mode and times.
func attrs(mode uint32, size uint64) []byte {
	return cat(u32(1|2|4|8), u64(size), u32(0), u32(0), u32(mode), u32(1e9), u32(1e9))
}

const (
	fxpOpen, fxpClose, fxpRead, fxpLstat, fxpFstat, fxpOpendir, fxpReaddir, fxpRealpath, fxpStat, fxpReadlink = 3, 4, 5, 7, 8, 11, 12, 16, 17, 19
	fxpStatus, fxpHandle, fxpAttrs                                                                            = 101, 102, 105

	statusEOF, statusNoFile = 1, 2
)

// sftpLiar is an SFTP server over one directory with one file, hello, that
// answers as lie says: the reply's kind and what follows the request's number,
// or the whole packets, or nil to be honest.
type sftpLiar struct {
	lie    func(kind byte, name string, id []byte) []byte
	listed map[string]bool
}

func status(id []byte, code uint32) []byte {
	return sized(cat([]byte{fxpStatus}, id, u32(code), str("so"), str("en")))
}

func nameReply(id []byte, names ...[]byte) []byte {
	return sized(cat([]byte{sftpName}, id, u32(uint32(len(names))), cat(names...)))
}

func entry(name string, attrs []byte) []byte { return cat(str(name), str("-rw-r--r-- "+name), attrs) }

// serve answers requests until the stream ends.
func (s *sftpLiar) serve(rw io.ReadWriter) {
	s.listed = map[string]bool{}
	for {
		var head [4]byte
		if _, err := io.ReadFull(rw, head[:]); err != nil {
			return
		}
		p := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(rw, p); err != nil {
			return
		}
		if p[0] == 1 {
			rw.Write(sized(cat([]byte{2}, u32(3))))
			continue
		}
		id, name := p[1:5], ""
		if len(p) >= 9 {
			name = string(p[9:min(len(p), 9+int(binary.BigEndian.Uint32(p[5:])))])
		}
		reply := s.lie(p[0], name, id)
		if reply == nil {
			reply = s.honest(p, name, id)
		}
		if _, err := rw.Write(reply); err != nil {
			return
		}
	}
}

func (s *sftpLiar) honest(p []byte, name string, id []byte) []byte {
	isDir := path.Clean(name) == "/"
	node := attrs(0o100644, 5)
	if isDir {
		node = attrs(0o040755, 4096)
	}
	switch p[0] {
	case fxpStat, fxpLstat, fxpFstat:
		if isDir || name == "/hello" {
			return sized(cat([]byte{fxpAttrs}, id, node))
		}
	case fxpRealpath:
		return nameReply(id, entry(name, u32(0)))
	case fxpOpendir, fxpOpen:
		if isDir || name == "/hello" {
			delete(s.listed, name)
			return sized(cat([]byte{fxpHandle}, id, str(name)))
		}
	case fxpReaddir:
		if s.listed[name] {
			return status(id, statusEOF)
		}
		s.listed[name] = true
		return nameReply(id, entry("hello", attrs(0o100644, 5)))
	case fxpRead:
		at := binary.BigEndian.Uint64(p[9+len(name):])
		if at >= 5 {
			return status(id, statusEOF)
		}
		return sized(cat([]byte{sftpData}, id, str("hello"[at:])))
	case fxpClose:
		return status(id, 0)
	}
	return status(id, statusNoFile)
}

// lyingSFTP starts a host whose SFTP lies, and opens it.
func lyingSFTP(t *testing.T, lie func(kind byte, name string, id []byte) []byte) (imaging.Source, error) {
	target := peer(t, &ssh.ServerConfig{NoClientAuth: true}, func(c *ssh.ServerConn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
		go ssh.DiscardRequests(reqs)
		for n := range chans {
			ch, reqs, err := n.Accept()
			if err != nil {
				return
			}
			go func() {
				for r := range reqs {
					r.Reply(r.Type == "subsystem", nil)
				}
			}()
			go func() {
				defer ch.Close()
				(&sftpLiar{lie: lie}).serve(ch)
			}()
		}
	})
	return SFTP(t.Context(), dialHead(t, target, bare(t)))
}

// A host that lies about sizes, lengths and names gives an error in words, or
// an image of what it truly gave; neither a panic nor its memory.
func TestLyingSFTP(t *testing.T) {
	endless := func(kind byte, id []byte) []byte {
		if kind != fxpReaddir {
			return nil
		}
		names := make([][]byte, 600)
		for i := range names {
			names[i] = entry(strings.Repeat("n", 150)+fmt.Sprint(i), attrs(0o100644, 5))
		}
		return nameReply(id, names...)
	}
	told := map[string]bool{}
	deep := func(kind byte, name string, id []byte) []byte {
		switch {
		case kind == fxpLstat, kind == fxpStat:
			return sized(cat([]byte{fxpAttrs}, id, attrs(0o040755, 4096)))
		case kind == fxpOpendir:
			return sized(cat([]byte{fxpHandle}, id, str(name)))
		case kind == fxpReaddir && !told[name]:
			told[name] = true
			return nameReply(id, entry("deep", attrs(0o040755, 4096)))
		case kind == fxpReaddir:
			return status(id, statusEOF)
		}
		return nil
	}
	on := func(want byte, reply func(id []byte) []byte) func(byte, string, []byte) []byte {
		return func(kind byte, name string, id []byte) []byte {
			if kind == want && (name == "/hello" || kind != fxpLstat && kind != fxpStat && kind != fxpOpen) {
				return reply(id)
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		lie  func(kind byte, name string, id []byte) []byte
		says string // "": the scan succeeds
		note imaging.NoteKind
	}{
		"honest":                  {func(byte, string, []byte) []byte { return nil }, "", ""},
		"a huge size":             {on(fxpFstat, func(id []byte) []byte { return sized(cat([]byte{fxpAttrs}, id, attrs(0o100644, 1<<62))) }), "", imaging.NoteUnstable},
		"a negative size":         {on(fxpFstat, func(id []byte) []byte { return sized(cat([]byte{fxpAttrs}, id, attrs(0o100644, 1<<64-1))) }), "", imaging.NoteUnstable},
		"a smaller size":          {on(fxpFstat, func(id []byte) []byte { return sized(cat([]byte{fxpAttrs}, id, attrs(0o100644, 2))) }), "", ""},
		"listed larger":           {on(fxpReaddir, nil2(func(id []byte) []byte { return nameReply(id, entry("hello", attrs(0o100644, 1<<63-1))) })), "", ""},
		"a packet of 4 GB":        {on(fxpFstat, func(id []byte) []byte { return u32(1<<32 - 1) }), "packet too long", ""},
		"a packet of nothing":     {on(fxpFstat, func(id []byte) []byte { return u32(0) }), "packet too short", ""},
		"more data than there is": {on(fxpRead, func(id []byte) []byte { return sized(cat([]byte{sftpData}, id, u32(1<<30), []byte("x"))) }), "hello", ""},
		"data that was not asked": {on(fxpRead, func(id []byte) []byte { return sized(cat([]byte{sftpData}, id, str(strings.Repeat("x", 200_000)))) }), "", ""},
		"no bytes, no end":        {on(fxpRead, func(id []byte) []byte { return sized(cat([]byte{sftpData}, id, u32(0))) }), "no bytes", ""},
		"data cut in its head":    {on(fxpRead, func(id []byte) []byte { return sized(cat([]byte{sftpData}, id)) }), "hello", ""},
		"an answer to nobody":     {on(fxpFstat, func(id []byte) []byte { return status(u32(1<<31), statusEOF) }), "sid not found", ""},
		"an answer too short":     {on(fxpFstat, func(id []byte) []byte { return sized([]byte{fxpAttrs, 0}) }), "short", ""},
		"attributes cut off":      {on(fxpFstat, func(id []byte) []byte { return sized(cat([]byte{fxpAttrs}, id, u32(15), u32(1))) }), "hello", ""},
		"another kind of answer":  {on(fxpFstat, func(id []byte) []byte { return nameReply(id) }), "hello", ""},
		"more names than sent":    {on(fxpReaddir, func(id []byte) []byte { return sized(cat([]byte{sftpName}, id, u32(1<<31))) }), "", "error"},
		"names upwards":           {on(fxpReaddir, nil2(func(id []byte) []byte { return nameReply(id, entry("../../etc", attrs(0o100644, 5))) })), "", ""},
		"extensions without end":  {on(fxpFstat, func(id []byte) []byte { return sized(cat([]byte{fxpAttrs}, id, u32(1<<31), u32(1<<32-1))) }), "hello", ""},
		"names without end":       {func(kind byte, _ string, id []byte) []byte { return endless(kind, id) }, "lists a directory in more than", ""},
		"directories without end": {deep, "within directories without end", ""},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := lyingSFTP(t, c.lie)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			src.(*sftpSource).client.guard.most = 16 << 20
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
			defer cancel()
			sink := newTreeSink()
			before := allocated()
			err = src.Scan(ctx, imaging.ScanRequest{Root: "/"}, sink)
			spent := allocated() - before
			t.Logf("%v, %d entries, %v, %d bytes allocated", err, len(sink.entries), sink.notes, spent)
			if c.note == "error" {
				if err == nil {
					t.Error("it was believed")
				}
				return
			}
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want …%s…", err, c.says)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Error("it kept the scan busy")
			}
			if most := uint64(64 << 20); !strings.Contains(name, "without end") && spent > most {
				t.Errorf("%d bytes of memory", spent)
			}
			noted := false
			for _, n := range sink.notes {
				noted = noted || n.Kind == c.note
			}
			if c.note != "" && !noted {
				t.Errorf("noted: %v", sink.notes)
			}
		})
	}
}

// nil2 tells a lie once, and the end of the listing after that.
func nil2(lie func(id []byte) []byte) func(id []byte) []byte {
	told := false
	return func(id []byte) []byte {
		if told {
			told = false
			return status(id, statusEOF)
		}
		told = true
		return lie(id)
	}
}

// Whatever a server sends, the client comes to an end.
func FuzzSFTPAnswers(f *testing.F) {
	version := sized(cat([]byte{2}, u32(3)))
	id := func(n uint32) []byte { return u32(n) }
	f.Add(cat(version, sized(cat([]byte{fxpHandle}, id(1), str("h"))), nameReply(id(2), entry("hello", attrs(0o100644, 5))), status(id(3), statusEOF), status(id(4), 0),
		sized(cat([]byte{fxpHandle}, id(5), str("h"))), sized(cat([]byte{sftpData}, id(6), str("hello"))), status(id(7), statusEOF), status(id(8), 0)))
	f.Add(cat(version, sized(cat([]byte{fxpHandle}, id(1), str("h"))), sized(cat([]byte{sftpName}, id(2), u32(1<<31)))))
	f.Add(cat(version, sized(cat([]byte{sftpData}, id(1), u32(0)))))
	f.Add(u32(1<<32 - 1))
	f.Fuzz(func(t *testing.T, stream []byte) {
		guard := &sftpGuard{r: bytes.NewReader(stream), most: 1 << 20}
		client, err := sftp.NewClientPipe(guard, nopCloser{io.Discard})
		if err != nil {
			return
		}
		defer client.Close()
		infos, _ := client.ReadDir("/d")
		if len(infos) > len(stream) {
			t.Errorf("%d names in %d bytes", len(infos), len(stream))
		}
		x := &sftpClient{Client: client, guard: guard}
		if text, _ := x.read("/f"); len(text) > len(stream) {
			t.Errorf("%d bytes of a file in %d", len(text), len(stream))
		}
		d := &sftpDir{tree: &sftpTree{client: x}, path: "/"}
		d.Self(t.Context())
		d.Names(t.Context())
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
