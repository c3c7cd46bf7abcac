package web

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// Plain is the plain door: blobs, as store.Handler serves them, below /store/,
// and boot, which sees whole paths, below /boot/. Only GET and HEAD are
// answered, and nothing else is found. A reader may take its time, but not
// stop reading.
func Plain(blobs, boot http.Handler) http.Handler {
	blobs = http.StripPrefix("/store", blobs)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
			return
		}
		w = &paced{ResponseWriter: w, control: http.NewResponseController(w)}
		switch path := r.URL.Path; {
		case strings.Contains(path, "//") || strings.Contains(path, "/.") || strings.ContainsAny(path, "\\\x00"):
			// No name here needs these; whoever sends them tries something.
			http.NotFound(w, r)
		case strings.HasPrefix(path, "/store/"):
			blobs.ServeHTTP(w, r)
		case strings.HasPrefix(path, "/boot/"):
			boot.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

const (
	paceBytes = 1 << 20
	paceTime  = time.Minute // for paceBytes at most: 140 kbit/s
)

// paced gives every MiB written its own deadline: a whole answer may take
// hours on a slow segment, but a caller that stopped reading does not keep its
// connection.
type paced struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// extend is best effort: a writer without deadlines has nothing to be freed.
func (p *paced) extend() { _ = p.control.SetWriteDeadline(time.Now().Add(paceTime)) }

func (p *paced) Write(b []byte) (int, error) {
	var n int
	for {
		part := b[n:min(len(b), n+paceBytes)]
		p.extend()
		m, err := p.ResponseWriter.Write(part)
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

// ReadFrom lets the kernel send files by itself, as net/http would without
// this wrapper: it must see a file within one LimitedReader.
func (p *paced) ReadFrom(src io.Reader) (int64, error) {
	left := int64(1<<63 - 1)
	if l, ok := src.(*io.LimitedReader); ok {
		src, left = l.R, l.N
		defer func() { l.N = left }()
	}
	var n int64
	for left > 0 {
		p.extend()
		want := min(left, paceBytes)
		m, err := io.Copy(p.ResponseWriter, io.LimitReader(src, want))
		n, left = n+m, left-m
		if err != nil || m < want {
			return n, err
		}
	}
	return n, nil
}
