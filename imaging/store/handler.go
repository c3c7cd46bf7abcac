package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Handler serves a store's blobs as HTTP reads them: GET and HEAD of
// /packs/HEX and /manifests/HEX, with ranges, each with its digest as strong
// ETag and good for ever in any cache. Nothing else is found, and nothing is
// listed. Blobs are sealed, so whoever asks may have them.
func Handler(st Store) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k, id, ok := blobPath(r.URL.Path)
		if !ok {
			notFound(w)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "blobs are only read here", http.StatusMethodNotAllowed)
			return
		}
		content, err := openContent(r.Context(), st, k, id)
		var missing *MissingError
		if errors.As(err, &missing) {
			notFound(w)
			return
		}
		if err != nil {
			// The reason may hold paths of this host.
			http.Error(w, "the store cannot be read", http.StatusInternalServerError)
			return
		}
		defer content.Close()
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		h.Set("ETag", `"`+id.String()+`"`)
		http.ServeContent(w, r, "", time.Time{}, content)
	})
}

func notFound(w http.ResponseWriter) {
	// It may be put in a moment.
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "no such blob", http.StatusNotFound)
}

// blobPath reads "/packs/HEX" and "/manifests/HEX".
func blobPath(path string) (Kind, ID, bool) {
	for _, k := range []Kind{KindPack, KindManifest} {
		f, _ := k.folder()
		if name, ok := strings.CutPrefix(path, "/"+f+"/"); ok {
			id, ok := fileID(name)
			return k, id, ok
		}
	}
	return "", ID{}, false
}

// openContent opens a blob for http.ServeContent. A Dir gives the file itself,
// which the kernel can send without copying it.
func openContent(ctx context.Context, st Store, k Kind, id ID) (io.ReadSeekCloser, error) {
	if d, ok := st.(*Dir); ok {
		f, _, err := d.open(ctx, k, id)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	size, err := st.Stat(ctx, k, id)
	if err != nil {
		return nil, err
	}
	return &content{ctx: ctx, st: st, kind: k, id: id, size: size}, nil
}

// content reads a blob of any store from wherever it is told to.
type content struct {
	ctx  context.Context
	st   Store
	kind Kind
	id   ID
	size int64
	off  int64
	r    io.ReadCloser // at off; nil until read from
}

func (c *content) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += c.off
	case io.SeekEnd:
		off += c.size
	}
	if off < 0 {
		return 0, fmt.Errorf("seeking %s %s before its start", c.kind, c.id)
	}
	if off != c.off {
		if err := c.Close(); err != nil {
			return 0, err
		}
		c.off = off
	}
	return off, nil
}

func (c *content) Read(b []byte) (int, error) {
	if c.off >= c.size {
		return 0, io.EOF
	}
	if c.r == nil {
		r, err := c.st.Open(c.ctx, c.kind, c.id, c.off, -1)
		if err != nil {
			return 0, err
		}
		c.r = r
	}
	n, err := c.r.Read(b)
	c.off += int64(n)
	return n, err
}

func (c *content) Close() error {
	if c.r == nil {
		return nil
	}
	r := c.r
	c.r = nil
	return r.Close()
}
