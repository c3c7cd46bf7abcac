package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"testing"
	"testing/iotest"
)

// Every Store passes the same suite: what is written by write is read by read.
func TestConformance(t *testing.T) {
	t.Run("dir", func(t *testing.T) {
		d := testDir(t)
		testReading(t, d, d)
		testWriting(t, d)
	})
	t.Run("memory", func(t *testing.T) {
		m := NewMemory()
		testReading(t, m, m)
		testWriting(t, m)
	})
	t.Run("http over dir", func(t *testing.T) { testHTTP(t, testDir(t)) })
	t.Run("http over memory", func(t *testing.T) { testHTTP(t, NewMemory()) })
	t.Run("http over http", func(t *testing.T) {
		m := NewMemory()
		near := httptest.NewServer(Handler(m))
		t.Cleanup(near.Close)
		far := httptest.NewServer(Handler(NewHTTP(near.URL, nil)))
		t.Cleanup(far.Close)
		testReading(t, m, NewHTTP(far.URL+"/", nil))
	})
}

func testHTTP(t *testing.T, st Store) {
	srv := httptest.NewServer(Handler(st))
	t.Cleanup(srv.Close)
	h := NewHTTP(srv.URL, srv.Client())
	testReading(t, st, h)
	ctx := context.Background()
	if err := h.Put(ctx, KindPack, Sum(nil), bytes.NewReader(nil)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Put: %v", err)
	}
	if err := h.Delete(ctx, KindPack, Sum(nil)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Delete: %v", err)
	}
	err := h.List(ctx, KindPack, func(ID, int64) error { return nil })
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("List: %v", err)
	}
}

func testReading(t *testing.T, write, read Store) {
	ctx := context.Background()
	var missing *MissingError
	for _, k := range []Kind{KindPack, KindManifest} {
		for _, size := range []int{0, 1, 1000, 1<<20 + 7} {
			want := testChunks(uint64(size), 1, size)[0]
			id := putBytes(t, write, k, want)
			if n, err := read.Stat(ctx, k, id); err != nil || n != int64(size) {
				t.Errorf("Stat of %d bytes: %d, %v", size, n, err)
			}
			s := int64(size)
			for _, r := range [][2]int64{{0, -1}, {0, s}, {0, 0}, {s, 0}, {s, -1}, {s / 2, -1}, {s / 3, s / 2}} {
				end := s
				if r[1] >= 0 {
					end = r[0] + r[1]
				}
				if got := readAll(t, read, k, id, r[0], r[1]); !bytes.Equal(got, want[r[0]:end]) {
					t.Errorf("%d bytes from %d on of %d: other bytes", r[1], r[0], size)
				}
			}
			for _, r := range [][2]int64{{0, s + 1}, {s, 1}, {s + 1, -1}, {s + 1, 0}, {s / 2, s + 1}, {-1, 1}, {-1, -1}} {
				rc, err := read.Open(ctx, k, id, r[0], r[1])
				if err == nil {
					rc.Close()
				}
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%d bytes from %d on of %d: %v", r[1], r[0], size, err)
				}
			}
			if b, err := ReadBlob(ctx, read, k, id); err != nil || !bytes.Equal(b, want) {
				t.Errorf("ReadBlob of %d bytes: %v", size, err)
			}
		}
		nowhere := Sum([]byte("nowhere"))
		if _, err := read.Stat(ctx, k, nowhere); !errors.As(err, &missing) || missing.ID != nowhere || missing.What != string(k) {
			t.Errorf("Stat of a missing blob: %v", err)
		}
		for _, n := range []int64{-1, 0, 1} {
			if _, err := read.Open(ctx, k, nowhere, 0, n); !errors.As(err, &missing) {
				t.Errorf("Open of a missing blob: %v", err)
			}
		}
	}
	// A blob of one kind is none of the other.
	id := putBytes(t, write, KindPack, []byte("a pack"))
	if _, err := read.Stat(ctx, KindManifest, id); !errors.As(err, &missing) {
		t.Errorf("a pack is found as a manifest: %v", err)
	}
	for _, k := range []Kind{"", "../packs", "names"} {
		if _, err := read.Open(ctx, k, id, 0, -1); err == nil {
			t.Errorf("kind %q is opened", k)
		}
	}
	stopped, stop := context.WithCancelCause(ctx)
	why := errors.New("enough")
	stop(why)
	if _, err := read.Open(stopped, KindPack, id, 0, -1); !errors.Is(err, why) {
		t.Errorf("Open with an ended context: %v", err)
	}
}

func testWriting(t *testing.T, st Store) {
	ctx := context.Background()
	var corrupt *CorruptError
	var missing *MissingError
	body := []byte("some bytes")
	id := Sum(body)

	if err := st.Put(ctx, KindPack, id, bytes.NewReader([]byte("other bytes"))); !errors.As(err, &corrupt) || corrupt.ID != id {
		t.Errorf("Put of bytes with another digest: %v", err)
	}
	why := errors.New("the line went dead")
	if err := st.Put(ctx, KindPack, id, io.MultiReader(bytes.NewReader(body[:4]), iotest.ErrReader(why))); !errors.Is(err, why) {
		t.Errorf("Put from a reader that fails: %v", err)
	}
	if _, err := st.Stat(ctx, KindPack, id); !errors.As(err, &missing) {
		t.Errorf("a blob is there after Put went wrong: %v", err)
	}
	for range 2 { // the second finds it there
		if err := st.Put(ctx, KindPack, id, iotest.OneByteReader(bytes.NewReader(body))); err != nil {
			t.Errorf("Put: %v", err)
		}
	}
	if err := st.Put(ctx, KindPack, id, bytes.NewReader([]byte("other"))); !errors.As(err, &corrupt) {
		t.Errorf("Put of other bytes under a name that is there: %v", err)
	}
	if err := st.Put(ctx, "names", id, bytes.NewReader(body)); err == nil {
		t.Error("Put of an unknown kind")
	}

	all := listIDs(t, st, KindPack)
	if all[id] != int64(len(body)) {
		t.Errorf("List gives %d bytes", all[id])
	}
	if err := st.List(ctx, KindPack, func(ID, int64) error { return why }); !errors.Is(err, why) {
		t.Errorf("List with an fn that fails: %v", err)
	}
	if err := st.Delete(ctx, KindPack, id); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := st.Delete(ctx, KindPack, id); !errors.As(err, &missing) {
		t.Errorf("Delete again: %v", err)
	}
	if _, ok := listIDs(t, st, KindPack)[id]; ok {
		t.Error("a deleted blob is listed")
	}

	spool, err := st.(Spooler).Spool(ctx, KindManifest)
	if err != nil {
		t.Fatal(err)
	}
	spool.Write(body[:3])
	spool.Write(body[3:])
	if _, ok := listIDs(t, st, KindManifest)[id]; ok {
		t.Error("a spool is seen before its commit")
	}
	if got, err := spool.Commit(); err != nil || got != id {
		t.Errorf("committing a spool: %s, %v", got, err)
	}
	if err := spool.Discard(); err != nil {
		t.Errorf("discarding after a commit: %v", err)
	}
	if _, err := spool.Write(body); err == nil {
		t.Error("a committed spool is written")
	}
	if got := readAll(t, st, KindManifest, id, 0, -1); !bytes.Equal(got, body) {
		t.Errorf("a spool holds %q", got)
	}
	before := len(listIDs(t, st, KindManifest))
	if spool, err = st.(Spooler).Spool(ctx, KindManifest); err != nil {
		t.Fatal(err)
	}
	spool.Write([]byte("to be dropped"))
	if err := spool.Discard(); err != nil {
		t.Errorf("discarding: %v", err)
	}
	if after := len(listIDs(t, st, KindManifest)); after != before {
		t.Errorf("%d blobs after a discarded spool, %d before", after, before)
	}
}
